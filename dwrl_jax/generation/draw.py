"""Drawing a token from logits."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dwrl_jax.core import sharding

BLOCK = 128  # of the vocabulary, in drawing a token


def truncate(scaled: Float[Array, "*rows V"], top_k: int, top_p: float) -> Float[Array, "*rows V"]:
    """Logits with everything outside the `top_k` largest and the `top_p` nucleus at minus infinity."""
    if top_k:
        threshold = jax.lax.top_k(scaled, top_k)[0][..., -1:]
        scaled = jnp.where(scaled < threshold, -jnp.inf, scaled)
    if top_p < 1.0:
        ordered = jnp.sort(scaled, -1, descending=True)
        probability = jax.nn.softmax(ordered, -1)
        before = jnp.cumsum(probability, -1) - probability  # mass in front of each token
        threshold = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), -1, keepdims=True)
        scaled = jnp.where(scaled < threshold, -jnp.inf, scaled)
    return scaled


def categorical(keys: Array, scaled: Float[Array, "P G V"]) -> Int[Array, "P G"]:
    """A token from softmax(scaled) for each key: first its block of the vocabulary, then its place in the block.

    Two uniform numbers instead of one per token of the vocabulary, which on a CPU took a fifth of a step.
    """
    weights = jnp.exp(scaled - scaled.max(-1, keepdims=True))
    multiple = BLOCK * sharding.axis_size(sharding.TENSOR)
    weights = jnp.pad(weights, ((0, 0), (0, 0), (0, -weights.shape[-1] % multiple)))
    weights = weights.reshape(*keys.shape, -1, BLOCK)
    weights = sharding.constrain(weights, sharding.ROWS, None, sharding.TENSOR, None)
    uniform = jax.vmap(jax.vmap(lambda key: jax.random.uniform(key, (2,))))(keys)

    def invert(weights, uniform):
        """The first index at which the cumulative weight is above its share; one of weight zero never is."""
        cumulative = jnp.cumsum(weights, -1)
        return (cumulative <= uniform[..., None] * cumulative[..., -1:]).sum(-1)

    block = invert(weights.sum(-1), uniform[..., 0])
    inside = jnp.take_along_axis(weights, block[..., None, None], -2)[..., 0, :]
    return block * BLOCK + invert(inside, uniform[..., 1])


def draw(keys, position, scaled: Float[Array, "P G V"], shown: Float[Array, "P G V"]):
    """Tokens from softmax(shown) for each key and the position, and their log-probabilities by softmax(scaled)."""
    keys = jax.vmap(jax.vmap(lambda key: jax.random.fold_in(key, position)))(keys)
    token = categorical(keys, shown)
    return token, jnp.take_along_axis(scaled, token[..., None], -1)[..., 0] - jax.nn.logsumexp(scaled, -1)
