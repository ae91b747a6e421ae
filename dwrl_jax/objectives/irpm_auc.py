"""Our reconstruction of the variant that IRPM's code (arXiv 2601.00677) calls AUC: a thought of a pointwise judge is
rewarded if its score is on the right side of scores in the opposite group. `irpm` has the published rule.

    r+_i = share of thoughts j about y- with s+_i > s-_j        r-_i = share of thoughts j about y+ with s+_j > s-_i

The paper compares the groups of y+ and y-, so that a pair can train a pointwise judge. Choices that are (ours):

1. the score s of a thought is the probability of the good answer after it, not a written number. Equal scores count
   one half;
2. rewards are standardised within their group as in GRPO. The surrogate contains only the thoughts' tokens, so the
   answer changes only because it depends on the same parameters.
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
    """A single update by the clipped surrogate of the standardised rewards."""
    return {"policy": functools.partial(auc_loss, hyper=hyper)}


def auc_loss(logps: Logps, thoughts: ThoughtBatch, hyper: Hyper):
    """The surrogate with the shares of wins as rewards."""
    return group_loss(logps, thoughts, wins_over_the_other(logps.answer), hyper)


def wins_over_the_other(answer: Float[Array, "B S G"]) -> Float[Array, "B S G"]:
    """r_i, the share of thoughts in the opposite group that thought i is ranked correctly against. No gradient.

    A tie counts one half.
    """
    chosen, rejected = stop_gradient(answer[:, 0, :, None]), stop_gradient(answer[:, 1, None, :])
    win = jnp.where(chosen == rejected, 0.5, chosen > rejected)
    return jnp.stack([win.mean(2), win.mean(1)], 1)


OBJECTIVE = Objective(
    Hyper, phases, judges=("verdict", "score"), panels=(*panels.PREFERENCE, *panels.POLICY, *panels.GROUP_REWARDS)
)
