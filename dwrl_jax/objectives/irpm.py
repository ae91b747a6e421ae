"""IRPM (arXiv 2601.00677, the rule in its authors' code): GRPO on a pointwise judge that writes a score after its
thought. The reward compares the score with the mean score of the other response.

    r+_i = +1 if s+_i > mean(s-) + (pre - 2) else -1        r-_i = +1 if s-_i < mean(s+) - (pre - 2) else -1

A malformed thought has -1/2 in addition. pre is the strength of the preference: 1, 2 or 3. In the paper scores are 0
to 10, a group has 4 thoughts, the KL coefficient is 1e-3 and the learning rate is 5e-6. Choices that are (ours):

1. a score is a single token, and s is its index in `dialogue.scores`, so neighbouring scores differ by 1. The score's
   log-probability is part of the surrogate, like those of the thought's tokens;
2. a thought without a score has the reward -1 and is left out of the mean. If the other group has no score at all,
   every reward is -1. A thought is malformed if it was cut off or has no score;
3. pre is 2 for every pair. With `strength="data"` it is the pair's margin, which need not be a whole number;
4. for held-out responses, the score is the mean of the judge's distribution over scores after each thought, with the
   scores spread evenly between 0 and 1, and then the mean over votes.
"""

import dataclasses
import functools
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dwrl_jax.core.settings import setting
from dwrl_jax.core.types import Logps, ThoughtBatch
from dwrl_jax.objectives import Objective, grpo_point
from dwrl_jax.objectives.grpo_point import group_loss, policy_phases
from dwrl_jax.objectives.parts import panels

MALFORMED = -0.5  # reward of a malformed thought's format; for a well-formed thought it is 0
EVEN = 2.0  # the strength for which the rule compares with the mean itself


@dataclasses.dataclass(frozen=True)
class Hyper(grpo_point.Hyper):
    strength: Literal["same", "data"] = setting(
        "same", 'strength of each preference: "same" for all pairs, or "data" for the margins in the data'
    )


def phases(hyper: Hyper):
    """Updates by the clipped surrogate of the standardised rewards."""
    return policy_phases(functools.partial(irpm_loss, hyper=hyper), hyper.policy_updates)


def irpm_loss(logps: Logps, thoughts: ThoughtBatch, hyper: Hyper, margin: Float[Array, " B"] | None = None):
    """The surrogate of the sum of both rewards. `margin` is the strength of each pair's preference; None means 2."""
    place, well_formed = thoughts.verdict.place, thoughts.verdict.well_formed
    right = beats_the_other(place, jnp.full(len(place), EVEN) if margin is None else margin)
    reward = right + jnp.where(well_formed, 0.0, MALFORMED)
    loss, metrics = group_loss(logps, thoughts, reward, hyper)
    return loss, metrics | {"verdict_accuracy": (right > 0).mean((1, 2)), "well_formed": well_formed.mean((1, 2))}


def beats_the_other(place: Int[Array, "B S G"], strength: Float[Array, " B"]) -> Float[Array, "B S G"]:
    """+1 if a score is on the right side of the other group's mean by more than strength - 2, else -1.

    `place` is the index of the score; -1 means that there is no score.
    """
    scored = place >= 0
    count = scored.sum(-1)
    mean = jnp.where(scored, place, 0).sum(-1) / jnp.maximum(count, 1)
    sign = jnp.array([1.0, -1.0])[:, None]  # y+ must be above the mean, y- below
    ahead = sign * (place - mean[:, ::-1, None]) > strength[:, None, None] - EVEN
    return jnp.where(ahead & scored & (count[:, ::-1, None] > 0), 1.0, -1.0)


OBJECTIVE = Objective(
    Hyper,
    phases,
    judges=("score",),
    verdicts=True,
    uses_margins=lambda hyper: hyper.strength == "data",
    panels=(*panels.PREFERENCE, *panels.POLICY, *panels.GROUP_REWARDS, panels.VERDICTS, panels.WELL_FORMED),
)
