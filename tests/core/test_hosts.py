"""Invariance: the same run in one process, in two and in four, killed and asked to stop between them."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from dwrl_jax.core import hosts
from dwrl_jax.core.errors import UserError
from tests.small import REPO

STEPS = 40
SETTINGS = {
    "base.optim.steps": 4,
    "base.data.batch_size": 8,
    "data.batch_size": 4,
    "optim.steps": STEPS,
    "optim.learning_rate": 1e-3,
    "checkpoint.every": 4,
    "sampler.group_size": 4,
    "eval.every": 0,
    "eval.pairs": 16,
    "eval.batch_size": 8,
    "eval.votes": "(1,4)",
    "log.thoughts_every": 20,
}


def arguments(workdir):
    settings = [f"--config.{key}={value}" for key, value in SETTINGS.items()]
    return [f"--config={REPO}/configs/tiny.py:smoke", f"--workdir={workdir}", *settings]


def launch(processes, workdir):
    """local.sh with two devices each, in a session of its own so that nothing is left behind."""
    command = ["bash", REPO / "launch/local.sh", f"--processes={processes}", "--devices=2", "--grace=60", "--"]
    env = os.environ | {"PYTHON": sys.executable}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*command, *arguments(workdir)], env=env, cwd=REPO, **pipes)


def signal_one(launched, workdir, at_step, number):
    """Send a signal to one process, not the first, once the run is that far; the exit code and all output."""
    metrics = workdir / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while not (metrics.exists() and len(metrics.read_text().splitlines()) >= at_step):
        assert launched.poll() is None, launched.communicate()[0][-3000:]
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)
    children = subprocess.run(["pgrep", "-P", str(launched.pid)], capture_output=True, text=True, check=True)
    os.kill(int(children.stdout.split()[1]), number)
    return finish(launched)


def finish(launched):
    try:
        output = launched.communicate(timeout=240)[0]
    finally:
        launched.terminate()
    return launched.returncode, output


def read(workdir, name):
    return [json.loads(line) for line in (workdir / name).read_text().splitlines()]


def assert_same_run(found, expected):
    """Curves to rounding, thoughts to the letter."""
    rows = [read(workdir, "metrics.jsonl") for workdir in (found, expected)]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]] == list(range(1, STEPS + 1))
    for one, other in zip(*rows):
        assert one.keys() == other.keys()
        for key in one.keys() - {"time/step_seconds"}:
            if "per_second" not in key and "logp_gap" not in key:
                assert one[key] == pytest.approx(other[key], rel=1e-3, abs=1e-5), (one["step"], key)
    thoughts = [[row["thought"] for row in read(workdir, "thoughts.jsonl")] for workdir in (found, expected)]
    assert thoughts[0] == thoughts[1]
    scores = [[row["log_scores"] for row in read(workdir, "eval/trained.jsonl")] for workdir in (found, expected)]
    np.testing.assert_allclose(*scores, atol=1e-3)


@pytest.mark.slow
def test_processes_that_are_lost_or_stopped_change_nothing(tmp_path):
    """Two processes until one is killed, four until one is asked to stop, two to the end; and one alone."""
    workdir = tmp_path / "several"
    code, output = signal_one(launch(2, workdir), workdir, 6, signal.SIGKILL)
    assert code == 128 + signal.SIGKILL, output
    assert "Traceback" not in output
    # the second where the first process waited for the other outside of a program: then JAX itself ends it
    assert "error: process 0 of 2 has lost another one" in output or "another task died" in output
    assert "process 1 of 2 ended with exit code 137" in output

    code, output = signal_one(launch(4, workdir), workdir, 12, signal.SIGTERM)
    assert code == 128 + signal.SIGTERM
    assert "the same command goes on from there" in output and "Traceback" not in output
    stopped = read(workdir, "metrics.jsonl")[-1]["step"]
    assert 12 <= stopped < STEPS and (workdir / "checkpoints" / str(stopped)).exists()

    code, output = finish(launch(2, workdir))
    assert code == 0, output
    assert output.count("held-out pairs") == 1, "one process speaks"

    alone = tmp_path / "alone"
    command = [sys.executable, "-m", "dwrl_jax.train", *arguments(alone)]
    subprocess.run(command, cwd=REPO, check=True, capture_output=True)
    assert_same_run(workdir, alone)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"JAX_NUM_PROCESSES": "2"}, "JAX_NUM_PROCESSES is set, JAX_COORDINATOR_ADDRESS is not"),
        ({"JAX_COORDINATOR_ADDRESS": "x:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"}, "JAX_PROCESS_ID=2"),
        ({"JAX_COORDINATOR_ADDRESS": "x:1", "JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "0"}, "ES=two"),
    ],
)
def test_half_a_setting_is_refused(monkeypatch, given, message):
    for name in (hosts.COORDINATOR, hosts.COUNT, hosts.NUMBER):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        hosts.start()
