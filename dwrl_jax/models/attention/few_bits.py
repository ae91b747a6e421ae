"""Keys and values in 8 bits: each key and each value has a scale of its own.

    x = scale code, scale = max |x| / largest code over the head

"int8" rounds to 255 levels. "float8" has float8_e4m3fn's 3 bits of mantissa, so its error is in proportion to each
number. Scales are float32: with heads of 128 numbers they take 3 % of the memory.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

LARGEST = {"int8": 127.0, "float8": 448.0}
TYPES = {"int8": jnp.int8, "float8": jnp.float8_e4m3fn}


class FewBits(NamedTuple):
    """Keys [P Gr K H S] or values [P Gr K S H] in the place of an array. The head's axis of `scales` has size 1."""

    codes: Shaped[Array, "P Gr K _ _"]
    scales: Float[Array, "P Gr K _ _"]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape


def encode(x: Float[Array, "P Gr K _ _"], kind: str, head_axis: int) -> FewBits:
    """`x` in the type that `kind`, a name in TYPES, stands for. `head_axis` is 3 for keys and 4 for values."""
    exact = x.astype(jnp.float32)
    top = jnp.abs(exact).max(head_axis, keepdims=True)
    scales = jnp.where(top > 0, top, 1.0) / LARGEST[kind]
    codes = exact / scales
    return FewBits((jnp.round(codes) if kind == "int8" else codes).astype(TYPES[kind]), scales)


def decode(x: Float[Array, "P Gr K _ _"] | FewBits, dtype) -> Float[Array, "P Gr K _ _"]:
    """The numbers that `x` stands for, rounded to `dtype`; an array that is not in few bits as it is."""
    return (x.codes.astype(jnp.float32) * x.scales).astype(dtype) if isinstance(x, FewBits) else x


def parts(x: Float[Array, "P Gr K _ _"] | FewBits, dtype) -> tuple[Array, Float[Array, "P Gr K 1 1 1 S"] | None]:
    """The operand of a product, and what multiplies the scores or weights [P Gr K g T R S] of each key or value.

    So codes go into the product, and nothing as large as keys or values is made from them.
    """
    if not isinstance(x, FewBits):
        return x, None
    tokens = x.scales.reshape(*x.shape[:3], 1, 1, 1, -1)
    return x.codes.astype(dtype), tokens
