"""What the pairwise objectives share.

Both sides of a pair show both responses: y+ first on side 0, y- first on side 1, and `logps.answer` is the
log-probability of the right label among the two (read-out "choices").
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dwrl_jax.core.types import Logps

SUREST = -1e-7  # log-probability up to which its complement is told from zero in float32


def log_other(answer: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """log(1 - p) of log p, the log-probability of the other label, in nats."""
    return jnp.log(-jnp.expm1(jnp.minimum(answer, SUREST)))


def log_odds(answer: Float[Array, "B S G"]) -> Float[Array, " B"]:
    """log P(y+ > y-) - log P(y- > y+), where P is the mean over orders and thoughts of the right label's share."""
    return jax.nn.logsumexp(answer, (1, 2)) - jax.nn.logsumexp(log_other(answer), (1, 2))


def pairwise_metrics(logps: Logps) -> dict[str, Float[Array, " B"]]:
    """Per pair: the verdict of both orders together, and whether they disagree (one that is even, by one half)."""
    margin = log_odds(logps.answer)
    each = jax.nn.logsumexp(logps.answer, -1) - jax.nn.logsumexp(log_other(logps.answer), -1)
    return {
        "pair_accuracy": _won(margin),
        "ties": (margin == 0).astype(jnp.float32),
        "pair_nll": -jax.nn.log_sigmoid(margin),
        "margin": margin,
        "flips": jnp.abs(_won(each[:, 0]) - _won(each[:, 1])),
        "answer_mass": logps.answer_mass.mean((1, 2)),
    }


def _won(margin):
    return jnp.where(margin == 0, 0.5, margin > 0)
