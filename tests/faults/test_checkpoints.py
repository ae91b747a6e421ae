"""A checkpoint that is not what was written is named and passed over; the run ends as an undisturbed one does."""

import json
import shutil

import pytest

from dwrl_jax.core import checksums, files
from dwrl_jax.core.errors import UserError
from dwrl_jax.core.names import CHECKPOINTS, UNREADABLE
from tests.runs import assert_same_run, fit, run_command


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    """A run with all its checkpoints, from the first step to the fourth."""
    folder = tmp_path_factory.mktemp("whole")
    fit(folder, f"--config.model.path={base}", "--config.checkpoint.every=1", "--config.checkpoint.keep=4")
    return folder


def largest(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flipped(step):
    content = bytearray(largest(step).read_bytes())
    content[len(content) // 2] ^= 1
    largest(step).write_bytes(content)


def truncated(step):
    path = largest(step)
    path.write_bytes(path.read_bytes()[:-7])


DAMAGE = {
    "was changed": flipped,
    "bytes, not": truncated,
    "rest/_METADATA is missing": lambda step: shutil.rmtree(step / "rest"),
    "_CHECKPOINT_METADATA is missing": lambda step: (step / "_CHECKPOINT_METADATA").unlink(),
    "checksums.json is not readable": lambda step: (step / checksums.NAME).write_text("{"),
}


@pytest.mark.parametrize(
    "reason", [pytest.param(reason, marks=[] if reason == "was changed" else [pytest.mark.slow]) for reason in DAMAGE]
)
def test_a_run_goes_on_from_the_newest_whole_checkpoint(reason, base, whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "run")
    steps = tmp_path / "run" / CHECKPOINTS
    for step in (steps / "4", steps / "3") if reason == "was changed" else (steps / "4",):
        DAMAGE[reason](step)
    fit(tmp_path / "run", f"--config.model.path={base}", "--config.checkpoint.every=1", "--config.checkpoint.keep=4")
    said = [line for line in capsys.readouterr().out.splitlines() if "is skipped" in line]
    assert said[0].startswith("warning: checkpoint 4 is skipped: ") and reason in said[0]
    assert len(said) == (2 if reason == "was changed" else 1)
    assert (tmp_path / "run" / UNREADABLE / "4").is_dir() and (steps / "4").is_dir()
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.slow
def test_a_run_without_a_whole_checkpoint_begins_again(base, whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "run")
    for step in (tmp_path / "run" / CHECKPOINTS).glob("[0-9]*"):
        truncated(step)
    fit(tmp_path / "run", f"--config.model.path={base}", "--config.checkpoint.every=1", "--config.checkpoint.keep=4")
    assert capsys.readouterr().out.count("is skipped") == 4
    assert_same_run(tmp_path / "run", whole)


def test_a_moved_run_is_the_same_run(base, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "elsewhere" / CHECKPOINTS / "4")
    fit(tmp_path / "elsewhere", f"--config.model.path={base}", "--config.checkpoint.every=1")
    assert_same_run(tmp_path / "elsewhere", whole)
    kept = {path.name for path in (tmp_path / "elsewhere" / CHECKPOINTS).iterdir()}
    assert {"3", "4"} <= kept, "the one before stays"


def test_a_damaged_checkpoint_is_not_exported(whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "run")
    flipped(tmp_path / "run" / CHECKPOINTS / "4" / "params")
    assert run_command("export", f"--workdir={tmp_path / 'run'}", f"--output={tmp_path / 'model'}") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "checkpoints/4: damaged: params/" in said and not (tmp_path / "model").exists()


def test_checksums_of_a_later_version_are_named(whole, tmp_path):
    shutil.copytree(whole / CHECKPOINTS / "4", tmp_path / "4")
    path = tmp_path / "4" / checksums.NAME
    files.write_json(path, json.loads(path.read_text()) | {"format": 2})
    with pytest.raises(UserError, match="written by a newer dwrl_jax"):
        checksums.damage(tmp_path / "4")


def test_half_written_files_of_a_killed_process_are_swept_away(tmp_path):
    (tmp_path / "base" / ".model.17.partial").mkdir(parents=True)
    (tmp_path / ".results.json.17.partial").write_text("{")
    (tmp_path / "results.json").write_text("{}")
    files.sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["base", "results.json"]
