"""Held-out pairs: scores with k votes, and what they say about a judge."""

from collections.abc import Callable, Iterable

import jax
import numpy as np
from jaxtyping import Float
from scipy.special import expit, logsumexp
from scipy.stats import bootstrap

from dwrl_jax.types import PreferenceBatch

CALIBRATION_BINS = 10


def vote_scores(
    scores_of: Callable, batches: Iterable[PreferenceBatch]
) -> tuple[np.ndarray, Float[np.ndarray, "N S K"]]:
    """Pair ids [N], ascending, and log scores of K sampled thoughts for both sides of every pair.

    `scores_of(batch)` samples them, Float[B S K]. Its keys depend on the pair alone, so neither the order nor
    the packing of batches matters.
    """
    scores, ids = [], []
    for batch in batches:
        valid = np.asarray(batch.valid)
        scores.append(np.asarray(jax.device_get(scores_of(batch)))[valid])
        ids.append(np.asarray(batch.pair_id)[valid])
    order = np.argsort(np.concatenate(ids))
    return np.concatenate(ids)[order], np.concatenate(scores)[order]


def margins(log_scores: Float[np.ndarray, "N S K"], votes: int) -> Float[np.ndarray, "N R"]:
    """log p^+ - log p^- where p^ is the mean over `votes` thoughts, for each of the R = K // votes disjoint
    groups: all samples serve to estimate what a judge with `votes` thoughts does."""
    n, sides, samples = log_scores.shape
    repeats = samples // votes
    groups = log_scores[..., : repeats * votes].reshape(n, sides, repeats, votes)
    log_p = logsumexp(groups, axis=-1) - np.log(votes)
    return log_p[:, 0] - log_p[:, 1]


def wins(margin: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """1 where the chosen response scores higher, one half for a tie."""
    return np.where(margin == 0, 0.5, margin > 0).astype(np.float64)


def summary(margin: Float[np.ndarray, "N R"]) -> dict:
    """Accuracy (95 % bootstrap interval over pairs), NLL in nats, ties, Brier score and calibration error."""
    probability = expit(margin)
    correct = wins(margin)
    per_pair = correct.mean(1)
    return {
        "accuracy": float(per_pair.mean()),
        "interval": interval(per_pair),
        "nll": float(np.logaddexp(0.0, -margin).mean()),
        "ties": float((margin == 0).mean()),
        "brier": float(((1.0 - probability) ** 2).mean()),
        "ece": calibration_error(np.maximum(probability, 1 - probability), correct),
        "pairs": len(margin),
    }


def gain(before: Float[np.ndarray, "N R"], after: Float[np.ndarray, "N R"]) -> dict:
    """Difference of accuracy on the same pairs, with a paired 95 % bootstrap interval."""
    difference = wins(after).mean(1) - wins(before).mean(1)
    return {"accuracy": float(difference.mean()), "interval": interval(difference)}


def interval(per_pair: Float[np.ndarray, " N"]) -> list[float]:
    """95 % percentile bootstrap interval of the mean over pairs."""
    if len(per_pair) < 2:
        return [float(per_pair.mean())] * 2
    found = bootstrap((per_pair,), np.mean, method="percentile", batch=100, rng=np.random.default_rng(0))
    return [float(found.confidence_interval.low), float(found.confidence_interval.high)]


def calibration_error(confidence: Float[np.ndarray, "*shape"], correct: Float[np.ndarray, "*shape"]) -> float:
    """ECE: |share correct - mean confidence| over ten equal bins of [0.5, 1], weighted by their counts."""
    confidence, correct = confidence.ravel(), correct.ravel()
    bins = np.minimum(((confidence - 0.5) * 2 * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    count = np.maximum(np.bincount(bins, minlength=CALIBRATION_BINS), 1)
    gaps = np.bincount(bins, correct - confidence, CALIBRATION_BINS) / count
    return float((np.abs(gaps) * np.bincount(bins, minlength=CALIBRATION_BINS)).sum() / len(bins))
