"""Teacher forcing: a single pass over shared prefixes gives the log-probability of every token of written thoughts.

The last prefix token is the first token of each branch. So hidden state t of a branch predicts thought token t, and
the prefix needs no lm-head. The tokens of a branch are

    last prefix token, thought without its end token, END, the rest of the following turn

END is the first of the tokens that follow the thought. If the thought has its end token, END was sampled and counts in
the thought's density. If the thought stopped by another end token, that token was sampled and counts, and END stands in
its place. If the thought reached the length limit, we add END, and it does not count.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dwrl_jax.generation.packing import Packing
from dwrl_jax.generation.token_logps import token_logps
from dwrl_jax.generation.writer import Writer, content_length, last_token
from dwrl_jax.models.transformer import Prefix, output_table


class Forced(NamedTuple):
    """Log-probabilities and entropies in nats, float32, zero past a thought's length.

    `last` is the hidden state at the last of the tokens that follow each thought.
    """

    logp: Float[Array, "P G T"]
    entropy: Float[Array, "P G T"]
    last: Float[Array, "P G D"]


def branch_size(max_thought: int, following: int) -> int:
    """The largest number of tokens in a branch: the first token, the thought, and `following` tokens after it."""
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
    """Log-probabilities of thoughts, in a single pass. `following` are the tokens after each, first the end token.

    A prefix runs through the model once for its whole group. The gradient flows back through the prefix and equals
    that of G independent sequences, also if `packing` puts the branches into fewer lanes.
    """
    rows, G, T = thought.shape
    content = content_length(writer, thought, thought_len)
    tokens, positions = _branches(writer, thought, content, last_token(prefix, prefix_len), prefix_len, following)
    size = tokens.shape[-1]
    targets = jnp.pad(thought, ((0, 0), (0, 0), (0, size - T)))
    start, segments = jnp.arange(G) * size, None
    if packing is not None:
        source = packing.source.reshape(rows, -1, size)
        start, segments = packing.place.reshape(rows, G), source // size
        tokens, positions, targets = (_pick(x, jnp.maximum(source, 0)) for x in (tokens, positions, targets))
    hidden, _ = writer.model.apply(params, tokens, positions, prefix=Prefix(prefix, prefix_len - 1), segments=segments)

    # the hidden state of a token predicts the next token; results after the end of a thought are masked below
    heard, targets = (hidden[:, :, :T], thought) if packing is None else (hidden, targets)
    logp, entropy = token_logps(
        heard,
        output_table(params),
        targets[..., None],
        temperature=writer.temperature,
        chunk=writer.chunk,
        cap=writer.model.config.logit_cap,
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
    """The tokens of the branches and their positions. `following` comes directly after each thought's content."""
    rows, G, T = thought.shape
    following = jnp.asarray(following)
    index = jnp.arange(branch_size(T, len(following)))
    opened = jnp.concatenate([jnp.broadcast_to(last[:, None, None], (rows, G, 1)), thought], -1)
    body = jnp.pad(opened, ((0, 0), (0, 0), (0, len(following))))
    behind = index - (content[..., None] + 1)  # index into `following`, negative before it
    tail = jnp.where(behind < len(following), following[jnp.clip(behind, 0, len(following) - 1)], writer.pad)
    tokens = jnp.where(behind < 0, body, tail)
    return tokens, jnp.broadcast_to((prefix_len - 1)[:, None, None] + index, tokens.shape)


def _pick(x: Array, index: Int[Array, "P *rest"]) -> Array:  # noqa: F821
    """Entries of `x` [P, ...], by their index into its flattened other axes."""
    flat = x.reshape(x.shape[0], -1)
    return jnp.take_along_axis(flat, index.reshape(x.shape[0], -1), 1).reshape(index.shape)
