"""Exact: the mixed gradient and its closed-form weight, over all groups of an enumerated world."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from dwrl_jax.core.errors import UserError
from dwrl_jax.judge.judge import logps
from dwrl_jax.judge.thoughts import no_thoughts, with_empty_thought
from dwrl_jax.objectives import bt_token, bvpo, dwrl
from dwrl_jax.settings.commandline import parse
from dwrl_jax.training import config as configuration
from tests.objectives.test_objective import exact_nll, toy_logps, toy_params, toy_thoughts
from tests.runs import tiny, trace_update
from tests.small import assert_trees_close, given_thoughts, make_batch, make_judge

EMPTY = 0  # the thought of the enumerated world that stands for the empty one


def all_groups(params, thoughts, size):
    """Every pair of groups [B S G], and the probability of each."""
    pi = np.asarray(jax.nn.softmax(params["policy"], -1), np.float64)
    one = np.array(list(itertools.product(range(thoughts), repeat=size)))
    groups = np.stack([np.repeat(one, len(one), 0), np.tile(one, (len(one), 1))], 1)
    return groups, pi[0][groups[:, 0]].prod(1) * pi[1][groups[:, 1]].prod(1)


def gradients(loss, params, groups):
    """The gradient [P] of a loss for each of the groups [B S G]."""
    flat, restore = ravel_pytree(params)

    def of_one(group):
        def total(x):
            found = toy_logps(restore(x), group[None])
            return loss(found, toy_thoughts(found))[0].sum()

        return jax.grad(total)(flat)

    return jax.jit(jax.vmap(of_one))(jnp.asarray(groups))


def mixed_gradients(params, groups, alphas):
    """The mixed gradient [P] for each weight and each of the groups [B S G]."""
    with_empty = np.pad(groups, ((0, 0), (0, 0), (0, 1)), constant_values=EMPTY)

    def of_one(alpha):
        (loss,) = bvpo.phases(bvpo.Hyper(alpha=alpha, baseline="none")).values()
        return gradients(loss, params, with_empty)

    return np.asarray(jax.jit(jax.vmap(of_one))(jnp.asarray(alphas)), np.float64)


def test_the_gradient_is_the_mixture():
    params = toy_params(3, seed=4)
    groups, _ = all_groups(params, 3, 2)
    thought = gradients(lambda *found: dwrl.joint_loss(*found, dwrl.Hyper(baseline="none")), params, groups)
    nothing = np.full((1, 2, 1), EMPTY)
    empty = gradients(bt_token.phases(bt_token.Hyper())["bt"], params, nothing)
    for alpha, found in zip((0.0, 0.3, 1.0), mixed_gradients(params, groups, (0.0, 0.3, 1.0))):
        np.testing.assert_allclose(found, alpha * thought + (1 - alpha) * empty, atol=1e-6)
    assert np.abs(thought - empty).max() > 0.1


def test_the_closed_form_has_the_least_squared_error():
    """Moments over all groups of two thoughts; the error of the mixed gradient itself, at alpha* and beside it."""
    params = toy_params(3, seed=4)
    groups, weight = all_groups(params, 3, 2)
    true = np.asarray(ravel_pytree(jax.grad(exact_nll)(params))[0], np.float64)
    alphas = np.linspace(0, 1, 101)
    off = mixed_gradients(params, groups, alphas) - true
    off_empty, off_thought = off[0], off[-1]

    def expected(a, b):
        return float(weight @ (a * b).sum(1))

    errors = expected(off_thought, off_thought), expected(off_empty, off_empty), expected(off_thought, off_empty)
    alpha = float(bvpo.optimal_alpha(*errors))
    assert 0.1 < alpha < 0.9
    found = (off**2).sum(-1) @ weight
    assert alphas[np.argmin(found)] == pytest.approx(alpha, abs=0.0051)
    least = (errors[0] * errors[1] - errors[2] ** 2) / (errors[0] + errors[1] - 2 * errors[2])
    assert min(found) == pytest.approx(least, rel=1e-3) and least < 0.9 * min(errors[:2])


def test_closed_form_in_numbers():
    assert float(bvpo.optimal_alpha(3.0, 1.0, 0.0)) == pytest.approx(0.25)
    assert float(bvpo.optimal_alpha(3.0, 2.0, 1.0)) == pytest.approx(1 / 3)
    assert float(bvpo.optimal_alpha(1.0, 4.0, 1.5)) == 1.0  # 2.5 / 2
    assert float(bvpo.optimal_alpha(4.0, 1.0, 1.5)) == 0.0  # -0.5 / 2


def test_estimate_from_repeated_draws():
    """By hand: mean (2, 0), variance 2, |mean - g_e|^2 = 8, of which 2 / 2 is the variance of the mean."""
    found = bvpo.trace_alpha(jnp.asarray([[1.0, 0.0], [3.0, 0.0]]), jnp.asarray([0.0, 2.0]))
    assert float(found) == pytest.approx(7 / 9)
    close = bvpo.trace_alpha(jnp.asarray([[1.0, 0.0], [3.0, 0.0]]), jnp.asarray([2.0, 0.0]))
    assert float(close) == 0.0  # the empty thought has no bias that could be seen: no reason to draw any


def test_the_empty_thought_is_one_more_branch():
    """The branch behind the group is the dialogue without a thought, and those before it are what they were."""
    judge, params = make_judge()
    batch = make_batch(pairs=2)
    thoughts = given_thoughts([[[[6, 7, 3], [8, 3, 0]]] * 2] * 2, [[[3, 2]] * 2] * 2)
    both = with_empty_thought(thoughts, judge.end)

    @jax.jit
    def of(group):
        return logps(judge, params, batch, group)

    found, drawn, nothing = of(both), of(thoughts), of(no_thoughts(batch, judge.end))
    np.testing.assert_allclose(found.answer[..., -1:], nothing.answer, atol=1e-5)
    np.testing.assert_allclose(found.answer[..., :-1], drawn.answer, atol=1e-5)
    hyper = bvpo.Hyper(alpha=0.7)
    loss, metrics = bvpo.mixed_loss(found, both, hyper)
    plain, shown = dwrl.joint_loss(drawn, thoughts, dwrl.Hyper())
    empty, shown_empty = bt_token.bradley_terry_loss(nothing, thoughts, bt_token.Hyper())
    np.testing.assert_allclose(loss, 0.7 * plain + 0.3 * empty, rtol=1e-4)
    assert_trees_close({name: metrics[name] for name in shown}, shown, 1e-5)
    np.testing.assert_allclose(metrics["empty_pair_nll"], shown_empty["pair_nll"], rtol=1e-5)


def test_its_update_sees_one_more_thought():
    """Nine branches of the eight drawn thoughts, in the program that a run compiles."""
    _, batch, thoughts, *_ = trace_update("bvpo,smoke").args_info[0]
    assert thoughts.thought.shape == (*batch.answer.shape, 9, 8)


@pytest.mark.parametrize("alpha", [-0.1, 1.1])
def test_a_weight_that_is_none(alpha):
    config, _ = parse([*tiny("bvpo,smoke"), "--workdir=unused", f"--config.objective.alpha={alpha}"])
    with pytest.raises(UserError, match=f"objective.alpha={alpha}: must be from 0 to 1"):
        configuration.check(config)
