"""The model that writes thoughts, with the settings that every pass over its thoughts needs."""

import dataclasses
import functools

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from dwrl_jax.models.transformer import Decoder


@dataclasses.dataclass(frozen=True)
class Writer:
    """A decoder that writes thoughts. The token `end` closes a thought, and `pad` fills the places after it.

    A thought also stops by one of the tokens `stops`, with which the model ends something else, such as all its output.
    That token counts in the thought's density. Everything behind the thought is then read as if `end` stood there.
    `temperature` is that of the thoughts' density. The lm-head is applied to `chunk` tokens at a time.
    """

    model: Decoder
    end: int
    pad: int
    temperature: float = 1.0
    chunk: int = 1024
    stops: tuple[int, ...] = ()

    def stopped_by(self, token: Int[Array, "*rows"]) -> Bool[Array, "*rows"]:
        """Whether each token ends a thought."""
        return functools.reduce(jnp.logical_or, [token == stop for stop in self.stops], token == self.end)


def last_token(prefix: Int[Array, "P L"], prefix_len: Int[Array, " P"]) -> Int[Array, " P"]:
    """The last token of each prefix, which is the first token of every branch."""
    return jnp.take_along_axis(prefix, prefix_len[:, None] - 1, 1)[:, 0]


def content_length(
    writer: Writer, thought: Int[Array, "*rows T"], thought_len: Int[Array, "*rows"]
) -> Int[Array, "*rows"]:
    """The number of thought tokens without the end: `thought_len` - 1 if the last token ends the thought."""
    final = jnp.take_along_axis(thought, thought_len[..., None] - 1, -1)[..., 0]
    return thought_len - writer.stopped_by(final)
