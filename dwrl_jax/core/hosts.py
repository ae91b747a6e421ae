"""The same program on several machines: how its processes find each other, and how they agree.

Every process runs the same program on the same data, and JAX moves the arrays. Only the first process writes files
and prints. All processes must see the same workdir.
"""

import contextlib
import functools
import itertools
import os
import pickle
import signal
import sys
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from dwrl_jax.core.errors import UserError
from dwrl_jax.core.terminal import say

COORDINATOR, COUNT, NUMBER = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
PATIENCE = {"heartbeat_timeout_seconds": 60, "shutdown_timeout_seconds": 60}  # time to wait for a lost process
LOST = ("Gloo", "NCCL", "peer", "UNAVAILABLE", "DEADLINE_EXCEEDED", "Barrier", "coordination")  # in JAX's messages
_asked = itertools.count()  # number of calls of `stop`, equal on all processes


def start() -> None:
    """Join the other processes, if there are any. Call this before anything else touches a device.

    The three environment variables above say where the processes are. Without them JAX finds the processes itself:
    under SLURM, on a TPU slice that names its hosts, and wherever DWRL_JAX_DISTRIBUTED=auto is set. Only the first
    process keeps its standard output. UserError if only part of the three variables is set or a number is wrong.
    """
    given = [name for name in (COORDINATOR, COUNT, NUMBER) if os.environ.get(name)]
    if given:
        missing = [name for name in (COORDINATOR, COUNT, NUMBER) if name not in given]
        if missing:
            raise UserError(f"{given[0]} is set, {missing[0]} is not: a process needs all three to find the others")
        address, count, number = (os.environ[name] for name in (COORDINATOR, COUNT, NUMBER))
        if not count.isdigit() or not number.isdigit() or not int(number) < int(count):
            raise UserError(f"{NUMBER}={number}, {COUNT}={count}: the number must be below the number of processes")
        jax.distributed.initialize(address, int(count), int(number), cluster_detection_method="deactivate", **PATIENCE)
    elif _in_a_cluster():
        jax.distributed.initialize(**PATIENCE)
    if not first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, it stays open


def _in_a_cluster() -> bool:
    return (
        os.environ.get("DWRL_JAX_DISTRIBUTED") == "auto"
        or int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1
        or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
    )


@contextlib.contextmanager
def together() -> Iterator[None]:
    """If another process is lost, print one line and end this process at once with exit code 1."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        if jax.process_count() == 1 or not any(word in reason for word in LOST):
            raise
        here = f"process {jax.process_index()} of {jax.process_count()}"
        say(f"error: {here} has lost another one ({reason}); the same command goes on", sys.stderr)
        os._exit(1)  # a normal exit would wait for the lost process


def first() -> bool:
    """Whether this is the process that writes files and prints."""
    return jax.process_index() == 0


def by_first(write):
    """Make a function that writes run on the first process only. It returns None on the others."""

    @functools.wraps(write)
    def guarded(*args, **kwargs):
        return write(*args, **kwargs) if first() else None

    return guarded


def of_first(number: int) -> int:
    """The first process's `number`, on all processes.

    A file that the first process has just written may not be visible to the others yet, so they must not look for it.
    """
    if jax.process_count() == 1:
        return number
    return type(number)(multihost_utils.broadcast_one_to_all(np.array(number)))


def stop(asked: list[int]) -> int:
    """The signal for which all processes stop at this step, or 0. Every process must call this at every step.

    `asked` lists the signals that this process received. A SIGTERM on any process becomes a preemption notice of
    JAX's service, and this notice counts as SIGTERM.
    """
    mine = asked[0] if asked else 0
    if jax.process_count() == 1:
        return mine
    if multihost_utils.reached_preemption_sync_point(next(_asked)):
        return signal.SIGTERM
    return int(multihost_utils.process_allgather(np.array(mine)).max())


def stop_signals() -> list[int]:
    """The signals that a run handles itself. With several processes JAX's service handles SIGTERM."""
    return [signal.SIGINT] if jax.process_count() > 1 else [signal.SIGTERM, signal.SIGINT]


def attempt(write, *args, **kwargs) -> None:
    """Call a function that writes on the first process, and tell all processes whether it failed.

    All processes must call this. If the function fails, the first process raises its error and the others raise a
    `UserError`, so no process waits forever.
    """
    failure = None
    if first():
        try:
            write(*args, **kwargs)
        except BaseException as error:  # also after Ctrl-C the others must be told
            failure = error
    succeeded = of_first(failure is None)
    if failure is not None:
        raise failure
    if not succeeded:
        raise UserError("the first process could not write and reports the reason; this process stops too")


def share(work, items: list) -> list:
    """`work(items)`, a list with one result for each item. Each process does a share, and all get all results.

    If a process raises a `UserError`, all processes raise it; if several do, all raise that of the lowest process.
    """
    count = jax.process_count()
    try:
        mine = work(items[jax.process_index() :: count])
    except UserError as error:
        mine = error
    results = [mine] if count == 1 else _exchange(mine)
    for result in results:
        if isinstance(result, UserError):
            raise result
    return [results[index % count][index // count] for index in range(len(items))]


def _exchange(mine) -> list:
    """The objects of all processes in their order, on all processes."""
    packed = np.frombuffer(pickle.dumps(mine), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(packed.size))
    gathered = multihost_utils.process_allgather(np.pad(packed, (0, sizes.max() - packed.size)))
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(gathered, sizes)]
