"""Log-probabilities of chosen tokens, in chunks: the `[tokens, vocabulary]` array never exists whole."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

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

    Rows are taken `chunk` at a time and recomputed in the backward pass, so memory is `chunk * V` in both.
    """
    rows = targets.shape[:-1]
    flat_hidden = hidden.reshape(-1, hidden.shape[-1])
    flat_targets = targets.reshape(-1, targets.shape[-1])
    count = flat_hidden.shape[0]
    chunk = min(chunk, count)
    padding = -count % chunk
    flat_hidden = jnp.pad(flat_hidden, ((0, padding), (0, 0))).reshape(-1, chunk, hidden.shape[-1])
    flat_targets = jnp.pad(flat_targets, ((0, padding), (0, 0))).reshape(-1, chunk, targets.shape[-1])

    @jax.checkpoint
    def one_chunk(pair):
        h, t = pair
        scaled = logits(h, table) / temperature
        all_logps = jax.nn.log_softmax(scaled, -1)
        logp = jnp.take_along_axis(all_logps, t, -1)
        entropy = -(jnp.exp(all_logps) * all_logps).sum(-1)
        return logp, entropy

    logp, entropy = jax.lax.map(one_chunk, (flat_hidden, flat_targets))
    logp = logp.reshape(-1, targets.shape[-1])[:count].reshape(targets.shape)
    return logp, entropy.reshape(-1)[:count].reshape(rows)
