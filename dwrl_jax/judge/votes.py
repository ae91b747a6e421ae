"""Turn the scores of votes into scores and ranks of responses, with NumPy on the host."""

import numpy as np
from jaxtyping import Float, Int
from scipy.special import expit, logsumexp

FAINTEST = float(np.finfo(np.float32).eps)  # the smallest 1 - p, because float32 cannot represent a p closer to 1


def log_odds(log_p: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """log p - log(1 - p), in nats. It is finite also if p is rounded to 1."""
    log_p = np.minimum(np.asarray(log_p, np.float64), np.log1p(-FAINTEST))
    return log_p - np.log(-np.expm1(log_p))


def mean_vote(log_scores: Float[np.ndarray, "*shape K"]) -> Float[np.ndarray, "*shape"]:
    """log p = logsumexp_k log s_k - log K, the log of the mean over K votes."""
    return logsumexp(np.asarray(log_scores, np.float64), axis=-1) - np.log(log_scores.shape[-1])


def against_others(win: dict[tuple[int, int], float], count: int) -> Float[np.ndarray, " R"]:
    """Each response's mean probability to win against the others. win[i, j] is P(i > j) when i is shown first.

    P(i > j) is the mean over both orders: (win[i, j] + 1 - win[j, i]) / 2.
    """
    said = np.array([[0.0 if i == j else (win[i, j] + 1 - win[j, i]) / 2 for j in range(count)] for i in range(count)])
    return said.sum(1) / (count - 1)


def compared(log_odds_of: Float[np.ndarray, "R R"]) -> Float[np.ndarray, " R"]:
    """Each response's mean probability to win against the others, from the log-odds of i over j."""
    count = len(log_odds_of)
    return (expit(log_odds_of).sum(1) - 0.5) / (count - 1)  # subtracts the diagonal, which is 1/2


def ranks(score: Float[np.ndarray, " R"]) -> Int[np.ndarray, " R"]:
    """1 for the best response. Equal scores share the better rank."""
    return 1 + (np.asarray(score)[:, None] < np.asarray(score)).sum(1)
