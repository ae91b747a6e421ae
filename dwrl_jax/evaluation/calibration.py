"""Likelihood after one temperature, and the accuracy of the pairs that a judge is sure of.

A judge that is right as often as another can have a worse likelihood because it is too sure, or not sure enough. One
number mends that: log-odds / T. T is fitted on half of the pairs and used on the other half, both ways.
"""

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize_scalar

from dwrl_jax.evaluation.metrics import losses, wins

FEWEST = 20  # pairs from which a temperature is fitted
COLDEST, HOTTEST = np.log(0.01), np.log(100.0)  # bounds of log T


def temperature(log_odds: Float[np.ndarray, "N R"]) -> float:
    """argmin_T of the mean of -log sigmoid(log_odds / T), between 0.01 and 100. 1 with few pairs."""
    if len(log_odds) < FEWEST:
        return 1.0
    fitted = minimize_scalar(
        lambda log_t: losses(log_odds * np.exp(-log_t)).mean(), bounds=(COLDEST, HOTTEST), method="bounded"
    )
    return float(np.exp(fitted.x))


def temperatures(log_odds: Float[np.ndarray, "N R"]) -> tuple[float, float]:
    """The temperatures for the pairs 0, 2, 4, ... and 1, 3, 5, ... Each is fitted on the other half."""
    return temperature(log_odds[1::2]), temperature(log_odds[::2])


def tempered(log_odds: Float[np.ndarray, "N R"]) -> Float[np.ndarray, "N R"]:
    """The log-odds over one temperature, fitted on other pairs. The order of the pairs decides the halves."""
    even, odd = temperatures(log_odds)
    divisor = np.where(np.arange(len(log_odds)) % 2, odd, even)
    return log_odds / divisor[:, None]


def tempered_losses(log_odds: Float[np.ndarray, "N R"]) -> Float[np.ndarray, "N R"]:
    """-log P(y+ > y-) in nats, after one temperature."""
    return losses(tempered(log_odds))


def confident_half(log_odds: Float[np.ndarray, "N R"]) -> float:
    """Accuracy on the half of the pairs whose log-odds are farthest from 0, by the mean over groups of votes."""
    size = np.abs(log_odds).mean(1)
    kept = np.argsort(-size, kind="stable")[: -(-len(size) // 2)]
    return float(wins(log_odds[kept]).mean())
