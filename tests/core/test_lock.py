"""A workdir has one run at a time, and a lock outlives no process."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys

import pytest

from dwrl_jax.core import lock
from dwrl_jax.core.errors import UserError
from tests.small import REPO

HOLD = """
import sys, time
from pathlib import Path
from dwrl_jax.core import lock
with lock.held(Path(sys.argv[1]) / lock.NAME, "go"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_run_is_told_who_is_there_until_that_process_dies(tmp_path):
    command = [sys.executable, "-c", HOLD, tmp_path]
    with subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout.readline() == "held\n"
            told = f"process {other.pid} on {socket.gethostname()} is at work here"
            with pytest.raises(UserError, match=told), lock.held(tmp_path / lock.NAME, "go"):
                pass
        finally:
            other.send_signal(signal.SIGKILL)
    with lock.held(tmp_path / lock.NAME, "go"):
        assert (tmp_path / lock.NAME).read_text().startswith(f"process {os.getpid()} on ")
    with lock.held(tmp_path / lock.NAME, "go"):
        pass


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch, capsys):
    def refuse(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with lock.held(tmp_path / "run" / lock.NAME, "go"):
        pass
    said = capsys.readouterr().out
    assert said.startswith("warning: ") and "no locks on this file system (No locks available)" in said


@pytest.mark.parametrize("below", ["a file", "a file/run"])
def test_a_place_where_no_folder_can_be_is_named(below, tmp_path):
    (tmp_path / "a file").write_text("mine")
    told = f"{tmp_path / below}: no folder can be made here .*; choose another --output"
    with pytest.raises(UserError, match=told), lock.held(tmp_path / below / lock.NAME, "choose another --output"):
        pass
    assert (tmp_path / "a file").read_text() == "mine"
