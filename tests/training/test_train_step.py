"""The step: schedule, weight decay, phases, and log-probabilities that never meet the whole vocabulary at once."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dwrl_jax.core.types import TrainState
from dwrl_jax.generation.token_logps import token_logps
from dwrl_jax.objectives import dwrl
from dwrl_jax.settings.commandline import parse
from dwrl_jax.training import loop
from dwrl_jax.training import step as step_module
from dwrl_jax.training.optimizer import decayed, learning_rate, make_optimizer
from dwrl_jax.training.settings import OptimSettings
from dwrl_jax.training.step import gradient, make_train_step
from tests.judge.test_judge import draw
from tests.runs import TINY, recipe_of
from tests.small import assert_trees_close, given_thoughts, make_batch, make_judge

OPTIONS = OptimSettings(steps=24, learning_rate=1e-3, warmup=4)


@pytest.mark.parametrize(
    ("schedule", "middle", "end"), [("cosine", 5.5e-4, 1e-4), ("linear", 5.5e-4, 1e-4), ("constant", 1e-3, 1e-3)]
)
def test_schedule(schedule, middle, end):
    rate = learning_rate(dataclasses.replace(OPTIONS, schedule=schedule))
    found = [float(rate(step)) for step in (0, 1, 3, 4, 14, 24)]
    np.testing.assert_allclose(found, [2.5e-4, 5e-4, 1e-3, 1e-3, middle, end], rtol=1e-5)


def test_phases_of_a_step_share_its_learning_rate():
    """With plain numbers: two updates a step, so update 2 s and 2 s + 1 have the rate of step s."""
    optimizer = make_optimizer(OPTIONS, phases=2)
    params = {"kernel": jnp.ones(1)}
    state, sizes = optimizer.init(params), []
    for _ in range(6):
        updates, state = optimizer.update({"kernel": jnp.full(1, 0.1)}, state, params)
        sizes.append(-float(updates["kernel"][0]))
    np.testing.assert_allclose(sizes, [2.5e-4, 2.5e-4, 5e-4, 5e-4, 7.5e-4, 7.5e-4], rtol=1e-4)


def test_a_clip_norm_of_zero_is_off():
    """The first update of Adam has the size of the rate, and a zero gradient would move nothing."""
    grads, params = {"kernel": jnp.full(1, 5.0)}, {"kernel": jnp.ones(1)}
    sizes = []
    for clip_norm in (0.0, 1e6):
        optimizer = make_optimizer(dataclasses.replace(OPTIONS, clip_norm=clip_norm), phases=1)
        updates, _ = optimizer.update(grads, optimizer.init(params), params)
        sizes.append(float(updates["kernel"][0]))
    assert sizes[0] == sizes[1] and sizes[0] < 0


def test_separate_moments_are_those_of_two_optimizers(monkeypatch):
    """Each phase of a step sees its own gradients alone, at the same rate: as if the other one were not there."""
    measured = {"loss": 0.0, "broken": np.zeros(1, bool)}
    monkeypatch.setattr(step_module, "gradient", lambda judge, size, *rest: ({"kernel": size}, dict(measured)))
    phases = {"score": jnp.full(1, 0.1), "thought": jnp.full(1, -0.7)}
    separate = make_optimizer(dataclasses.replace(OPTIONS, moments="separate"), phases=2)
    alone = make_optimizer(OPTIONS, phases=1)
    params, expected = {"kernel": jnp.ones(1)}, {"kernel": jnp.ones(1)}
    states = {name: alone.init(params) for name in phases}
    state = TrainState(jnp.int32(0), params, separate.init(params))
    train_step = make_train_step(None, separate, phases, 1)
    for _ in range(3):
        state, _ = train_step(state, None, None)
        for name, size in phases.items():
            updates, states[name] = alone.update({"kernel": size}, states[name], expected)
            expected = optax.apply_updates(expected, updates)
        np.testing.assert_allclose(state.params["kernel"], expected["kernel"], rtol=1e-6)


@pytest.mark.parametrize("moments", ["shared", "separate"])
def test_the_first_of_several_phases_may_be_slower(moments):
    """It moves a quarter as far; the second phase, the moments and a phase alone are as ever."""
    params, grads = {"kernel": jnp.ones(1)}, {"kernel": jnp.full(1, 0.1)}

    def sizes(rate, phases):
        options = dataclasses.replace(OPTIONS, moments=moments)
        optimizer, found = make_optimizer(options, phases, rate), []
        state = optimizer.init(params)
        for update in range(6):
            updates, state = optimizer.update(grads, state, params, phase=update % phases)
            found.append(float(updates["kernel"][0]))
        return np.array(found)

    np.testing.assert_allclose(sizes(0.25, 2), sizes(1.0, 2) * [0.25, 1, 0.25, 1, 0.25, 1], rtol=1e-6)
    np.testing.assert_array_equal(sizes(0.25, 1), sizes(1.0, 1))


@pytest.mark.parametrize(("flag", "share"), [("objective.score_rate=0.25", 0.25), ("objective.updates=joint", 1.0)])
def test_the_rate_of_the_scores_is_that_of_the_config(flag, share):
    """The first update is a plain number: Adam's has the size of the rate."""
    config, _ = parse([*TINY, "--workdir=x", "--config.optim.warmup=0", f"--config.{flag}"])
    optimizer = recipe_of(config).optimizer
    params = {"kernel": jnp.ones(1)}
    updates, _ = optimizer.update({"kernel": jnp.full(1, 0.1)}, optimizer.init(params), params, phase=0)
    np.testing.assert_allclose(-updates["kernel"], share * 1.5e-4, rtol=1e-4)


def test_weight_decay_spares_norms_and_biases():
    _, params = make_judge()
    flat = {"/".join(k.key for k in path): on for path, on in jax.tree_util.tree_leaves_with_path(decayed(params))}
    spared = {name for name, on in flat.items() if not on}
    assert spared == {name for name in flat if name.endswith(("scale", "bias"))} and len(spared) < len(flat)


def test_alternating_step_is_two_updates_in_order():
    """The second phase takes its weights and its gradient at the parameters that the first one left."""
    judge, params = make_judge()
    batch = make_batch(pairs=2)
    thoughts, _, _ = draw(judge, params, batch)
    phases, optimizer = dwrl.phases(dwrl.Hyper()), make_optimizer(OPTIONS, phases=2)
    step = make_train_step(judge, optimizer, phases, 1)
    expected, opt_state = params, optimizer.init(params)
    for loss in (dwrl.score_loss, lambda found, group: dwrl.thought_loss(found, group, dwrl.Hyper())):
        grads, _ = jax.jit(lambda p, f=loss: gradient(judge, f, p, batch, thoughts))(expected)
        updates, opt_state = optimizer.update(grads, opt_state, expected)
        expected = optax.apply_updates(expected, updates)
    copy = jax.tree.map(jnp.copy, params)
    state, metrics = step(TrainState(jnp.int32(3), copy, optimizer.init(params)), batch, thoughts)
    moved = jax.tree.map(lambda a, b: a - b, state.params, params)
    assert_trees_close(moved, jax.tree.map(lambda a, b: a - b, expected, params), 1e-2)
    assert int(state.step) == 4
    assert {"loss_score", "loss_thought", "grad_norm_score", "grad_norm_thought"} <= metrics.keys()
    assert float(metrics["logp_gap_max"]) < 1e-4


def test_chunks_change_nothing_and_bound_the_memory():
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(3, 7, 16)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, 50, (3, 7, 2)))
    table = jnp.asarray(rng.normal(size=(50, 16)), jnp.float32)

    def total(table, chunk):
        logp, entropy = token_logps(hidden, table, targets, temperature=0.7, chunk=chunk)
        return logp.sum(), (logp, entropy)

    (_, (logp, entropy)), grads = jax.value_and_grad(total, has_aux=True)(table, 1000)
    everything = jax.nn.log_softmax(hidden @ table.T / 0.7)
    np.testing.assert_allclose(logp, jnp.take_along_axis(everything, targets, -1), atol=1e-5)
    np.testing.assert_allclose(entropy, -(jnp.exp(everything) * everything).sum(-1), atol=1e-5)
    for chunk in (1, 4, 21):
        (_, found), chunked = jax.value_and_grad(total, has_aux=True)(table, chunk)
        assert_trees_close((found, chunked), ((logp, entropy), grads), 1e-5)

    def temporary_bytes(tokens):
        shapes = (jnp.zeros((tokens, 16)), jnp.zeros((4096, 16)), jnp.zeros((tokens, 1), int))
        scalar = lambda h, t, ids: token_logps(h, t, ids, chunk=64)[0].sum()  # noqa: E731
        return jax.jit(jax.grad(scalar, (0, 1))).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    whole = 4 * 4096 * 4096  # bytes of [tokens, vocabulary]
    assert temporary_bytes(4096) < whole / 4


def test_thoughts_that_stop_by_another_end_token_are_counted_apart():
    """Four thoughts of a valid pair: closed, stopped by each of the two other end tokens, cut off."""
    judge = SimpleNamespace(end=3, stops=(6, 7))
    thought = jnp.asarray([[[[4, 3], [4, 6]], [[7, 0], [4, 4]]], [[[4, 4]] * 2] * 2])
    thoughts = given_thoughts(thought, [[[2, 2], [1, 2]], [[2, 2]] * 2])
    batch = SimpleNamespace(valid=np.array([True, False]))
    found = loop._sampling_metrics(judge, batch, thoughts, 2.0)
    assert (found["train/cut_off"], found["train/other_end"], found["sample/tokens"]) == (0.25, 0.5, 7)
    judge.stops = ()
    found = loop._sampling_metrics(judge, batch, thoughts, 2.0)
    assert found["train/cut_off"] == 0.75 and "train/other_end" not in found
