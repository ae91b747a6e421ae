"""What the modules of the decoder have in common: parameters with names of their axes, and norms.

`c` is a `ModelConfig`.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float


def partitioned(*axes, init=None):
    """An initialiser whose parameter carries the logical names of its axes."""
    return nn.with_logical_partitioning(init or nn.initializers.normal(0.02), axes)


class OffsetNorm(nn.Module):
    """x / rms(x) (offset + scale) over the last axes, in float32, with a scale that begins at 1 - offset."""

    config: object  # a ModelConfig
    axes: tuple[str, ...]

    @nn.compact
    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        c, over = self.config, tuple(range(-len(self.axes), 0))
        begin = partitioned(*self.axes, init=nn.initializers.constant(1.0 - c.norm_offset))
        scale = self.param("scale", begin, x.shape[over[0] :], jnp.dtype(c.param_dtype))
        unit = nn.RMSNorm(c.norm_eps, dtype=jnp.float32, use_scale=False, reduction_axes=over)
        return (unit(x) * (c.norm_offset + scale.astype(jnp.float32))).astype(c.dtype)


def norm(c, name: str, *axes: str) -> nn.Module:
    """The model's norm over its last axes, as a part of the module that calls this."""
    if c.norm_offset:
        return OffsetNorm(c, axes, name=name)
    scale, over = partitioned(*axes, init=nn.initializers.ones), tuple(range(-len(axes), 0))
    return nn.RMSNorm(
        c.norm_eps,
        dtype=c.dtype,
        param_dtype=c.param_dtype,
        scale_init=scale,
        reduction_axes=over,
        feature_axes=over,
        name=name,
    )
