"""Bradley-Terry on the answer token, without a thought: the ablation "BT without prefilled thoughts" of arXiv
2510.15242.

The judge closes its turn at once, with the end token alone, and is asked for its answer: p = pi(a | x, y, "").
"""

import dataclasses

from dwrl_jax.objectives.dwrl import log_preference_score, pair_nll, preference_metrics
from dwrl_jax.types import Logps, ThoughtBatch

THOUGHTS, VERDICTS = "none", False


@dataclasses.dataclass(frozen=True)
class Hyper:
    """Nothing to choose."""


def phases(hyper: Hyper):
    return {"bt": bradley_terry_loss}


def bradley_terry_loss(logps: Logps, thoughts: ThoughtBatch):
    """-log sigmoid(log p+ - log p-), p the mean over the thoughts at hand; the thoughts' own density is left alone.

    Its gradient is that of DWRL's Eq. 14.
    """
    return pair_nll(log_preference_score(logps.answer)), preference_metrics(logps)
