"""Running a launch script, and recording stand-ins for the programs that it calls."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

REPO = Path(__file__).parents[1]
LAUNCH = REPO / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))

# Each stand-in appends its arguments as one JSON line to $CALLS and answers as its test says.
RECORD = """#!{python}
import json, os, signal, sys, time
from pathlib import Path
name, arguments, calls = Path(sys.argv[0]).name, sys.argv[1:], Path(os.environ["CALLS"])
def record(**more):
    with calls.open("a") as file:
        file.write(json.dumps(dict(name=name, arguments=arguments, **more)) + chr(10))
"""


class StandIns:
    """Executables that are put on PATH, the environment that knows them, and the calls so far."""

    def __init__(self, folder):
        self.folder, self.calls_file = folder / "bin", folder / "calls.jsonl"
        self.env = os.environ | {"PATH": f"{self.folder}:{os.environ['PATH']}", "CALLS": str(self.calls_file)}
        for unwanted in ("JAX_PLATFORMS", "XLA_FLAGS", "PYTHON", "SLURM_JOB_ID"):
            self.env.pop(unwanted, None)

    def add(self, name, body):
        self.folder.mkdir(exist_ok=True)
        path = self.folder / name
        path.write_text(RECORD.format(python=sys.executable) + body)
        path.chmod(0o755)

    def calls(self, name=None):
        rows = self.calls_file.read_text().splitlines() if self.calls_file.exists() else []
        return [row for row in map(json.loads, rows) if name in (None, row["name"])]


def start(script, *arguments, **options):
    """The script as from a terminal, also where these tests run in the background and so ignore Ctrl-C."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    hears = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    return subprocess.Popen(["bash", LAUNCH / script, *arguments], **pipes, **hears, **options)


def finish(process, timeout=30):
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def run(script, *arguments, **options):
    return finish(start(script, *arguments, **options))


def wait_for(condition, timeout=20):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)
