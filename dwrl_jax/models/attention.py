"""Attention of new tokens over themselves and over regions of earlier keys and values.

Letters: P prefixes (rows), G branches per prefix, T new tokens, S earlier tokens, N query heads, K key/value
heads, R = N / K query heads per key/value head, H head size.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

BLOCK_BYTES = 4 * 2**20  # of scores that are made at a time on a CPU
MASKED = -1e30  # finite, so that a fully masked region has a zero gradient instead of nan


class Region(NamedTuple):
    """Keys and values of earlier tokens; a branch sees the first `length` of them.

    With one branch (`Gr = 1`) the region is shared by all G branches of its row and never copied per branch.
    A leading layer axis stands in front of `k` and `v` outside the layer stack.
    """

    k: Float[Array, "*layers P Gr S K H"]
    v: Float[Array, "*layers P Gr S K H"]
    length: Int[Array, "P Gr"]


def attend(
    q: Float[Array, "P G T N H"],
    k: Float[Array, "P G T K H"],
    v: Float[Array, "P G T K H"],
    regions: tuple[Region, ...],
) -> Float[Array, "P G T N H"]:
    """softmax(q k^T / sqrt(H)) v over all regions and causally over the new tokens, under one softmax.

    Scores and softmax are float32. The regions are joined by their common maximum and denominator, so no
    key or value is concatenated or repeated. On a CPU, scores that its cache cannot hold are made in blocks.
    """
    P, G, T, N, _ = q.shape
    per_query = 4 * N * (T + sum(region.k.shape[2] for region in regions))  # bytes of scores
    if P * G * T * per_query <= BLOCK_BYTES:
        return attend_at_once(q, k, v, regions)
    blocked = functools.partial(attend_in_blocks, size=max(min(T, BLOCK_BYTES // per_query), 1))
    return jax.lax.platform_dependent(q, k, v, regions, cpu=blocked, default=attend_at_once)


def attend_in_blocks(q, k, v, regions, size) -> Float[Array, "P G T N H"]:
    """`attend`, one row, one branch and at most `size` queries at a time; the gradient makes the scores again."""
    P, G, T, N, H = q.shape
    shared = [region.k.shape[1] == 1 for region in regions]
    regions = tuple(region._replace(length=jnp.broadcast_to(region.length, region.k.shape[:2])) for region in regions)
    blocks = -(-T // size)
    size = -(-T // blocks)
    padded = jnp.pad(q, ((0, 0), (0, 0), (0, blocks * size - T), (0, 0), (0, 0)))
    starts = jnp.arange(blocks) * size

    def one_row(row):
        queries, keys, values, seen = row
        of_row = [jax.tree.map(lambda x: x[0], region) if s else None for region, s in zip(seen, shared)]
        of_branch = [None if s else region for region, s in zip(seen, shared)]

        def one_branch(branch):
            queries, keys, values, own = branch
            at_hand = tuple(jax.tree.map(lambda x: x[None, None], o or r) for o, r in zip(own, of_row))

            @jax.checkpoint
            def one_block(block):
                queries, start = block
                return attend_at_once(queries[None, None], keys[None, None], values[None, None], at_hand, start)[0, 0]

            return jax.lax.map(one_block, (queries.reshape(blocks, size, N, H), starts))

        return jax.lax.map(one_branch, (queries, keys, values, of_branch))

    return jax.lax.map(one_row, (padded, k, v, regions)).reshape(P, G, -1, N, H)[:, :, :T]


def attend_at_once(q, k, v, regions, start=0) -> Float[Array, "P G T N H"]:
    """`attend` for queries that are the new tokens from number `start` on, all scores at a time."""
    P, G, T, N, H = q.shape
    K = k.shape[-2]
    q = q.reshape(P, G, T, K, N // K, H) * H**-0.5
    causal = jnp.arange(k.shape[2]) <= start + jnp.arange(T)[:, None]
    scores = [jnp.where(causal[:, None, :], _scores(q, k), MASKED)]
    values = [v]
    for region in regions:
        seen = jnp.arange(region.k.shape[2]) < region.length[..., None]  # [P, Gr, S]
        scores.append(jnp.where(seen[:, None, :, None, None, :], _scores(q, region.k), MASKED))
        values.append(region.v)
    top = jax.lax.stop_gradient(_maximum([s.max(-1, keepdims=True) for s in scores]))
    weights = [jnp.exp(s - top) for s in scores]
    total = sum(w.sum(-1) for w in weights)  # [P, K, G, T, R]
    out = sum(_mix(w.astype(q.dtype), value) for w, value in zip(weights, values))
    out = out / total[..., None]
    return out.transpose(0, 2, 3, 1, 4, 5).reshape(P, G, T, N, H).astype(q.dtype)


def _maximum(arrays):
    top = arrays[0]
    for array in arrays[1:]:
        top = jnp.maximum(top, array)
    return top


def _scores(q, k) -> Float[Array, "P K G T R S"]:
    """Scaled dot products; a shared region (one branch) meets all branches in one matrix product."""
    subscripts = "pgtkrh,pskh->pkgtrs" if k.shape[1] == 1 else "pgtkrh,pgskh->pkgtrs"
    k = k[:, 0] if k.shape[1] == 1 else k
    return jnp.einsum(subscripts, q, k, preferred_element_type=jnp.float32)


def _mix(weights, v) -> Float[Array, "P K G T R H"]:
    """Weighted sums of values, the counterpart of `_scores`."""
    subscripts = "pkgtrs,pskh->pkgtrh" if v.shape[1] == 1 else "pkgtrs,pgskh->pkgtrh"
    v = v[:, 0] if v.shape[1] == 1 else v
    return jnp.einsum(subscripts, weights, v, preferred_element_type=jnp.float32)
