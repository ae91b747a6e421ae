"""GRAM: a pairwise judge without thoughts, trained by cross-entropy on the label token (arXiv 2506.14175).

    loss = - mean over both orders of [(1 - e) log pi(l | x, y_1, y_2) + e log pi(l' | x, y_1, y_2)]

l is the right label, l' the other label, and e the label smoothing. This is the supervised step of the paper: with
smoothed labels it is a regularised pairwise ranking loss. Choices that are (ours):

1. a step uses both orders of every pair;
2. pi is renormalised over the two labels, so that pi(l') = 1 - pi(l);
3. the paper's pre-training on unlabelled comparisons is left out.
"""

import dataclasses

from dwrl_jax.core.settings import setting
from dwrl_jax.core.types import Logps, ThoughtBatch
from dwrl_jax.objectives import Objective
from dwrl_jax.objectives.parts import panels
from dwrl_jax.objectives.parts.pairwise import log_other, pairwise_metrics


@dataclasses.dataclass(frozen=True)
class Hyper:
    label_smoothing: float = setting(0.0, "share of the target that goes to the other label", at_least=0, below=0.5)


def phases(hyper: Hyper):
    """A single update by the smoothed cross-entropy of the label, in nats, averaged over both orders."""

    def label_loss(logps: Logps, thoughts: ThoughtBatch):
        right = (1.0 - hyper.label_smoothing) * logps.answer
        loss = -right.mean((1, 2))
        if hyper.label_smoothing:
            loss = loss - hyper.label_smoothing * log_other(logps.answer).mean((1, 2))
        return loss, pairwise_metrics(logps)

    return {"label": label_loss}


OBJECTIVE = Objective(Hyper, phases, judges=("label",), thoughts="none", panels=panels.LABELS)
