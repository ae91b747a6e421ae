"""Pointwise thoughts rewarded by winning over the opposite group: after IRPM (arXiv 2601.00677), our reconstruction.

The paper contrasts the groups of y+ and y- so that a pair teaches a pointwise judge. What follows is (ours):

1. the score of a thought is the probability of the good answer behind it, not a number that is written out;
2. the reward of a thought about y+ is the share of the thoughts about y- whose score is lower, and the other way
   round; an equal score counts one half;
3. rewards are standardised in their own group as in GRPO. The surrogate is that of the thoughts: the answer learns
   only through the weights that it shares with them.
"""

import functools

import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from dwrl_jax.core.types import Logps, ThoughtBatch
from dwrl_jax.objectives import Objective
from dwrl_jax.objectives.grpo_point import group_loss
from dwrl_jax.objectives.parts import panels
from dwrl_jax.objectives.parts.policy import Policy

Hyper = Policy


def phases(hyper: Hyper):
    """One update by the clipped surrogate of the standardised rewards."""
    return {"policy": functools.partial(irpm_loss, hyper=hyper)}


def irpm_loss(logps: Logps, thoughts: ThoughtBatch, hyper: Hyper):
    return group_loss(logps, thoughts, wins_over_the_other(logps.answer), hyper)


def wins_over_the_other(answer: Float[Array, "B S G"]) -> Float[Array, "B S G"]:
    """Share of the opposite group that each thought wins over; one half for a tie. No gradient."""
    chosen, rejected = stop_gradient(answer[:, 0, :, None]), stop_gradient(answer[:, 1, None, :])
    win = jnp.where(chosen == rejected, 0.5, chosen > rejected)
    return jnp.stack([win.mean(2), win.mean(1)], 1)


OBJECTIVE = Objective(
    Hyper, phases, judges=("verdict", "score"), panels=(*panels.PREFERENCE, *panels.POLICY, *panels.GROUP_REWARDS)
)
