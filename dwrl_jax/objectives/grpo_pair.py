"""GRPO (DeepSeekMath, arXiv 2402.03300) on the pairwise judge, with a correctness reward: a baseline of arXiv
2510.15242, whose text does not say how it was done.

    r_i = 1 where the label drawn after thought o_i is the right one, else 0
    A_i = (r_i - mean r) / std r                       over the n thoughts in one order of one pair
    loss = -1/n sum_i surrogate(A_i), summed over both orders

What is (ours), beside what is said of one writing and its group in `grpo_point`:

1. both orders of every pair are learnt from, each a group of its own;
2. the label is drawn from the whole vocabulary: a token that is no label earns nothing;
3. tie rule: a drawn label is right or it is not, there is no tie in training; a group of equal rewards teaches
   nothing; of held-out pairs, one that both orders together leave even counts one half.
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
