"""Angular frequencies of the rotary embedding (RoFormer), and how they are rescaled for longer texts.

theta is the base, H the size of a head. Frequencies are in radians per position: theta^(-2i / H) without rescaling.
Each rescaling is the `rope_type` of the same name in config.json.
"""

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class Llama3:
    """Llama 3.1: frequencies that turn rarely in the original length are divided by `factor`, with a ramp between."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int

    def rescale(self, frequencies, theta):
        turns = self.original_max_position * frequencies / (2 * jnp.pi)
        keep = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        keep = jnp.clip(keep, 0.0, 1.0)
        return frequencies * (keep + (1.0 - keep) / self.factor)


@dataclasses.dataclass(frozen=True)
class Linear:
    """Position interpolation (arXiv 2306.15595): all frequencies are divided by `factor`."""

    factor: float

    def rescale(self, frequencies, theta):
        return frequencies / self.factor


@dataclasses.dataclass(frozen=True)
class Yarn:
    """YaRN (arXiv 2309.00071): as Llama 3.1, but the ramp is linear in the number i of the frequency.

    Frequencies with more than `beta_fast` turns in the original length stay, those with fewer than `beta_slow` are
    divided by `factor`. The ends of the ramp are whole numbers if `truncate`. Cosines and sines are multiplied by
    `attention_factor`.
    """

    factor: float
    original_max_position: int
    beta_fast: float
    beta_slow: float
    attention_factor: float
    truncate: bool

    def rescale(self, frequencies, theta):
        count = len(frequencies)

        def number(turns):
            """The i whose frequency makes so many turns in the original length."""
            return count * math.log(self.original_max_position / (turns * 2 * math.pi)) / math.log(theta)

        first, last = number(self.beta_fast), number(self.beta_slow)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, 2 * count - 1)
        divided = jnp.clip((jnp.arange(count) - first) / (last - first or 0.001), 0.0, 1.0)
        return frequencies * (divided / self.factor + (1.0 - divided))


def frequencies(head_dim: int, theta: float, scaling: Llama3 | Linear | Yarn | None) -> Float[Array, " H/2"]:
    exponents = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    plain = 1.0 / theta**exponents
    return plain if scaling is None else scaling.rescale(plain, theta)


def waves(angles: Float[Array, "*rows H/2"], scaling) -> tuple[Array, Array]:
    """Cosines and sines of the angles, as `rotate` takes them."""
    factor = getattr(scaling, "attention_factor", 1.0)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return (cos, sin) if factor == 1.0 else (factor * cos, factor * sin)


def kinds_of(config) -> list[str]:
    """The kinds of rope of a `ModelConfig`, of which its layers take one each; empty if all have the model's rope."""
    kinds = sorted(set(config.layer_ropes))
    return [] if kinds == ["model"] else kinds


def waves_of(config, positions: Int[Array, "P M"]) -> tuple[Array, Array]:
    """Cosines and sines for the layers of a `ModelConfig`, behind a leading axis of `kinds_of` if there are any."""
    c = config

    def of(kind):
        if kind == "none":
            still = jnp.zeros((*positions.shape, c.head_dim // 2), jnp.float32)
            return still + 1.0, still
        theta, scaling = (c.local_rope_theta, None) if kind == "local" else (c.rope_theta, c.rope_scaling)
        angles = positions[..., None].astype(jnp.float32) * frequencies(c.head_dim, theta, scaling)
        return waves(angles, scaling)

    kinds = kinds_of(c)
    return tuple(map(jnp.stack, zip(*map(of, kinds)))) if kinds else of("model")


def rotate(x: Float[Array, "*rows T heads H"], waves: tuple[Array, Array]) -> Float[Array, "*rows T heads H"]:
    """Rotary embedding of queries or keys, in the half-split layout of Hugging Face's weights."""
    cos, sin = (r[..., None, :] for r in waves)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1).astype(x.dtype)
