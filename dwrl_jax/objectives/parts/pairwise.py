"""Metrics and log-odds of the pairwise objectives.

Both sides of a pair show both responses. Side 0 shows y+ first, and side 1 shows y- first. `logps.answer` is the
log-probability of the right label, renormalised over the two labels (read-out "choices").
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dwrl_jax.core.types import Logps

SUREST = -1e-7  # largest log p for which 1 - p differs from zero in float32


def log_other(answer: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """log(1 - p) from log p: the log-probability of the other label, in nats."""
    return jnp.log(-jnp.expm1(jnp.minimum(answer, SUREST)))


def log_odds(answer: Float[Array, "B S G"]) -> Float[Array, " B"]:
    """log P(y+ > y-) - log P(y- > y+), in nats. P is the mean over orders and thoughts of the right label's share."""
    return jax.nn.logsumexp(answer, (1, 2)) - jax.nn.logsumexp(log_other(answer), (1, 2))


def pairwise_metrics(logps: Logps) -> dict[str, Float[Array, " B"]]:
    """Metrics of each pair [B]: those of both orders together, and `flips`, whether the two orders disagree.

    If a single order is even, the two disagree by one half.
    """
    odds = log_odds(logps.answer)
    each = jax.nn.logsumexp(logps.answer, -1) - jax.nn.logsumexp(log_other(logps.answer), -1)
    return {
        "pair_accuracy": _won(odds),
        "ties": (odds == 0).astype(jnp.float32),
        "pair_nll": -jax.nn.log_sigmoid(odds),
        "log_odds": odds,
        "flips": jnp.abs(_won(each[:, 0]) - _won(each[:, 1])),
        "answer_mass": logps.answer_mass.mean((1, 2)),
    }


def _won(odds):
    return jnp.where(odds == 0, 0.5, odds > 0)
