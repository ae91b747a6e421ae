"""GRPO (DeepSeekMath, arXiv 2402.03300) on the pointwise judge, with a correctness reward. It is a baseline of arXiv
2510.15242, which does not describe its implementation.

    r_i = 1 if the verdict after thought o_i is right, else 0
    A_i = (r_i - mean r) / std r                       over the n thoughts about a response
    loss = -1/n sum_i surrogate(A_i), summed over both responses

Choices that are (ours):

1. the policy writes a thought and then a verdict, an answer token that is drawn from the whole vocabulary. The
   verdict's log-probability is part of the surrogate, like those of the thought's tokens;
2. the right verdict is "good" about y+ and "bad" about y-. Any other token has the reward 0. A verdict is either right
   or wrong, so there are no ties in training;
3. a group is the n thoughts about a response, with their verdicts. A group of equal rewards gives no gradient;
4. the standard deviation is that of the group itself, with division by n.

Held-out pairs are compared as for DWRL, by the mean probability of the good answer; a tie counts one half.
"""

import dataclasses
import functools

import jax.numpy as jnp
from jaxtyping import Array, Float

from dwrl_jax.core.settings import setting
from dwrl_jax.core.types import Logps, ThoughtBatch
from dwrl_jax.objectives import Objective
from dwrl_jax.objectives.dwrl import preference_metrics
from dwrl_jax.objectives.parts import panels
from dwrl_jax.objectives.parts.policy import Policy, policy_loss, sampler_gap

EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class Hyper(Policy):
    """Hyper-parameters of GRPO. In the first update on new thoughts every ratio is 1, so nothing is clipped."""

    policy_updates: int = setting(1, "updates on the same thoughts; clipping acts from the second on", at_least=1)


def phases(hyper: Hyper):
    """Updates by the clipped surrogate of the standardised rewards."""
    return policy_phases(functools.partial(grpo_loss, hyper=hyper), hyper.policy_updates)


def policy_phases(loss, count: int) -> dict:
    """`count` updates by one loss."""
    return {"policy" if count == 1 else f"policy_{i + 1}": loss for i in range(count)}


def grpo_loss(logps: Logps, thoughts: ThoughtBatch, hyper: Hyper):
    return group_loss(logps, thoughts, correctness(thoughts), hyper)


def group_loss(
    logps: Logps, thoughts: ThoughtBatch, reward: Float[Array, "B S G"], hyper: Policy, describe=preference_metrics
):
    """-1/n sum_i surrogate(A_i), summed over both sides: Eq. 3 of arXiv 2402.03300.

    The KL term is outside the clipping. `hyper.token_aggregation` "mean" is the paper's 1/|o_i|. `describe(logps)` adds
    metrics.
    """
    advantage = group_advantage(reward)
    loss, metrics = policy_loss(logps, thoughts, advantage / reward.shape[-1], hyper)
    metrics |= describe(logps) | sampler_gap(logps, thoughts)
    return loss, metrics | {"reward": reward.mean((1, 2)), "equal_rewards": (advantage == 0).all(-1).mean(1)}


def correctness(thoughts: ThoughtBatch) -> Float[Array, "B S G"]:
    """1 for a right verdict, 0 for any other."""
    return thoughts.verdict.right.astype(jnp.float32)


def group_advantage(reward: Float[Array, "B S G"]) -> Float[Array, "B S G"]:
    """A_i = (r_i - mean r) / std r over the group; zero if all rewards are equal."""
    centred = reward - reward.mean(-1, keepdims=True)
    equal = reward.max(-1, keepdims=True) == reward.min(-1, keepdims=True)  # else a division would magnify rounding
    return jnp.where(equal, 0.0, centred / (reward.std(-1, keepdims=True) + EPSILON))


OBJECTIVE = Objective(Hyper, phases, verdicts=True, panels=(*panels.PREFERENCE, *panels.POLICY, *panels.GROUP_REWARDS))
