"""The model that writes thoughts, and what every pass over its texts needs to know of it."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Int

from dwrl_jax.models.transformer import Decoder


@dataclasses.dataclass(frozen=True)
class Writer:
    """A decoder that writes thoughts, each closed by the token `end`; `pad` fills what is not written.

    `temperature` belongs to the thoughts' density. `chunk` tokens meet the lm-head at once.
    """

    model: Decoder
    end: int
    pad: int
    temperature: float = 1.0
    chunk: int = 1024


def last_token(prefix: Int[Array, "P L"], prefix_len: Int[Array, " P"]) -> Int[Array, " P"]:
    """The last token of each prefix: it opens every branch."""
    return jnp.take_along_axis(prefix, prefix_len[:, None] - 1, 1)[:, 0]


def content_length(end: int, thought: Int[Array, "*rows T"], thought_len: Int[Array, "*rows"]) -> Int[Array, "*rows"]:
    """Thought tokens without the end token: `thought_len` less one where the thought ended itself."""
    final = jnp.take_along_axis(thought, thought_len[..., None] - 1, -1)[..., 0]
    return thought_len - (final == end)
