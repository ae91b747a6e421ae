"""A full or read-only disk gives one line and exit code 2; with room again the run ends as an undisturbed one does."""

import shutil
import subprocess

import pytest

from dwrl_jax.core import errors
from tests.runs import TINY, assert_same_run, run_command


@pytest.fixture
def disk(tmp_path):
    """A small file system of its own, and a function that mounts it anew with other options."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", place], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield place, lambda options: subprocess.run(["mount", "-o", f"remount,{options}", place], check=True)
    subprocess.run(["umount", "-l", place], check=True)


def sizes(folder):
    """Bytes in a finished run's files, in the order in which they were written."""
    paths = sorted((p for p in folder.rglob("*") if p.is_file()), key=lambda path: path.stat().st_mtime_ns)
    return [path.stat().st_size for path in paths]


@pytest.mark.parametrize("share", [*(pytest.param(share, marks=pytest.mark.slow) for share in (0.02, 0.3, 0.9)), 0.6])
def test_a_full_disk_is_one_line_and_the_run_goes_on_with_room(share, base, four_steps, disk, capsys):
    place, remount = disk
    arguments = [*TINY, f"--config.model.path={base}", f"--workdir={place / 'run'}"]
    room = int(share * sum(sizes(four_steps[0]))) // 1024
    remount(f"size={max(room, 8)}k")
    assert run_command("train", *arguments) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and "No space left on device" in said[0] and "the same command goes on" in said[0]
    remount("size=64m")
    assert run_command("train", *arguments) == 0
    assert_same_run(place / "run", four_steps[0])


def test_a_read_only_disk_is_one_line(base, four_steps, disk, capsys):
    place, remount = disk
    shutil.copytree(four_steps[0], place / "run")
    remount("ro")
    assert run_command("train", *TINY, f"--config.model.path={base}", f"--workdir={place / 'run'}") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "run/lock: Read-only file system: " in said


def test_other_errors_stay_what_they_are():
    assert errors.disk_refusal(ValueError("no")) is None and errors.disk_refusal(FileNotFoundError(2, "gone")) is None
    assert errors.disk_refusal(ValueError("write: No space left on device [x]")) == "No space left on device"
