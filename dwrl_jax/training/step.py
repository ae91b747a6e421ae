"""A training step: for every phase of the objective a gradient over micro-batches, then an optimizer update."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from dwrl_jax.core.types import PreferenceBatch, ThoughtBatch, TrainState
from dwrl_jax.generation.keys import DROPOUT, sampling_key
from dwrl_jax.generation.packing import Packing
from dwrl_jax.judge.judge import Judge, logps
from dwrl_jax.models.lora import variables
from dwrl_jax.models.settings import LoraSettings


def make_train_step(
    judge: Judge,
    optimizer: optax.GradientTransformationExtraArgs,
    phases: dict[str, Callable],
    micro_batches: int,
    out_shardings=None,
    adapters: LoraSettings | None = None,
    seed: int = 0,
):
    """A jitted (state, batch, thoughts, packing, start) -> (state, metrics). The state's buffers are donated.

    With `adapters` the state has what is trained alone, and `start` has the frozen weights; else `start` is not needed.

    Micro-batches divide the pairs, and their gradients sum to that of the whole batch. Metrics are means over valid
    pairs; names that end in `_max` are maxima. Loss and gradient norm have the name of the phase behind theirs.

    A phase whose gradient norm, loss or other metric is not finite is skipped: parameters and moments stay as they were
    before it, and only its learning rate goes on. metrics["skipped"] has for each phase whether it was skipped, and the
    pairs [B] with a loss or metric that is not finite.
    """

    def step(
        state: TrainState, batch: PreferenceBatch, thoughts: ThoughtBatch, packing: Packing | None = None, start=None
    ):
        params, opt_state, metrics, skipped = state.params, state.opt_state, {}, {}
        for phase, (name, loss_fn) in enumerate(phases.items()):
            key = jax.random.fold_in(sampling_key(seed, DROPOUT, state.step), phase) if adapters else None
            model = functools.partial(variables, adapters, start)
            grads, measured = gradient(judge, loss_fn, params, batch, thoughts, micro_batches, packing, model, key)
            broken, norm = measured.pop("broken"), optax.global_norm(grads)
            finite = functools.reduce(jnp.logical_and, map(jnp.isfinite, (norm, *measured.values())))
            update = functools.partial(optimizer.update, phase=phase)
            params, opt_state = _if_finite(finite, update, grads, opt_state, params)
            skipped[name] = ~finite, broken
            metrics |= measured | {f"loss_{name}": measured["loss"], f"grad_norm_{name}": norm}
        del metrics["loss"]
        return TrainState(state.step + 1, params, opt_state), metrics | {"skipped": skipped}

    return jax.jit(step, donate_argnums=0, out_shardings=out_shardings)


def _if_finite(finite: Array, update: Callable, grads, opt_state, params) -> tuple:
    """Parameters and optimizer state after the update, or as they were where not `finite`.

    A schedule counts on, so that later steps have the rates of their step. This is a branch, and not a choice between
    old and new values, because these would need room for both.
    """

    def take(grads, opt_state, params):
        updates, after = update(grads, opt_state, params)
        return optax.apply_updates(params, updates), after

    def skip(grads, opt_state, params):
        _, after = update(grads, opt_state, params)  # all but the counts is left out by the compiler
        return params, jax.tree.map(choose, after, opt_state, is_leaf=counts)

    def counts(part):
        return isinstance(part, optax.ScaleByScheduleState)

    def choose(new, old):
        return new if counts(new) else old

    return jax.lax.cond(finite, take, skip, grads, opt_state, params)


def gradient(
    judge,
    loss_fn,
    params,
    batch: PreferenceBatch,
    thoughts: ThoughtBatch,
    micro_batches: int = 1,
    packing: Packing | None = None,
    model: Callable = lambda params, key: params,
    key: Array | None = None,
):
    """Gradient of the mean loss over valid pairs, and the metrics, summed over micro-batches in float32.

    `model(params, key)` gives the variables of a pass; each micro-batch has a key of its own. The metric "broken" [B]
    is true for valid pairs with a loss or metric that is not finite.
    """
    total = jnp.maximum(batch.valid.sum(), 1)
    judge = _balanced(judge, micro_batches)

    def micro_loss(params, micro):
        pairs, group, packed, key = micro
        asked = {} if pairs.margin is None else {"margin": pairs.margin}
        losses, metrics = loss_fn(logps(judge, model(params, key), pairs, group, packed), group, **asked)
        broken = pairs.valid & ~functools.reduce(jnp.logical_and, map(jnp.isfinite, (losses, *metrics.values())))
        metrics = {name: _reduce(name, value, pairs.valid, total) for name, value in metrics.items()}
        loss = jnp.where(pairs.valid, losses, 0.0).sum() / total
        return loss, metrics | {"loss": loss, "broken": broken}

    take_gradient = jax.grad(micro_loss, has_aux=True)
    if micro_batches == 1:
        return take_gradient(params, (batch, thoughts, packing, key))
    split = jax.tree.map(lambda x: x.reshape(micro_batches, -1, *x.shape[1:]), (batch, thoughts, packing))
    keys = None if key is None else jax.random.split(key, micro_batches)

    def add(grads, micro):
        more, metrics = take_gradient(params, micro)
        return jax.tree.map(lambda g, m: g + m.astype(g.dtype), grads, more), metrics

    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
    grads, metrics = jax.lax.scan(add, zeros, (*split, keys))
    grads = jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params)
    broken = metrics.pop("broken").reshape(-1)
    return grads, {k: v.max(0) if k.endswith("_max") else v.sum(0) for k, v in metrics.items()} | {"broken": broken}


def _reduce(name: str, values: Array, valid: Array, total: Array):
    if name.endswith("_max"):
        return jnp.where(valid, values, -jnp.inf).max()
    return jnp.where(valid, values, 0.0).sum() / total


def _balanced(judge, micro_batches: int):
    """The judge whose load-balance loss counts once in the sum over micro-batches."""
    shape = judge.model.config
    if not shape.balance:
        return judge
    model = judge.model.clone(config=dataclasses.replace(shape, balance=shape.balance / micro_batches))
    return dataclasses.replace(judge, model=model)
