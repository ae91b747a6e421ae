"""One program on several machines: how its processes find each other, and what they agree on.

Every process runs the same program on the same data; JAX moves the arrays. The first process alone writes files
and speaks; all must see the same workdir.
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

COORDINATOR, COUNT, NUMBER = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
PATIENCE = {"heartbeat_timeout_seconds": 60, "shutdown_timeout_seconds": 60}  # with a process that is lost
LOST = ("Gloo", "NCCL", "peer", "UNAVAILABLE", "DEADLINE_EXCEEDED", "Barrier", "coordination")  # in JAX's messages
_asked = itertools.count()  # how often `stop` was called, the same on all


def start() -> None:
    """Join the other processes, if there are any; to be called before anything else touches a device.

    They are found by the three environment variables above; else by what JAX knows of the machines, under SLURM,
    on a TPU slice that names its hosts, and wherever DWRL_JAX_DISTRIBUTED=auto is set. Only the first process keeps
    its standard output.
    """
    given = [name for name in (COORDINATOR, COUNT, NUMBER) if os.environ.get(name)]
    if given:
        missing = [name for name in (COORDINATOR, COUNT, NUMBER) if name not in given]
        if missing:
            raise UserError(f"{given[0]} is set, {missing[0]} is not: a process needs all three to find the others")
        address, count, number = (os.environ[name] for name in (COORDINATOR, COUNT, NUMBER))
        if not count.isdigit() or not number.isdigit() or not int(number) < int(count):
            raise UserError(f"{NUMBER}={number}, {COUNT}={count}: give a number below the count of processes")
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
    """Where another process is lost, end this one too, at once, with one line that says so and exit code 1."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        if jax.process_count() == 1 or not any(word in reason for word in LOST):
            raise
        here = f"process {jax.process_index()} of {jax.process_count()}"
        print(f"error: {here} has lost another one ({reason}); the same command goes on", file=sys.stderr, flush=True)
        os._exit(1)  # a usual exit would wait for the lost one


def first() -> bool:
    """Whether this is the process that writes and speaks."""
    return jax.process_index() == 0


def by_first(write):
    """Let only the first process run a function that writes; it returns None on the others."""

    @functools.wraps(write)
    def guarded(*args, **kwargs):
        return write(*args, **kwargs) if first() else None

    return guarded


def of_first(number: int) -> int:
    """The first process's answer on all: a file that it has just written may not be visible everywhere yet."""
    if jax.process_count() == 1:
        return number
    return type(number)(multihost_utils.broadcast_one_to_all(np.array(number)))


def stop(asked: list[int]) -> int:
    """The signal for which all processes stop here together, 0 for none; to be called by all at every step.

    `asked` are the signals that this process got. JAX's notice of a preemption, which its service takes from
    SIGTERM on any process, counts as SIGTERM.
    """
    mine = asked[0] if asked else 0
    if jax.process_count() == 1:
        return mine
    if multihost_utils.reached_preemption_sync_point(next(_asked)):
        return signal.SIGTERM
    return int(multihost_utils.process_allgather(np.array(mine)).max())


def stop_signals() -> list[int]:
    """Signals that a run takes itself; on several processes SIGTERM is left to JAX's service."""
    return [signal.SIGINT] if jax.process_count() > 1 else [signal.SIGTERM, signal.SIGINT]


def attempt(write, *args, **kwargs) -> None:
    """Let the first process call a function that writes; all come here, and learn whether it failed.

    If it did, its error goes on there and a `UserError` on the others: none is left waiting for it.
    """
    failure = None
    if first():
        try:
            write(*args, **kwargs)
        except BaseException as error:  # a Ctrl-C too must not leave the others alone
            failure = error
    succeeded = of_first(failure is None)
    if failure is not None:
        raise failure
    if not succeeded:
        raise UserError("the first process could not write, and says why; this one stops with it")


def share(work, items: list) -> list:
    """`work(items)`, a list of one result for each item, by all processes: each does its share, and all get all.

    A `UserError` of one is raised on all, of several that of the first process.
    """
    count = jax.process_count()
    try:
        mine = work(items[jax.process_index() :: count])
    except UserError as error:
        mine = error
    found = [mine] if count == 1 else _exchange(mine)
    for one in found:
        if isinstance(one, UserError):
            raise one
    return [found[index % count][index // count] for index in range(len(items))]


def _exchange(mine) -> list:
    """What each process has brought, on all."""
    packed = np.frombuffer(pickle.dumps(mine), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(packed.size))
    gathered = multihost_utils.process_allgather(np.pad(packed, (0, sizes.max() - packed.size)))
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(gathered, sizes)]
