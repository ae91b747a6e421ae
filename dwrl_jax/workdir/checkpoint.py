"""Orbax checkpoints: the last ones and the best are kept, each written whole or not at all.

A checkpoint is a composite of `params` and `rest` (step, optimizer). Sampling keys and the data position are
functions of the step, so this is all that a resumed run needs. Each carries a format version and the checksums of its
files. They are made from what the disk gives back, before the checkpoint gets its name.
"""

import os
import shutil
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from dwrl_jax.core import checksums, faults, hosts
from dwrl_jax.core.errors import UserError
from dwrl_jax.core.names import BEST, CHECKPOINTS, UNREADABLE
from dwrl_jax.core.terminal import say
from dwrl_jax.core.types import TrainState
from dwrl_jax.models import orbax_files

WRITTEN_LATE = (orbax_files.COMMITTED, "commit_success.txt")  # Orbax writes them again behind the checksums


def open_manager(workdir: Path, keep: int = 2) -> ocp.CheckpointManager:
    """The checkpoints of a run, in workdir/checkpoints. The last `keep` and the best are kept."""
    folder = (workdir / CHECKPOINTS).absolute()
    policy = policies.AnyPreservationPolicy(
        [
            policies.LatestN(keep),
            policies.BestN(get_metric_fn=lambda m: m[BEST], n=1, keep_checkpoints_without_metrics=False),
        ]
    )
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policy,
        best_fn=lambda metrics: metrics[BEST],
        best_mode="max",
        async_options=ocp.options.AsyncOptions(post_finalization_callback=lambda: _prove(folder)),
    )
    return ocp.CheckpointManager(folder, options=options)


def save(manager: ocp.CheckpointManager, state: TrainState, metrics: dict | None) -> None:
    """Save at the state's step. `metrics` are those of an evaluation at this step, None without one."""
    step = int(state.step)
    if manager.latest_step() == step:
        return
    rest = {"step": state.step, "opt_state": state.opt_state}
    args = ocp.args.Composite(params=ocp.args.StandardSave(state.params), rest=ocp.args.StandardSave(rest))
    manager.save(step, args=args, metrics=metrics, force=True)


def set_aside(workdir: Path) -> None:
    """Move checkpoints that are not what was written out of the way, from the last one back to the first whole one.

    One line names each and says why. The manager must be opened after this. All processes must call it.
    """
    hosts.attempt(_set_aside, workdir)


def restore(manager: ocp.CheckpointManager, like: TrainState) -> TrainState:
    """The last state, which must exist. `like` gives shapes, dtypes and shardings, and needs no arrays."""
    rest = {"step": like.step, "opt_state": like.opt_state}
    args = ocp.args.Composite(params=ocp.args.StandardRestore(like.params), rest=ocp.args.StandardRestore(rest))
    restored = manager.restore(manager.latest_step(), args=args)
    return TrainState(restored.rest["step"], restored.params, restored.rest["opt_state"])


def restore_params(manager: ocp.CheckpointManager, which: str, like):
    """Parameters of the "last" or "best" checkpoint, or of a step; `like` as in `restore`."""
    steps = list(manager.all_steps())
    step = {"last": manager.latest_step(), "best": manager.best_step()}.get(which)
    if step is None and which.isdigit() and int(which) in steps:
        step = int(which)
    if step is None:
        raise UserError(f"checkpoint {which!r} is not in {manager.directory}: steps there are {steps or 'none'}")
    orbax_files.check(Path(manager.directory) / str(step))
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    args = ocp.args.Composite(params=ocp.args.StandardRestore(abstract))
    return manager.restore(step, args=args).params


def _prove(folder: Path) -> None:
    """Write the checksums of the checkpoint whose files are complete, but whose folder has not got its name yet."""
    if hosts.first():
        faults.point("checkpoint")
        for unnamed in folder.glob("[0-9]*.orbax-checkpoint-tmp*"):
            checksums.write(unnamed, leave_out=WRITTEN_LATE)
        faults.point("checksums")


def _set_aside(workdir: Path) -> None:
    folder = workdir / CHECKPOINTS
    for unnamed in folder.glob("[0-9]*.orbax-checkpoint-tmp*"):
        shutil.rmtree(unnamed)  # of a process that was killed while it wrote
    saved = sorted((int(path.name) for path in folder.glob("[0-9]*") if path.name.isdigit()), reverse=True)
    for step in saved:
        reason = orbax_files.damage(folder / str(step))
        if reason is None:
            return
        place = workdir / UNREADABLE / str(step)
        place.parent.mkdir(exist_ok=True)
        shutil.rmtree(place, ignore_errors=True)
        os.replace(folder / str(step), place)
        say(f"warning: checkpoint {step} is skipped: {reason}; it is now in {place}")
