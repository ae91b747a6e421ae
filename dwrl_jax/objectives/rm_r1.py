"""RM-R1 style: GRPO on the pairwise judge, with rewards for the right label and for the format (arXiv 2505.02387).

    r_i = 1[the label is right] + format_weight * 1[well formed]

Everything else is as in `grpo_pair`. The paper's idea is a judge that compares two responses after a written thought
and learns by reinforcement learning from a reward that a rule can check. The choices of `grpo_pair` hold here too.
Other choices that are (ours):

1. the format is well formed if the thought has its end token before the length limit, and if the verdict is one of
   the two labels;
2. the weight of the format;
3. two parts of the paper are left out. The paper first distils long thoughts of stronger models; here the starting
   model is used as it is. The paper's prompts have rubrics; here `dialogue.pair_question` is the prompt.
"""

import dataclasses
import functools

from dwrl_jax.core.settings import setting
from dwrl_jax.core.types import Logps, ThoughtBatch
from dwrl_jax.objectives import Objective, grpo_point
from dwrl_jax.objectives.grpo_point import correctness, group_loss, policy_phases
from dwrl_jax.objectives.parts import panels
from dwrl_jax.objectives.parts.pairwise import pairwise_metrics


@dataclasses.dataclass(frozen=True)
class Hyper(grpo_point.Hyper):
    format_weight: float = setting(0.2, "reward of the right format; a right label has the reward 1", at_least=0)


def phases(hyper: Hyper):
    """Updates by the clipped surrogate of the standardised rewards."""
    return policy_phases(functools.partial(comparison_loss, hyper=hyper), hyper.policy_updates)


def comparison_loss(logps: Logps, thoughts: ThoughtBatch, hyper: Hyper):
    """The surrogate of correctness and format, in both orders."""
    right, well_formed = correctness(thoughts), thoughts.verdict.well_formed
    loss, metrics = group_loss(logps, thoughts, right + hyper.format_weight * well_formed, hyper, pairwise_metrics)
    return loss, metrics | {"verdict_accuracy": right.mean((1, 2)), "well_formed": well_formed.mean((1, 2))}


OBJECTIVE = Objective(
    Hyper,
    phases,
    judges=("label",),
    verdicts=True,
    panels=(*panels.LABELS, *panels.POLICY, *panels.GROUP_REWARDS, panels.VERDICTS, panels.WELL_FORMED),
)
