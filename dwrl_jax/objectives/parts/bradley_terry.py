"""Bradley-Terry losses with a margin m of each pair. The data's margin says how much better y+ is than y-.

    regular   l = -log sigmoid(d)        -dl/dd = sigmoid(-d)
    margin    l = -log sigmoid(d - m)    -dl/dd = sigmoid(m - d)
    scaled    l = -m log sigmoid(d)      -dl/dd = m sigmoid(-d)

d = log P(y+ > y-) - log P(y- > y+) in nats. It is r+ - r- for a reward model, and log p+ - log p- for a judge.
HelpSteer2-Preference (arXiv 2410.01257) has these three losses for a reward model, with the margins 1 (slightly
better), 2 (better) and 3 (much better). "margin" is the loss of Llama 2 (arXiv 2307.09288). With all three losses,
held-out pairs are judged by sigmoid(d).
"""

import dataclasses
from typing import Literal

import jax
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from dwrl_jax.core.settings import setting


@dataclasses.dataclass(frozen=True)
class BradleyTerry:
    bradley_terry: Literal["regular", "margin", "scaled"] = setting(
        "regular", 'use of the pairs\' margins in the likelihood; "regular" does not use them'
    )


def uses_margins(hyper: BradleyTerry) -> bool:
    """Whether the losses use the pairs' margins."""
    return hyper.bradley_terry != "regular"


def pair_loss(
    log_odds: Float[Array, " B"], hyper: BradleyTerry, margin: Float[Array, " B"] | None
) -> Float[Array, " B"]:
    """The loss l of each pair, in nats."""
    nll = -jax.nn.log_sigmoid(log_odds - margin if hyper.bradley_terry == "margin" else log_odds)
    return margin * nll if hyper.bradley_terry == "scaled" else nll


def pair_weight(
    log_odds: Float[Array, " B"], hyper: BradleyTerry, margin: Float[Array, " B"] | None
) -> Float[Array, " B"]:
    """-dl/dd, the weight of each pair. No gradient."""
    weight = jax.nn.sigmoid(margin - log_odds if hyper.bradley_terry == "margin" else -log_odds)
    return stop_gradient(margin * weight if hyper.bradley_terry == "scaled" else weight)
