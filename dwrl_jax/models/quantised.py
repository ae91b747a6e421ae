"""Frozen matrices in few bits: int8, or nf4 with its scales in 8 bits (QLoRA, arXiv 2305.14314).

A matrix is kept as [inputs, outputs], where an axis of several groups, such as heads and their size, is a single one.
Its narrow axis is the model's width, "embed"; the other one is its long axis.

    int8   w = scale[output] code, code in -127 to 127, scale = max |w| / 127 over the inputs
    nf4    w = scale[block] LEVELS[code], scale = max |w| over a block: 64 numbers along the long axis
           scale[block] = offset + group[i] code[block] / 127 over the blocks at i of the narrow axis

A block is shorter, the largest divisor up to 64, where 64 does not divide a head or the feed-forward's width. So no
block crosses a head, and a mesh splits matrices in few bits as it splits others. QLoRA's groups are 256 blocks that
follow each other in memory; ours are those of a row or column, because each device then has all that it needs.

Memory is 1 byte for a number in int8. In nf4 it is 1/2 + 1/64 + 4 / (length of the long axis) bytes, so about 0.52.

Why not qwix (0.1.8): it keeps the scales of nf4 in floats, and its provider rewrites the products of a whole model
while they are traced. So what a backward pass keeps, and what a loop over tokens reads, would not be ours to choose.
"""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from dwrl_jax.models.parameters import partitioned

KINDS = ("int8", "nf4")
BLOCK = 64
LEVELS = (  # appendix E: quantiles of a normal distribution, between -1 and 1, with a zero
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
MIDDLES = tuple((low + high) / 2 for low, high in zip(LEVELS, LEVELS[1:]))


class Layout(NamedTuple):
    """How a kernel [inputs..., outputs...] becomes a matrix, from the names of its axes."""

    names: tuple[str, str]
    sizes: tuple[int, int]
    long: int  # the long axis, 0 or 1
    block: int


def layout(shape: tuple[int, ...], names: tuple[str, ...]) -> Layout:
    """The layout of a kernel with these logical axes, of which the first or the last is "embed"."""
    if names[0] == "embed":
        sizes, joined, inner, long = (shape[0], math.prod(shape[1:])), (names[0], names[1]), shape[-1], 1
    else:
        sizes, joined, inner, long = (math.prod(shape[:-1]), shape[-1]), (names[0], names[-1]), shape[-2], 0
    block = next(size for size in range(min(BLOCK, inner), 0, -1) if inner % size == 0)
    return Layout(joined, sizes, long, block)


def quantised(kernel: Array, kind: str, names: tuple[str, ...]) -> dict[str, Array]:
    """The parts of a kernel in few bits. `names` are those of its axes."""
    how = layout(kernel.shape, names)
    return (_to_int8 if kind == "int8" else _to_nf4)(kernel.astype(jnp.float32).reshape(how.sizes), how)


def restored(kind: str, shape: tuple[int, ...], names: tuple[str, ...], dtype, parts: dict[str, Array]) -> Array:
    """The kernel that the parts stand for, rounded to `dtype`."""
    return (_from_int8 if kind == "int8" else _from_nf4)(parts, layout(shape, names)).astype(dtype).reshape(shape)


def part_names(kind: str, how: Layout) -> dict[str, tuple[str, ...]]:
    """The logical axes of each part."""
    if kind == "int8":
        return {"codes": how.names, "scales": how.names[1:]}
    return {"codes": how.names, "scales": how.names, "groups": (how.names[1 - how.long],), "offset": ()}


def _to_int8(matrix: Float[Array, "I O"], how: Layout):
    scales = jnp.abs(matrix).max(0) / 127
    return {"codes": jnp.round(matrix / jnp.where(scales > 0, scales, 1)).astype(jnp.int8), "scales": scales}


def _from_int8(parts, how: Layout) -> Float[Array, "I O"]:
    return parts["codes"] * parts["scales"]


def _to_nf4(matrix: Float[Array, "I O"], how: Layout):
    within = how.long + 1
    blocks = _split(matrix, how.long, how.block)
    scales = jnp.abs(blocks).max(within)
    offset = scales.mean()
    groups = jnp.abs(scales - offset).max(how.long)
    ratio = (scales - offset) / jnp.expand_dims(jnp.where(groups > 0, groups, 1), how.long)
    codes = nearest(blocks / jnp.expand_dims(jnp.where(scales > 0, scales, 1), within))
    return {
        "codes": packed(codes, within).reshape(_sizes(matrix.shape, how.long, -1)),
        "scales": jnp.round(127 * ratio).astype(jnp.int8),
        "groups": groups,
        "offset": offset,
    }


def _from_nf4(parts, how: Layout) -> Float[Array, "I O"]:
    within = how.long + 1
    codes = unpacked(_split(parts["codes"], how.long, -(-how.block // 2)), within, how.block)
    scales = parts["offset"] + jnp.expand_dims(parts["groups"], how.long) / 127 * parts["scales"]
    return (level(codes) * jnp.expand_dims(scales, within)).reshape(how.sizes)


def nearest(x: Float[Array, "..."]) -> UInt8[Array, "..."]:
    """The code of the level that is nearest to each number between -1 and 1."""
    return sum((x > middle).astype(jnp.uint8) for middle in MIDDLES)


def level(codes: UInt8[Array, "..."]) -> Float[Array, "..."]:
    """LEVELS[codes], by the bits of the codes: accelerators choose faster than they look up."""
    ones = (codes & 1).astype(jnp.float32)  # no choice of constants: a scan would lay them out, as large as `codes`
    values = [low * (1 - ones) + high * ones for low, high in zip(LEVELS[::2], LEVELS[1::2])]
    for bit in (2, 4, 8):
        chosen = (codes & bit).astype(bool)
        values = [jnp.where(chosen, high, low) for low, high in zip(values[::2], values[1::2])]
    return values[0]


def packed(codes: UInt8[Array, "..."], axis: int) -> UInt8[Array, "..."]:
    """Two codes in a byte: the axis's first half in the low bits, its second half, padded by a code, in the high."""
    size = codes.shape[axis]
    if size % 2:
        codes = jnp.pad(codes, [(0, int(i == axis)) for i in range(codes.ndim)])
    low, high = jnp.split(codes, 2, axis)
    return low | high << 4


def unpacked(codes: UInt8[Array, "..."], axis: int, size: int) -> UInt8[Array, "..."]:
    """The `size` codes that were packed along the axis."""
    both = jnp.concatenate([codes & 15, codes >> 4], axis)
    return jax.lax.slice_in_dim(both, 0, size, axis=axis)


def _split(x: Array, axis: int, size: int) -> Array:
    return x.reshape(*x.shape[:axis], -1, size, *x.shape[axis + 1 :])


def _sizes(shape: tuple[int, ...], axis: int, size: int) -> tuple[int, ...]:
    return (*shape[:axis], size, *shape[axis + 1 :])


class Dense(nn.Module):
    """nn.DenseGeneral with a kernel in few bits, which is restored for the product and is not kept.

    A backward pass restores it again. The kernel gets no gradient.
    """

    config: object  # a ModelConfig
    features: tuple[int, ...]
    axes: tuple[str, ...]
    inputs: int
    use_bias: bool

    @nn.compact
    def __call__(self, x: Float[Array, "*rows I"]) -> Float[Array, "*rows O"]:
        c, shape = self.config, (*x.shape[-self.inputs :], *self.features)
        names = part_names(c.quantised, layout(shape, self.axes))

        def begin(_):
            parts = quantised(jnp.zeros(shape), c.quantised, self.axes)
            return {part: nn.LogicallyPartitioned(x, names[part]) for part, x in parts.items()}

        parts, x = self.param("kernel", begin), x.astype(c.dtype)

        def product(x, parts):
            kernel = restored(c.quantised, shape, self.axes, c.param_dtype, parts)
            return jnp.tensordot(x, kernel.astype(c.dtype), self.inputs)

        y = jax.checkpoint(product, prevent_cse=False)(x, jax.lax.stop_gradient(parts))
        if not self.use_bias:
            return y
        init = partitioned(*self.axes[self.inputs :], init=nn.initializers.zeros)
        return y + self.param("bias", init, self.features, jnp.dtype(c.param_dtype)).astype(c.dtype)
