"""Pointwise thoughts rewarded by winning over the opposite group: the variant that IRPM's code (arXiv 2601.00677) calls
AUC, in our reconstruction. `irpm` has the published rule.

    r+_i = share of the thoughts about y- that s+_i wins over        r-_i = share of those about y+ that win over s-_i

The paper contrasts the groups of y+ and y-, so that a pair teaches a pointwise judge. Choices that are (ours):

1. the score s of a thought is the probability of the good answer behind it, not a number that is written out; an equal
   score counts one half;
2. rewards are standardised in their own group as in GRPO. The surrogate is that of the thoughts: the answer learns
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
    return {"policy": functools.partial(auc_loss, hyper=hyper)}


def auc_loss(logps: Logps, thoughts: ThoughtBatch, hyper: Hyper):
    """The surrogate with the shares of wins as rewards."""
    return group_loss(logps, thoughts, wins_over_the_other(logps.answer), hyper)


def wins_over_the_other(answer: Float[Array, "B S G"]) -> Float[Array, "B S G"]:
    """Share of the opposite group that each thought wins over; one half for a tie. No gradient."""
    chosen, rejected = stop_gradient(answer[:, 0, :, None]), stop_gradient(answer[:, 1, None, :])
    win = jnp.where(chosen == rejected, 0.5, chosen > rejected)
    return jnp.stack([win.mean(2), win.mean(1)], 1)


OBJECTIVE = Objective(
    Hyper, phases, judges=("verdict", "score"), panels=(*panels.PREFERENCE, *panels.POLICY, *panels.GROUP_REWARDS)
)
