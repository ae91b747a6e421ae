"""Metrics of a judge, from the log scores of its thoughts about pairs.

A pointwise judge scores each response: the two responses are the sides S. A pairwise judge sees both responses at
once, in two orders: the orders are the sides, a log score is that of the right label, and P(y+ > y-) is the mean over
both orders. Axes: N pairs, S sides, K thoughts, R = K // votes groups of thoughts.
"""

import numpy as np
from jaxtyping import Float
from scipy.special import expit, logsumexp
from scipy.stats import bootstrap

from dwrl_jax.judge.votes import FAINTEST

CALIBRATION_BINS = 10


def votes_of(log_scores: Float[np.ndarray, "N S K"], votes: int) -> Float[np.ndarray, "N S R votes"]:
    """Disjoint groups of `votes` thoughts. A metric of a judge with that many votes is the mean over the groups."""
    n, sides, samples = log_scores.shape
    repeats = samples // votes
    return log_scores[..., : repeats * votes].reshape(n, sides, repeats, votes)


def log_odds(log_scores: Float[np.ndarray, "N S K"], votes: int, pairwise: bool = False) -> Float[np.ndarray, "N R"]:
    """Log-odds of y+ over y-: log p+ - log p-, where p is the mean over `votes` thoughts.

    For a pairwise judge p is the mean over both orders too.
    """
    if pairwise:
        right, wrong = order_probabilities(log_scores, votes)
        return np.log(right.sum(1)) - np.log(wrong.sum(1))
    log_p = logsumexp(votes_of(log_scores, votes), axis=-1) - np.log(votes)
    return log_p[:, 0] - log_p[:, 1]


def order_probabilities(
    log_scores: Float[np.ndarray, "N S K"], votes: int
) -> tuple[Float[np.ndarray, "N S R"], Float[np.ndarray, "N S R"]]:
    """Probability of the right and of the wrong label in each order: means over `votes` thoughts.

    A vote is clipped to the probabilities that float32 can tell from 0 and 1, so that the log-odds stay finite.
    """
    right = np.clip(np.exp(votes_of(log_scores, votes).astype(np.float64)), FAINTEST, 1 - FAINTEST).mean(-1)
    return right, 1 - right


def order_metrics(log_scores: Float[np.ndarray, "N S K"], votes: int) -> dict[str, float]:
    """Two metrics of a pairwise judge's dependence on the order.

    "flips" is the share of pairs where the two orders disagree about which response is better. An order with equal
    probabilities counts one half. "position_bias" is the mean probability that the first response is better, minus one
    half.
    """
    right, wrong = order_probabilities(log_scores, votes)
    won = wins(right - wrong)
    return {
        "flips": float(np.abs(won[:, 0] - won[:, 1]).mean()),
        "position_bias": float((right[:, 0] + wrong[:, 1]).mean() / 2 - 0.5),
    }


def metrics(log_scores: Float[np.ndarray, "N S K"], votes: int, pairwise: bool = False) -> dict:
    """The summary of a judge with `votes` thoughts. A pairwise judge has the `order_metrics` too."""
    numbers = summary(log_odds(log_scores, votes, pairwise))
    return numbers | (order_metrics(log_scores, votes) if pairwise else {})


def wins(log_odds: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """1 where the chosen response scores higher, 1/2 for a tie, else 0."""
    return np.where(log_odds == 0, 0.5, log_odds > 0).astype(np.float64)


def losses(log_odds: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """-log P(y+ > y-), in nats."""
    return np.logaddexp(0.0, -log_odds)


def summary(log_odds: Float[np.ndarray, "N R"]) -> dict:
    """Accuracy (95 % bootstrap interval over pairs), NLL in nats, ties, Brier score and calibration error."""
    probability = expit(log_odds)
    correct = wins(log_odds)
    per_pair = correct.mean(1)
    return {
        "accuracy": float(per_pair.mean()),
        "interval": interval(per_pair),
        "nll": float(losses(log_odds).mean()),
        "ties": float((log_odds == 0).mean()),
        "brier": float(((1.0 - probability) ** 2).mean()),
        "ece": calibration_error(np.maximum(probability, 1 - probability), correct),
        "pairs": len(log_odds),
    }


def gain(before: Float[np.ndarray, "N R"], after: Float[np.ndarray, "N R"]) -> dict:
    """Accuracy after less accuracy before, on the same pairs, with a paired 95 % bootstrap interval."""
    difference = wins(after).mean(1) - wins(before).mean(1)
    return {"accuracy": float(difference.mean()), "interval": interval(difference)}


def interval(per_pair: Float[np.ndarray, " N"]) -> list[float]:
    """95 % percentile bootstrap interval of the mean over pairs."""
    if len(per_pair) < 2:
        return [float(per_pair.mean())] * 2
    drawn = bootstrap((per_pair,), np.mean, method="percentile", batch=100, rng=np.random.default_rng(0))
    return [float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)]


def calibration_error(confidence: Float[np.ndarray, "*shape"], correct: Float[np.ndarray, "*shape"]) -> float:
    """ECE: the mean of |share correct - mean confidence| over ten equal bins of [0.5, 1], weighted by their counts."""
    confidence, correct = confidence.ravel(), correct.ravel()
    bins = np.minimum(((confidence - 0.5) * 2 * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    count = np.maximum(np.bincount(bins, minlength=CALIBRATION_BINS), 1)
    gaps = np.bincount(bins, correct - confidence, CALIBRATION_BINS) / count
    return float((np.abs(gaps) * np.bincount(bins, minlength=CALIBRATION_BINS)).sum() / len(bins))
