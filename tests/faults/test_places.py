"""What changes around a run between a kill and its continuation: its data, the clock and the file system."""

import errno
import fcntl
import json
import os
import shutil
import time

import pytest

from dwrl_jax.core import lock
from dwrl_jax.core.errors import UserError
from dwrl_jax.core.names import CHECKPOINTS
from dwrl_jax.data import world
from dwrl_jax.settings.commandline import parse
from dwrl_jax.training import sources
from tests.runs import TINY, assert_same_run, fit

TOKENIZER = world.make_tokenizer()


@pytest.fixture
def read(tmp_path):
    """A file of pairs, and a function that reads it as a run with this workdir does."""
    path = tmp_path / "pairs.jsonl"
    write(path, ["s2 warm"] * 8)

    def call(part="train"):
        config, _ = parse([*TINY, "--workdir=unused", f"--config.data.{part}={path}"])
        talk = sources.make_talk(config, TOKENIZER, "verdict")
        return sources.tokenised(config, talk, part, tmp_path / "run")[0]

    call.path, call.run = path, tmp_path / "run"
    call.run.mkdir()
    return call


def write(path, chosen):
    rows = ({"prompt": f"s{i % 8} o{i % 8}", "chosen": text, "rejected": "s6 curt"} for i, text in enumerate(chosen))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def begin(run, part):
    """What a run leaves once it has used its pairs."""
    if part == "train":
        (run / CHECKPOINTS).mkdir()
    else:
        (run / "eval").mkdir()
        (run / "eval" / "base.jsonl").write_text("")


@pytest.mark.parametrize("part", ["train", "eval"])
@pytest.mark.parametrize("chosen", [["s2 warm"] * 7 + ["s3 warm"], ["s2 warm"] * 7, ["s2 warm"] * 9])
def test_other_pairs_than_those_of_the_beginning_are_named(part, chosen, read):
    kept = read(part)
    begin(read.run, part)
    write(read.path, chosen)
    for _ in range(2):
        with pytest.raises(UserError, match=rf"data.{part} was changed after .*pairs.jsonl:\d is the first other pair"):
            read(part)
    write(read.path, ["s2 warm"] * 8)
    assert len(read(part)) == len(kept), "the old file goes on"


def test_pairs_may_change_before_a_run_has_used_them(read):
    read()
    write(read.path, ["s3 warm"] * 8)
    assert read().rows[0].pair.chosen == "s3 warm"


def test_the_same_pairs_with_another_time_or_in_other_lines_go_on(read):
    read()
    begin(read.run, "train")
    read.path.write_text("\n" + read.path.read_text())
    os.utime(read.path, (1, 1))
    assert len(read()) == 8


def test_data_that_is_gone_is_named(read):
    read()
    begin(read.run, "train")
    read.path.unlink()
    with pytest.raises(UserError, match=r"pairs.jsonl .* cannot be read") as told:
        read()
    assert "\n" not in str(told.value)


def test_a_clock_that_was_set_back_and_a_place_without_locks_change_nothing(
    base, four_steps, tmp_path, monkeypatch, capsys
):
    """The files of the run are then from the future."""
    run, now = tmp_path / "run", time.time
    shutil.copytree(four_steps[0], run)
    shutil.rmtree(run / CHECKPOINTS / "4")
    for path in run.rglob("*"):
        os.utime(path, (now() + 1e8, now() + 1e8))

    def refuse(file, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(time, "time", lambda: now() - 1e8)
    fit(run, f"--config.model.path={base}")
    assert_same_run(run, four_steps[0])
    said = [line for line in capsys.readouterr().out.splitlines() if "no locks on this file system" in line]
    assert len(said) == 1 and str(run / lock.NAME) in said[0]
