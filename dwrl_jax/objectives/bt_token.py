"""Bradley-Terry on the answer token, without a thought: the ablation "BT without prefilled thoughts" of arXiv
2510.15242.

    p = pi(a | x, y, "")

The judge's first turn is only the end token. Then the judge is asked for its answer.
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
    """-log sigmoid(log p+ - log p-), in nats, where p is the mean over the given thoughts.

    The density of the thoughts gets no gradient. The gradient of the loss is that of DWRL's Eq. 14.
    `parts/bradley_terry` gives the loss with a margin.
    """
    log_score = log_preference_score(logps.answer)
    return pair_loss(log_score[:, 0] - log_score[:, 1], hyper, margin), preference_metrics(logps)


OBJECTIVE = Objective(
    Hyper, phases, judges=("verdict", "score"), thoughts="none", uses_margins=uses_margins, panels=panels.PREFERENCE
)
