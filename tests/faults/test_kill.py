"""A short form of the harness in kill.py: a few kills, of which some at named points."""

import subprocess
import sys

import pytest

from tests.small import REPO


def harness(points, *arguments):
    """The harness in a process of its own, as it forks; it kills at each of so many named points, whatever comes."""
    command = [sys.executable, "-m", "tests.faults.kill", *arguments]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    assert "ended as the undisturbed run did" in done.stdout and f"'at a named point': {points}" in done.stdout


def test_a_killed_run_ends_as_an_undisturbed_one(base):
    harness(2, "--kills=2", "--chain=2", "--points=thoughts,checksums", f"--model={base}")


@pytest.mark.slow
def test_a_run_that_is_killed_at_every_named_point():
    harness(11, "--kills=24", "--seed=1")


@pytest.mark.slow
def test_two_processes_of_which_one_is_killed():
    harness(2, "--kills=6", "--processes=2", "--points=checkpoint,metrics")
