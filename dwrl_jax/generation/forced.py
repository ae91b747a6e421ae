"""Teacher forcing: one pass over shared prefixes gives the log-probability of every token of written thoughts.

The last prefix token opens each branch, so that hidden state t of a branch predicts thought token t and the
prefix pass needs no head. A branch reads

    last prefix token, thought without its end, END, the rest of the following turn

where END, the first token of what follows, is sampled by a thought that ended itself and written by us behind one
that hit the length limit; only in the first case does it count in the thought's density.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dwrl_jax.generation.packing import Packing
from dwrl_jax.generation.token_logps import token_logps
from dwrl_jax.generation.writer import Writer, content_length, last_token
from dwrl_jax.models.transformer import Prefix, output_table


class Forced(NamedTuple):
    """Log-probabilities and entropies in nats, float32, zero past a thought's length; `last` is the hidden state of
    the last token that follows each thought."""

    logp: Float[Array, "P G T"]
    entropy: Float[Array, "P G T"]
    last: Float[Array, "P G D"]


def branch_size(max_thought: int, following: int) -> int:
    """Tokens of a branch at most: the opening one, the thought, and `following` tokens behind it."""
    return 1 + max_thought + following


def teacher_forced(
    writer: Writer,
    params,
    prefix: Int[Array, "P L"],
    prefix_len: Int[Array, " P"],
    thought: Int[Array, "P G T"],
    thought_len: Int[Array, "P G"],
    following: tuple[int, ...],
    packing: Packing | None = None,
) -> Forced:
    """Thoughts and the tokens that follow each of them, in one pass; `following` begins with the end token.

    A prefix runs through the model once for its whole group; the gradient flows back through it and equals that of
    G independent sequences, also where branches are packed into fewer lanes.
    """
    rows, G, T = thought.shape
    content = content_length(writer.end, thought, thought_len)
    tokens, positions = _branches(writer, thought, content, last_token(prefix, prefix_len), prefix_len, following)
    size = tokens.shape[-1]
    start, segments = jnp.arange(G) * size, None
    if packing is not None:
        source = packing.source.reshape(rows, -1, size)
        start, segments = packing.place.reshape(rows, G), source // size
        tokens, positions = (_pick(x, jnp.maximum(source, 0)) for x in (tokens, positions))
    hidden, _ = writer.model.apply(params, tokens, positions, prefix=Prefix(prefix, prefix_len - 1), segments=segments)

    # the hidden state of a token is for the one after it, and what follows a thought is masked
    heard, targets = (hidden[:, :, :T], thought) if packing is None else (hidden, jnp.roll(tokens, -1, -1))
    logp, entropy = token_logps(
        heard, output_table(params), targets[..., None], temperature=writer.temperature, chunk=writer.chunk
    )
    logp = logp[..., 0]
    if packing is not None:
        places = jnp.minimum(start[..., None] + jnp.arange(T), hidden.shape[1] * size - 1)
        logp, entropy = _pick(logp, places), _pick(entropy, places)
    written = jnp.arange(T) < thought_len[..., None]
    last = (start + content + len(following))[..., None]
    last = jnp.take_along_axis(hidden.reshape(rows, -1, hidden.shape[-1]), last, 1)
    return Forced(jnp.where(written, logp, 0.0), jnp.where(written, entropy, 0.0), last)


def _branches(writer, thought, content, last, prefix_len, following) -> tuple[Int[Array, "P G K"], Int[Array, "P G K"]]:
    """Tokens of the branches, with what follows right behind each thought's content, and their positions."""
    rows, G, T = thought.shape
    following = jnp.asarray(following)
    index = jnp.arange(branch_size(T, len(following)))
    opened = jnp.concatenate([jnp.broadcast_to(last[:, None, None], (rows, G, 1)), thought], -1)
    body = jnp.pad(opened, ((0, 0), (0, 0), (0, len(following))))
    behind = index - (content[..., None] + 1)  # place in what follows, negative before it
    tail = jnp.where(behind < len(following), following[jnp.clip(behind, 0, len(following) - 1)], writer.pad)
    tokens = jnp.where(behind < 0, body, tail)
    return tokens, jnp.broadcast_to((prefix_len - 1)[:, None, None] + index, tokens.shape)


def _pick(x: Array, index: Int[Array, "P *rest"]) -> Array:  # noqa: F821
    """Entries of [P, ...] by their index in what follows P."""
    flat = x.reshape(x.shape[0], -1)
    return jnp.take_along_axis(flat, index.reshape(x.shape[0], -1), 1).reshape(index.shape)
