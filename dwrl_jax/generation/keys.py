"""Sampling keys. A thought depends only on its key, and never on the rest of the batch or on the machines.

The key of a training run is made from (seed, stream, step, pair, side, sample) by `fold_in`. The key of a request is
made from (seed, content, vote). The position in the thought is folded in when a token is drawn.
"""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt32

TRAINING, HELD_OUT, DROPOUT = 0, 1, 2  # streams


def sampling_key(seed: int, stream: int, step: int) -> Array:
    """The key of a step in a stream, which is TRAINING, HELD_OUT or DROPOUT."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream), step)


def pair_keys(key: Array, pair_id: Int[Array, " B"], sides: int, group_size: int) -> Array:
    """A key for each thought [B * sides, group_size], from (pair, side, sample). `key` is that of `sampling_key`."""

    def thought_key(pair, side, sample):
        return jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, pair), side), sample)

    over_samples = jax.vmap(thought_key, (None, None, 0))
    over_sides = jax.vmap(over_samples, (None, 0, None))
    over_pairs = jax.vmap(over_sides, (0, None, None))
    return over_pairs(pair_id, jnp.arange(sides), jnp.arange(group_size)).reshape(-1, group_size)


def content_seed(prefix: Int[np.ndarray, " L"]) -> UInt32[np.ndarray, "2"]:
    """The seed of a request's thoughts: 64 bits of the SHA-256 of its prefix's token ids."""
    digest = hashlib.sha256(np.ascontiguousarray(prefix, "<i4").tobytes()).digest()
    return np.frombuffer(digest[:8], "<u4").astype(np.uint32)


def content_keys(seed: int, content: UInt32[Array, "P 2"], votes: int, first: int = 0) -> Array:
    """A key for each thought [P, votes], from (seed, `content_seed` of the prefix, vote). Votes count from `first`."""

    def thought_key(words, vote):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), words[0]), words[1])
        return jax.random.fold_in(key, vote)

    return jax.vmap(jax.vmap(thought_key, (None, 0)), (0, None))(content, first + jnp.arange(votes))
