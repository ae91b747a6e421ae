"""What Bradley-Terry objectives make of a pair's margin m, how much better than y- the data says that y+ is.

    regular   l = -log sigmoid(d)        -dl/dd = sigmoid(-d)
    margin    l = -log sigmoid(d - m)    -dl/dd = sigmoid(m - d)
    scaled    l = -m log sigmoid(d)      -dl/dd = m sigmoid(-d)

d = log P(y+ > y-) - log P(y- > y+) in nats: r+ - r- of a reward model, log p+ - log p- of a judge. As three losses of
a reward model they are in HelpSteer2-Preference (arXiv 2410.01257), with the margins 1 (slightly better), 2 (better)
and 3 (much better); "margin" is that of Llama 2 (arXiv 2307.09288). Held-out pairs are judged by sigmoid(d) for all.
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
        "regular", 'use of the pairs\' margins in the likelihood; "regular" needs none'
    )


def uses_margins(hyper: BradleyTerry) -> bool:
    """Whether the losses take the pairs' margins."""
    return hyper.bradley_terry != "regular"


def pair_loss(
    log_odds: Float[Array, " B"], hyper: BradleyTerry, margin: Float[Array, " B"] | None
) -> Float[Array, " B"]:
    """l, in nats."""
    nll = -jax.nn.log_sigmoid(log_odds - margin if hyper.bradley_terry == "margin" else log_odds)
    return margin * nll if hyper.bradley_terry == "scaled" else nll


def pair_weight(
    log_odds: Float[Array, " B"], hyper: BradleyTerry, margin: Float[Array, " B"] | None
) -> Float[Array, " B"]:
    """-dl/dd. No gradient."""
    weight = jax.nn.sigmoid(margin - log_odds if hyper.bradley_terry == "margin" else -log_odds)
    return stop_gradient(margin * weight if hyper.bradley_terry == "scaled" else weight)
