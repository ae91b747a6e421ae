"""Ordinal scores: the judge answers with a score token, and its distribution over all of them is the reward (OPRM,
arXiv 2602.12660).

    P(y+ > y-) = sum_{j > k} p+(j) p-(k) + 1/2 sum_j p+(j) p-(j)        loss  -log P

p(j) is the probability of score j, renormalised over the scores. In the paper the scores are the digits 1 to 9, right
after the response. Choices that are (ours):

1. equal scores count one half, so that P(y+ > y-) + P(y- > y+) = 1;
2. the score is in the place of the answer in `bt_token`: after the empty thought and a question that asks for it;
3. held-out pairs are judged by P. The paper uses each response's mean score as its reward. So here a response has a
   score only within its pair, as in `preference_embedding`: half the log-odds of P, and their negative;
4. the paper's region flooding is left out, because it needs labels of absolute quality.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dwrl_jax.core.types import Logps, ThoughtBatch
from dwrl_jax.objectives import Objective
from dwrl_jax.objectives.dwrl import log_preference_score, pair_nll, preference_metrics
from dwrl_jax.objectives.parts import panels


@dataclasses.dataclass(frozen=True)
class Hyper:
    """Nothing to choose."""


def log_wins(first: Float[Array, "*shape K"], second: Float[Array, "*shape K"]) -> Float[Array, "*shape"]:
    """log P(first > second), in nats, from the log-probabilities of K scores, the lowest score first."""
    scores = np.arange(first.shape[-1])
    share = np.where(scores[:, None] == scores, 0.5, scores[:, None] > scores)
    return jax.nn.logsumexp(first[..., :, None] + second[..., None, :], (-2, -1), b=share)


def value_scores(values: Float[Array, "B 2 *G K"], hyper: Hyper) -> Float[Array, "B 2 *G"]:
    """(d, -d) / 2 with d = log P(y+ > y-) - log P(y- > y+), from log-probabilities of the K scores.

    A common factor of all probabilities of a response cancels in d, so they need not be renormalised over the scores.
    """
    chosen, rejected = values[:, 0], values[:, 1]
    half = (log_wins(chosen, rejected) - log_wins(rejected, chosen)) / 2.0
    return jnp.stack([half, -half], 1)


def phases(hyper: Hyper):
    return {"ordinal": ordinal_loss}


def ordinal_loss(logps: Logps, thoughts: ThoughtBatch):
    """-log P(y+ > y-) = -log sigmoid(d), in nats. `logps.answer` holds the result of `value_scores`."""
    return pair_nll(log_preference_score(logps.answer)), preference_metrics(logps)


OBJECTIVE = Objective(
    Hyper,
    phases,
    judges=("score",),
    thoughts="none",
    value_scores=value_scores,
    panels=(*panels.HALF_LOG_ODDS, panels.ANSWER_MASS, panels.EFFECTIVE_THOUGHTS),
)
