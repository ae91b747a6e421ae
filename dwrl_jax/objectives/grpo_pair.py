"""GRPO (DeepSeekMath, arXiv 2402.03300) on the pairwise judge, with a correctness reward. It is a baseline of arXiv
2510.15242, which does not describe its implementation.

    r_i = 1 if the label drawn after thought o_i is right, else 0
    A_i = (r_i - mean r) / std r                       over the n thoughts about a pair in a given order
    loss = -1/n sum_i surrogate(A_i), summed over both orders

`grpo_point` lists choices about thoughts and groups that hold here too. Other choices that are (ours):

1. both orders of every pair are used, and each order has a group of its own;
2. the label is drawn from the whole vocabulary, and a token that is not a label has the reward 0;
3. in training there are no ties, because a drawn label is either right or wrong. A group of equal rewards gives no
   gradient. A held-out pair counts one half if its two orders together are even.
"""

import functools

from dwrl_jax.core.types import Logps, ThoughtBatch
from dwrl_jax.objectives import Objective, grpo_point
from dwrl_jax.objectives.grpo_point import correctness, group_loss, policy_phases
from dwrl_jax.objectives.parts import panels
from dwrl_jax.objectives.parts.pairwise import pairwise_metrics

Hyper = grpo_point.Hyper


def phases(hyper: Hyper):
    """Updates by the clipped surrogate of the standardised rewards."""
    return policy_phases(functools.partial(comparison_loss, hyper=hyper), hyper.policy_updates)


def comparison_loss(logps: Logps, thoughts: ThoughtBatch, hyper: Hyper):
    """The surrogate of correctness, in both orders."""
    reward = correctness(thoughts)
    loss, metrics = group_loss(logps, thoughts, reward, hyper, pairwise_metrics)
    return loss, metrics | {"verdict_accuracy": reward.mean((1, 2))}


OBJECTIVE = Objective(
    Hyper,
    phases,
    judges=("label",),
    verdicts=True,
    panels=(*panels.LABELS, *panels.POLICY, *panels.GROUP_REWARDS, panels.VERDICTS),
)
