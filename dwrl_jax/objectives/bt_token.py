"""Bradley-Terry on the answer token, without a thought: the ablation "BT without prefilled thoughts" of arXiv
2510.15242.

The judge closes its turn at once, with the end token alone, and is asked for its answer: p = pi(a | x, y, "").
"""

import functools

from jaxtyping import Array, Float

from dwrl_jax.core.types import Logps, ThoughtBatch
from dwrl_jax.objectives import Objective
from dwrl_jax.objectives.dwrl import log_preference_score, preference_metrics
from dwrl_jax.objectives.parts import panels
from dwrl_jax.objectives.parts.bradley_terry import BradleyTerry, pair_loss, uses_margins

Hyper = BradleyTerry


def phases(hyper: Hyper):
    return {"bt": functools.partial(bradley_terry_loss, hyper=hyper)}


def bradley_terry_loss(
    logps: Logps, thoughts: ThoughtBatch, hyper: BradleyTerry, margin: Float[Array, " B"] | None = None
):
    """-log sigmoid(log p+ - log p-), p the mean over the thoughts at hand; the thoughts' own density is left alone.

    Its gradient is that of DWRL's Eq. 14. What a margin does to it is in `parts/bradley_terry`.
    """
    log_score = log_preference_score(logps.answer)
    return pair_loss(log_score[:, 0] - log_score[:, 1], hyper, margin), preference_metrics(logps)


OBJECTIVE = Objective(
    Hyper, phases, judges=("verdict", "score"), thoughts="none", uses_margins=uses_margins, panels=panels.PREFERENCE
)
