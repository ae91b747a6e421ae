"""Log-probabilities of chosen tokens, in chunks: the `[tokens, vocabulary]` array never exists whole."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dwrl_jax import sharding
from dwrl_jax.models.transformer import logits


def token_logps(
    hidden: Float[Array, "*rows D"],
    table: Float[Array, "V D"],
    targets: Int[Array, "*rows A"],
    *,
    temperature: float = 1.0,
    chunk: int = 1024,
) -> tuple[Float[Array, "*rows A"], Float[Array, "*rows"]]:
    """log softmax(hidden table^T / temperature) at A targets per row, and the entropy of each row; float32 nats.

    Each device takes `chunk` of its rows at a time, and again in the backward pass, so memory is `chunk * V` in
    both.
    """
    rows = targets.shape[:-1]
    parts = sharding.axis_size(*sharding.ROWS)
    parts = parts if rows[0] % parts == 0 else 1
    count = math.prod(rows) // parts
    chunk = min(chunk, count)

    def in_chunks(x):
        x = jnp.pad(x.reshape(parts, count, -1), ((0, 0), (0, -count % chunk), (0, 0)))
        return x.reshape(parts, -1, chunk, x.shape[-1]).swapaxes(0, 1)

    @jax.checkpoint
    def one_chunk(pair):
        h, t = (sharding.constrain(x, sharding.ROWS, None, None) for x in pair)
        scaled = logits(h, table) / temperature
        all_logps = jax.nn.log_softmax(scaled, -1)
        logp = jnp.take_along_axis(all_logps, t, -1)
        entropy = -(jnp.exp(all_logps) * all_logps).sum(-1)
        return logp, entropy

    def whole(x, shape):
        return x.swapaxes(0, 1).reshape(parts, -1, *x.shape[3:])[:, :count].reshape(shape)

    logp, entropy = jax.lax.map(one_chunk, (in_chunks(hidden), in_chunks(targets)))
    return whole(logp, targets.shape), whole(entropy, rows)
