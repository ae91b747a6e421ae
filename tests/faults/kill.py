"""A training process is killed again and again, and its run still ends as one that nothing disturbs.

python -m tests.faults.kill --kills=200 --seed=7              at random moments, and at every named point
python -m tests.faults.kill --kills=50 --processes=2          one of two processes

The whole run is killed: its random start, its base model, the export of that, and the run itself. Processes are forked
from one that has imported everything and has started nothing, so that a start costs little. Nine kills in ten are
SIGKILL, the others SIGTERM, once or twice. After each the same command is given again; after at most `--chain` kills it
is left alone, and its files are held against those of the undisturbed run: parameters, thoughts, held-out scores and
metrics bit for bit.
"""

import argparse
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from concurrent import futures
from multiprocessing import get_context
from pathlib import Path

CACHE = Path(tempfile.gettempdir()) / "dwrl_jax_kill_cache"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")

from dwrl_jax import train  # noqa: E402, JAX reads the variables above when it is imported
from dwrl_jax.core import faults, hosts  # noqa: E402
from tests.runs import assert_same_run, tiny  # noqa: E402

POINTS = {  # and the number of times that a run of one process comes there
    "architecture": 2,
    "base": 1,
    "checkpoint": 7,
    "evaluation": 4,
    "export": 2,
    "metrics": 7,
    "checksums": 7,
    "results": 1,
    "saving": 7,
    "thoughts": 2,
    "updated": 7,
}
FLAGS = [*tiny(), "--config.checkpoint.every=1", "--config.base.checkpoint.every=1", "--config.base.data.batch_size=4"]
PATIENCE = 300.0  # seconds until a process that does not end is a failure


def start(workdir: Path, flags: list[str], env: dict[str, str]) -> int:
    """The id of a new process that trains. What it prints goes to the end of a file beside its workdir."""
    process = os.fork()
    if process:
        return process
    try:
        log = os.open(workdir.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.update(env)
        faults.arm()
        train.main([*flags, f"--workdir={workdir}"])
        code = 0
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        code = 70
    sys.stdout.flush()
    os._exit(code)


def end_of(process: int, patience: float) -> int | None:
    """The exit code of a process, minus the signal that ended it; None if it goes on after `patience` seconds."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    return None


def together(count: int) -> list[dict[str, str]]:
    """The environments of `count` processes that find each other."""
    if count == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    every = {hosts.COORDINATOR: address, hosts.COUNT: str(count)}
    return [every | {hosts.NUMBER: str(number)} for number in range(count)]


def disturbed(workdir: Path, flags: list[str], count: int, env: dict[str, str], after: float, signals: tuple) -> bool:
    """Start the run and send `signals` to one of its processes `after` seconds later. Whether it ended by itself."""
    envs = together(count)
    struck = random.randrange(count)
    processes = [start(workdir, flags, each | (env if number == struck else {})) for number, each in enumerate(envs)]
    code = end_of(processes[struck], after)
    if code is None:
        for number in signals:
            os.kill(processes[struck], number)
            time.sleep(0.01)
        code = end_of(processes[struck], PATIENCE)
    rest = [each for each in processes if each != processes[struck]]
    for other in rest:  # a launcher does the same
        if end_of(other, PATIENCE if code == 0 else 2.0) is None:
            os.kill(other, signal.SIGKILL)
            end_of(other, PATIENCE)
    assert code in (0, 143, -signal.SIGKILL, -signal.SIGTERM), f"{workdir}: exit code {code}, see the log beside it"
    return code == 0


def held_against(workdir: Path, expected: Path) -> None:
    """Compare two finished runs in a process that may start JAX. AssertionError if they differ."""
    process = os.fork()
    if process:
        assert end_of(process, PATIENCE) == 0, f"{workdir} ended in another way than {expected}"
        return
    try:
        assert_same_run(workdir, expected)
        model = Path("base") / "model" / "model.safetensors"
        if (expected / model).exists():
            assert (workdir / model).read_bytes() == (expected / model).read_bytes(), "other base models"
        found, wanted = (json.loads((folder / "results.json").read_text()) for folder in (workdir, expected))
        assert found | {"seconds": 0} == wanted | {"seconds": 0}, "other results"
        log = workdir.with_suffix(".log").read_text()
        assert "Traceback" not in log and "is skipped" not in log, "a state could not be read"
        left = [path for path in workdir.rglob("*") if "partial" in path.name or "tmp" in path.name]
        assert not left, f"left behind: {left}"
    except BaseException as error:
        print(f"{workdir}: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def chain(number: int, given: argparse.Namespace, expected: Path, length: float, points: list[str]) -> tuple:
    """Run number `number`: killed at most `given.chain` times, then left alone and held against `expected`.

    The kills by kind, and those of `points` that the run had passed before their turn came. `length` is the time in
    seconds of an undisturbed run; kills come at `points` first, the last of them first of all, then at random moments
    of half that time, so that a run meets several.
    """
    random.seed(f"{given.seed} {number}")
    workdir, finished, kills = expected.parent / f"run{number}", False, Counter()
    for _ in range(given.chain):
        env, after, signals = {}, random.uniform(0, length / 2), (signal.SIGKILL,)
        if points:
            point = points[-1]
            env = {"DWRL_JAX_FAULT": f"{point}:{random.randint(1, min(POINTS[point], 4))}"}
            after = PATIENCE
        elif random.random() < 0.1:
            signals = (signal.SIGTERM,) * random.choice((1, 2))
        finished = disturbed(workdir, given.flags, given.processes, env, after, signals)
        if finished:
            break
        points = points[:-1]
        kills["at a named point" if env else f"{len(signals)} x {signal.Signals(signals[0]).name}"] += 1
    if not finished:
        assert disturbed(workdir, given.flags, given.processes, {}, PATIENCE, ()), workdir
    held_against(workdir, expected)
    shutil.rmtree(workdir)
    return kills, points


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="at least so many in all")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--jobs", type=int, help="runs side by side: 2, or 1 of several processes")
    parser.add_argument("--chain", type=int, default=8, help="kills of one run before it is left alone")
    parser.add_argument("--points", default=",".join(POINTS), help="named points to be killed at, first of all")
    parser.add_argument("--model", help="a base model that is there already")
    given = parser.parse_args(arguments)
    given.jobs = given.jobs or (2 if given.processes == 1 else 1)
    given.flags = [*FLAGS, *([f"--config.model.path={given.model}"] if given.model else [])]
    folder = Path(tempfile.mkdtemp(prefix="kill_"))
    expected, began = folder / "undisturbed", time.monotonic()
    points, length = [point for point in given.points.split(",") if point], 0.0
    for again in ("undisturbed", "warm")[: 1 + (given.kills > len(points))]:
        at = time.monotonic()
        assert disturbed(folder / again, given.flags, given.processes, {}, PATIENCE, ()), folder
        length = time.monotonic() - at  # that of the second start, which finds its programs compiled
        held_against(folder / again, expected)
    kills, started, pending = Counter(), 0, set()
    given.chain = min(given.chain, given.kills)
    with futures.ProcessPoolExecutor(given.jobs, get_context("fork")) as pool:
        while kills.total() < given.kills or points or pending:
            while (kills.total() < given.kills or points) and len(pending) < given.jobs:
                mine, points = points[-given.chain :], points[: -given.chain]
                started += 1
                pending.add(pool.submit(chain, started, given, expected, length, mine))
            ended, pending = futures.wait(pending, return_when=futures.FIRST_COMPLETED)
            for each in ended:
                made, missed = each.result()
                kills += made
                points += missed
            runs, seconds = started - len(pending), time.monotonic() - began
            print(f"{kills.total()} of {given.kills} kills, {runs} runs, {seconds:.0f} s", flush=True)
    print(f"all {started} runs ended as the undisturbed run did: {dict(kills)}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
