"""Log-probabilities of chosen tokens, in chunks: the `[tokens, vocabulary]` array never exists whole."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dwrl_jax.core import sharding
from dwrl_jax.models.transformer import logits


def token_logps(
    hidden: Float[Array, "*rows D"],
    table: Float[Array, "V D"],
    targets: Int[Array, "*rows A"],
    *,
    temperature: float = 1.0,
    chunk: int = 1024,
    cap: float = 0.0,
) -> tuple[Float[Array, "*rows A"], Float[Array, "*rows"]]:
    """log softmax(hidden table^T / temperature) at A targets per row, and the entropy of each row; float32, in nats.

    `cap` is the model's `logit_cap`, as in `logits`.

    Each device computes `chunk` of its rows at a time, and computes them again in the backward pass. So both passes
    need memory for `chunk * V` numbers. The table is gathered once and not for every chunk, and its gradient is summed
    over devices once.
    """
    rows = targets.shape[:-1]
    flat = hidden.reshape(-1, hidden.shape[-1]), table, targets.reshape(-1, targets.shape[-1])
    here = functools.partial(_in_chunks, temperature=temperature, chunk=chunk, cap=cap)
    logp, entropy = sharding.by_rows(here, (True, False, True))(*flat)
    return logp.reshape(targets.shape), entropy.reshape(rows)


def _in_chunks(
    hidden: Float[Array, "R D"], table: Float[Array, "V D"], targets: Int[Array, "R A"], *, temperature, chunk, cap
) -> tuple[Float[Array, "R A"], Float[Array, " R"]]:
    count = len(hidden)
    chunk = min(chunk, count)
    table = sharding.constrain(table, sharding.TENSOR, None)

    def cut(x):
        return jnp.pad(x, ((0, -count % chunk), (0, 0))).reshape(-1, chunk, x.shape[-1])

    @jax.checkpoint
    def one_chunk(pair):
        h, t = pair
        scaled = logits(h, table, cap) / temperature
        all_logps = jax.nn.log_softmax(scaled, -1)
        logp = jnp.take_along_axis(all_logps, t, -1)
        entropy = -(jnp.exp(all_logps) * all_logps).sum(-1)
        return logp, entropy

    logp, entropy = jax.lax.map(one_chunk, (cut(hidden), cut(targets)))
    return logp.reshape(-1, targets.shape[-1])[:count], entropy.reshape(-1)[:count]
