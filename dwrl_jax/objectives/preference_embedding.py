"""Preference embeddings: a response is a vector, and preferences may be cyclic (General Preference Model, arXiv
2410.02197).

    s(y1 > y2) = <R v1, v2> = sum_l v1[2l] v2[2l + 1] - v1[2l + 1] v2[2l],    P(y1 > y2) = sigmoid(s / beta)

v is the output of the value head at the last token of (x, y), scaled to length 1. It has 2 k dimensions, and R turns
each of its k planes by a quarter turn. R is skew-symmetric, so s(y2 > y1) = -s(y1 > y2). In a single plane y1 wins over
every vector up to half a turn ahead of it, so a > b > c > a is possible. With v = (r, 1) before the scaling, it is the
Bradley-Terry model. The loss is -log P. Choices that are (ours):

1. the paper's scales lambda_l(x) of the planes, which depend on the prompt, are left out: all are 1;
2. the value head is initialised and learns as that of `bt` does;
3. s / (2 beta) and -s / (2 beta) take the place of the two rewards of `bt`, so the evaluation and the margins are the
   same as for `bt`. So a response has a score only within its pair, and another y- changes the score of y+.
"""

import dataclasses
import functools

import jax.numpy as jnp
from jaxtyping import Array, Float

from dwrl_jax.core.settings import setting
from dwrl_jax.core.types import Logps, ThoughtBatch
from dwrl_jax.objectives import Objective
from dwrl_jax.objectives.bt import HEAD_INIT, reward_metrics
from dwrl_jax.objectives.parts import panels
from dwrl_jax.objectives.parts.bradley_terry import BradleyTerry, pair_loss, uses_margins

EPSILON = 1e-12


@dataclasses.dataclass(frozen=True)
class Hyper(BradleyTerry):
    planes: int = setting(4, "dimensions of the embedding, in pairs: the paper's k", at_least=1)
    beta: float = setting(0.1, "divides the score, which is from -1 to 1; the quotient is the log-odds", above=0)
    head_init: float = setting(1.0, HEAD_INIT, at_least=0)


def preference_score(first: Float[Array, "*shape K"], second: Float[Array, "*shape K"]) -> Float[Array, "*shape"]:
    """s(first > second) = <R first, second>, without scaling to length 1. K = 2 k; neighbours form a plane."""
    return (first[..., ::2] * second[..., 1::2] - first[..., 1::2] * second[..., ::2]).sum(-1)


def value_scores(values: Float[Array, "B 2 K"], hyper: Hyper) -> Float[Array, "B 2"]:
    """(s, -s) / (2 beta) with s = s(y+ > y-), where v is `values` divided by their length."""
    embedding = values / jnp.sqrt((values**2).sum(-1, keepdims=True) + EPSILON)  # a zero vector needs EPSILON
    half = preference_score(embedding[:, 0], embedding[:, 1]) / (2.0 * hyper.beta)
    return jnp.stack([half, -half], -1)


def phases(hyper: Hyper):
    return {"preference": functools.partial(preference_loss, hyper=hyper)}


def preference_loss(logps: Logps, thoughts: ThoughtBatch, hyper: Hyper, margin: Float[Array, " B"] | None = None):
    """-log sigmoid(s / beta), in nats. `logps.answer` holds the result of `value_scores`."""
    return pair_loss(logps.answer[:, 0, 0] - logps.answer[:, 1, 0], hyper, margin), reward_metrics(logps)


OBJECTIVE = Objective(
    Hyper,
    phases,
    judges=("embedding",),
    thoughts="none",
    value_outputs=lambda hyper: 2 * hyper.planes,
    value_scores=value_scores,
    uses_margins=uses_margins,
    panels=panels.HALF_LOG_ODDS,
)
