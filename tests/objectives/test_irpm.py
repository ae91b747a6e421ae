"""Exact: the rewards of written scores by their definition, and the expected gradient by enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dwrl_jax import objectives
from dwrl_jax.core.types import Logps, ThoughtBatch, Verdicts
from dwrl_jax.objectives import irpm
from tests.small import assert_trees_close

SCORES, THOUGHTS = 3, 2
TOKENS = SCORES + 1  # the last one is no score


def writings(params, groups):
    """Logps and thoughts of groups [B S G] of writings: one of M one-token thoughts and one of the tokens behind it."""
    sides = jnp.arange(2)[:, None]
    thought, token = groups // TOKENS, groups % TOKENS
    log_pi, log_token = (jax.nn.log_softmax(params[name], -1) for name in ("policy", "token"))
    found = Logps(
        thought=log_pi[sides, thought][..., None],
        answer=log_token[sides, thought, 0],
        answer_mass=jnp.ones(groups.shape),
        entropy=jnp.zeros((*groups.shape, 1)),
        verdict=log_token[sides, thought, token],
    )
    old, old_token = jax.lax.stop_gradient((found.thought, found.verdict))
    ones, place = jnp.ones(groups.shape, jnp.int32), jnp.where(token < SCORES, token, -1)
    verdict = Verdicts(token, old_token, right=place < -1, well_formed=place >= 0, place=place)
    return found, ThoughtBatch(ones[..., None], ones, old, verdict=verdict)


def reward(side, place, others, strength):
    """The rule in words, for one writing and the places of the other group."""
    scored = [other for other in others if other >= 0]
    if place < 0:
        return -1.5
    if not scored:
        return -1.0
    mean = sum(scored) / len(scored)
    right = place > mean + (strength - 2) if side == 0 else place < mean - (strength - 2)
    return 1.0 if right else -1.0


def test_rewards_in_numbers():
    place = jnp.asarray([[[5, 3, -1, 4], [1, 4, 7, 4]]])  # means 4 and 4
    for strength, chosen, rejected in (
        (2, [1, -1, -1, -1], [1, -1, -1, -1]),
        (1, [1, -1, -1, 1], [1, 1, -1, 1]),  # slightly better: less than one point on the wrong side is enough
        (3, [-1, -1, -1, -1], [1, -1, -1, -1]),
    ):
        found = irpm.beats_the_other(place, jnp.asarray([float(strength)]))[0]
        np.testing.assert_array_equal(found, [chosen, rejected])
    nothing = jnp.asarray([[[0, 1, 2, 3], [-1, -1, -1, -1]]])
    assert (irpm.beats_the_other(nothing, jnp.asarray([2.0])) == -1).all()


@pytest.mark.parametrize("strength", [None, 1.0, 3.0])
def test_the_expected_gradient_is_that_of_all_groups(strength):
    """Over all groups of two writings: the better one of two gains what the other loses, wherever rewards differ."""
    rng = np.random.default_rng(0)
    shapes = {"policy": (2, THOUGHTS), "token": (2, THOUGHTS, TOKENS)}
    params = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    log_pi, log_token = (np.asarray(jax.nn.log_softmax(params[name], -1)) for name in ("policy", "token"))
    chance = np.exp(log_pi[..., None] + log_token).reshape(2, -1)
    pairs = list(itertools.product(range(chance.shape[1]), repeat=2))
    groups = np.array(list(itertools.product(pairs, pairs)))
    weight = np.prod([chance[side][groups[:, side]].prod(1) for side in (0, 1)], 0)
    assert weight.sum() == pytest.approx(1, abs=1e-5)

    gain = np.zeros(chance.shape)  # d loss / d log-probability of each writing
    tokens = groups % TOKENS
    place = np.where(tokens < SCORES, tokens, -1)
    for group, places, share in zip(groups, place, weight):
        for side in (0, 1):
            rewards = [reward(side, s, places[1 - side], strength or 2.0) for s in places[side]]
            direction = np.sign(rewards[0] - rewards[1])
            gain[side, group[side][0]] -= share * direction / 2
            gain[side, group[side][1]] += share * direction / 2

    def expected(params):
        log_pi, log_token = (jax.nn.log_softmax(params[name], -1) for name in ("policy", "token"))
        return (gain * (log_pi[..., None] + log_token).reshape(2, -1)).sum()

    def surrogate(params):
        margin = None if strength is None else jnp.full(len(groups), strength)
        return (irpm.irpm_loss(*writings(params, jnp.asarray(groups)), irpm.Hyper(), margin)[0] * weight).sum()

    found = jax.jit(jax.grad(surrogate))(params)
    assert_trees_close(found, jax.grad(expected)(params), 1e-4)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(found)) > 0.01


def test_metrics_count_right_and_malformed_writings():
    params = {"policy": jnp.zeros((2, THOUGHTS)), "token": jnp.zeros((2, THOUGHTS, TOKENS))}
    groups = jnp.asarray([[[2, 3], [0, 1]]])  # scores 2 and none against 0 and 1
    _, metrics = irpm.irpm_loss(*writings(params, groups), irpm.Hyper())
    assert metrics["verdict_accuracy"] == 0.75 and metrics["well_formed"] == 0.75
    assert metrics["reward"] == pytest.approx((1 - 1.5 + 1 + 1) / 4)


def test_margins_are_asked_for_where_they_are_the_strength():
    objective = objectives.load("irpm")
    assert objective.verdicts and objective.judges == ("score",)
    assert not objective.uses_margins(irpm.Hyper()) and objective.uses_margins(irpm.Hyper(strength="data"))
