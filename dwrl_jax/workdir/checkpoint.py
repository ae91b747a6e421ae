"""Orbax checkpoints: the last and the best are kept, each written whole or not at all.

A checkpoint is a composite of `params` and `rest` (step, optimizer). Sampling keys and the data position are
functions of the step, so this is all that a resumed run needs.
"""

from pathlib import Path

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from dwrl_jax.core.errors import UserError
from dwrl_jax.core.names import BEST, CHECKPOINTS
from dwrl_jax.core.types import TrainState


def open_manager(workdir: Path) -> ocp.CheckpointManager:
    """The checkpoints of a run, in workdir/checkpoints."""
    keep = policies.AnyPreservationPolicy(
        [
            policies.LatestN(1),
            policies.BestN(get_metric_fn=lambda m: m[BEST], n=1, keep_checkpoints_without_metrics=False),
        ]
    )
    options = ocp.CheckpointManagerOptions(
        preservation_policy=keep, best_fn=lambda metrics: metrics[BEST], best_mode="max"
    )
    return ocp.CheckpointManager((workdir / CHECKPOINTS).absolute(), options=options)


def save(manager: ocp.CheckpointManager, state: TrainState, metrics: dict | None) -> None:
    """Save at the state's step. `metrics` are those of an evaluation at this step, None without one."""
    step = int(state.step)
    if manager.latest_step() == step:
        return
    rest = {"step": state.step, "opt_state": state.opt_state}
    args = ocp.args.Composite(params=ocp.args.StandardSave(state.params), rest=ocp.args.StandardSave(rest))
    manager.save(step, args=args, metrics=metrics, force=True)


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
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    args = ocp.args.Composite(params=ocp.args.StandardRestore(abstract))
    return manager.restore(step, args=args).params
