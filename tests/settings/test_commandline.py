"""Every command: its --help, typos, and the list of all."""

import importlib
import json
import shutil
import subprocess
import sys

import pytest

from dwrl_jax import __main__ as console
from dwrl_jax import train
from dwrl_jax.core.errors import Stopped, UserError
from dwrl_jax.settings.commandline import WORKDIR, Flag, command, parse, parse_flags
from dwrl_jax.settings.config import as_json, flat, keys
from dwrl_jax.training.config import sections
from dwrl_jax.training.run import is_begun
from tests.runs import REPO, TINY

COMMANDS = console.commands()


def ended(main, arguments, code, capsys):
    """Standard output and errors of a command that ends with an exit code."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == code
    return capsys.readouterr()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [])
    text = ended(console.main, [name, "--help"], 0, capsys).out
    assert text.startswith(COMMANDS[name]) and f"python -m dwrl_jax.{name} --" in text
    assert "\nFlags:\n  --" in text and "; required" in text


def test_a_flag_with_several_values_is_shown_as_it_is_given(capsys):
    text = ended(console.main, ["reproduce", "--help"], 0, capsys).out
    assert "\n  --configs tiny tiny,world=long\n" in text and "\n  --arms=dwrl,bt\n" in text


def test_help_has_each_key_with_default_bound_and_meaning(capsys):
    text = ended(train.main, ["--help"], 0, capsys).out
    for key, setting in keys(sections("dwrl")).items():
        name = f"objective.{key.partition('.')[2]}" if key.startswith("objective.") else key
        assert f"  {name} = {setting.default!r}" in text and setting.meaning in text, key
    assert "optim.micro_batches = 1  *\n      at least 1; " in text
    assert "alpha = 0.5\n      from 0 to 1; " in text and "(bvpo)" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*TINY, "--workdri=x"], "--workdri: no such flag; the nearest is --workdir"),
        (["--confg=configs/tiny.py"], "--confg: no such flag; the nearest is --config"),
        ([*TINY, "--config.optim.lr=3"], "optim.lr: no such key; the nearest is optim.learning_rate"),
        (TINY, "--workdir is missing, e.g. --config=configs/tiny.py --workdir=runs/tiny"),
    ],
)
def test_a_typo_is_one_line_that_names_what_is_near(arguments, message, capsys):
    if arguments is not TINY:
        arguments = [*arguments, "--workdir=x"]
    assert ended(train.main, arguments, 2, capsys).err == f"error: {message}\n"


@pytest.mark.parametrize("name", ["report", "export"])
def test_a_typo_in_a_flag_of_a_command_without_config(name, capsys):
    main = importlib.import_module(f"dwrl_jax.{name}").main
    assert ended(main, ["--workdri=x"], 2, capsys).err == "error: --workdri: no such flag; the nearest is --workdir\n"


def test_flags_are_read():
    wanted = {"workdir": WORKDIR, "votes": Flag("8", "thoughts", default=8, read=int)}
    given = parse_flags(["--workdir=~/x"], wanted)
    assert given.votes == 8 and given.workdir.is_absolute()
    with pytest.raises(UserError, match="--votes: invalid int value: 'many'"):
        parse_flags(["--workdir=x", "--votes=many"], wanted)


def test_paths_in_the_home_folder(monkeypatch, tmp_path):
    """No shell expands ~ behind `--flag=`: every path of a config and of a command's flags is expanded here."""
    monkeypatch.setenv("HOME", str(tmp_path))
    keys = ("model.path", "model.tokenizer", "data.train", "data.eval", "base.data.train")
    config, _ = parse([*TINY, "--workdir=x", *(f"--config.{key}=~/{key}" for key in keys)])
    given = flat(config.to_dict())
    assert {key: given[key] for key in keys} == {key: f"{tmp_path}/{key}" for key in keys}
    shutil.copy(REPO / "configs" / "tiny.py", tmp_path)
    assert parse(["--config=~/tiny.py:bt,smoke", "--workdir=x"])[0].objective.name == "bt"
    for name, flag in (("export", "output"), ("score", "input"), ("score", "output"), ("plan", "json")):
        assert importlib.import_module(f"dwrl_jax.{name}").FLAGS[flag].read("~/x") == tmp_path / "x"


def test_a_run_that_began_before_paths_were_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    config, _ = parse([*TINY, "--workdir=x", "--config.model.path=~/m"])
    kept = as_json(config)
    kept["model"]["path"] = "~/m"
    (tmp_path / "config.json").write_text(json.dumps(kept))
    assert is_begun(config, tmp_path)


def test_the_list_of_commands(capsys):
    console.main([])
    lines = capsys.readouterr().out.splitlines()
    assert {"train", "plan", "report", "export", "reproduce"} <= {line.split()[0] for line in lines if line}
    assert ended(console.main, ["tarin"], 2, capsys).err == "error: tarin: no such command; the nearest is train\n"


def test_a_command_ends_with_the_exit_code_of_what_stopped_it(capsys):
    def stopped(arguments):
        raise Stopped("stopped after step 1", 15)

    assert ended(command(stopped), [], 143, capsys).err == "stopped after step 1\n"


def test_the_console_script():
    """What pip makes of setup.py: a function of a module, started by a name."""
    assert '"dwrl-jax=dwrl_jax.__main__:main"' in (REPO / "setup.py").read_text()
    code = "import sys; from dwrl_jax.__main__ import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", code, "report"], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == "error: --workdir is missing, e.g. --workdir=runs/tiny\n"
