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
    """Keys and values of earlier tokens; a branch sees the first `length` of them, all where it is None.

    With one branch (`Gr = 1`) the region is shared by all G branches of its row and never copied per branch.
    Keys lie with their tokens last, as the product with queries reads them: a decoding loop copies nothing.
    Outside the layer stack the layers of `k` and `v` are one more leading axis, or the items of a tuple.
    """

    k: Float[Array, "*layers P Gr K H S"]
    v: Float[Array, "*layers P Gr K S H"]
    length: Int[Array, "P Gr"] | None = None


def as_region(k: Float[Array, "P G T K H"], v: Float[Array, "P G T K H"], length=None) -> Region:
    """New tokens' keys and values as a region for later ones."""
    return Region(k.transpose(0, 1, 3, 4, 2), v.transpose(0, 1, 3, 2, 4), length)


def attend(
    q: Float[Array, "P G T N H"],
    k: Float[Array, "P G T K H"],
    v: Float[Array, "P G T K H"],
    regions: tuple[Region, ...],
    segments: Int[Array, "P G T"] | None = None,
) -> Float[Array, "P G T N H"]:
    """softmax(q k^T / sqrt(H)) v over all regions and causally over the new tokens, under one softmax.

    Of the new tokens, only those of one segment see each other, where a branch holds several.

    Scores and softmax are float32. The regions are joined by their common maximum and denominator, so no
    key or value is concatenated or repeated. On a CPU, scores that its cache cannot hold are made in blocks.
    """
    P, G, T, N, _ = q.shape
    per_query = 4 * N * (T + sum(region.v.shape[3] for region in regions))  # bytes of scores
    if P * G * T * per_query <= BLOCK_BYTES:
        return attend_at_once(q, k, v, regions, segments)
    size = max(min(T, BLOCK_BYTES // per_query), 1)
    together = max(n for n in range(1, G + 1) if G % n == 0 and (n == 1 or n * T * per_query <= BLOCK_BYTES))
    blocked = functools.partial(attend_in_blocks, size=size, together=together)
    return jax.lax.platform_dependent(q, k, v, regions, segments, cpu=blocked, default=attend_at_once)


def attend_in_blocks(q, k, v, regions, segments=None, *, size, together=1) -> Float[Array, "P G T N H"]:
    """`attend`, one row, `together` of its branches and at most `size` queries of each at a time.

    The gradient makes the scores again.
    """
    P, G, T, N, H = q.shape
    blocks = -(-T // size)
    size = -(-T // blocks)
    padded = jnp.pad(q, ((0, 0), (0, 0), (0, blocks * size - T), (0, 0), (0, 0)))
    starts = jnp.arange(blocks) * size
    lengths = [r.length if r.length is None else jnp.broadcast_to(r.length, r.k.shape[:2]) for r in regions]
    regions = tuple(region._replace(length=length) for region, length in zip(regions, lengths))

    def bundles(tree):
        """Branches [P G ...] as [P, G / together, together, ...]."""
        return jax.tree.map(lambda x: x.reshape(P, -1, together, *x.shape[2:]), tree)

    shared = [region if region.k.shape[1] == 1 else None for region in regions]
    own = [None if region.k.shape[1] == 1 else bundles(region) for region in regions]

    def one_row(row):
        of_row, bundled = row

        def one_bundle(bundle):
            *branches, of_branches = jax.tree.map(lambda x: x[None], bundle)
            queries, keys, values, segments = branches
            before = tuple(mine or jax.tree.map(lambda x: x[None], ours) for mine, ours in zip(of_branches, of_row))

            @jax.checkpoint
            def one_block(block):
                queries, start = block
                return attend_at_once(queries, keys, values, before, segments, start)

            split = queries.reshape(1, together, blocks, size, N, H).transpose(2, 0, 1, 3, 4, 5)
            out = jax.lax.map(one_block, (split, starts))
            return out.transpose(1, 2, 0, 3, 4, 5).reshape(together, blocks * size, N, H)

        return jax.lax.map(one_bundle, bundled)

    branches = (bundles(padded), bundles(k), bundles(v), bundles(segments), own)
    return jax.lax.map(one_row, (shared, branches)).reshape(P, G, -1, N, H)[:, :, :T]


def attend_at_once(q, k, v, regions, segments=None, start=0) -> Float[Array, "P G T N H"]:
    """`attend` for queries that are the new tokens from number `start` on, all scores at a time.

    A region's scores stand as its one matrix product makes them, [P Gr K G/Gr T R S]: a shared one meets all
    its branches at once. What is joined, maxima, sums and mixed values, is brought to the common [P G T K R].
    """
    P, G, T, N, H = q.shape
    K = k.shape[3]
    q = (q * H**-0.5).reshape(P, G, T, K, N // K, H)
    at = start + jnp.arange(T)
    seen = jnp.arange(k.shape[2]) <= at[:, None]  # [T, S]
    if segments is not None:
        of_queries = jnp.take(segments, at, axis=2, mode="clip")
        seen = seen & (of_queries[..., None] == segments[:, :, None])  # [P, G, T, S]
        seen = seen[:, :, None, None]
    new = as_region(k, v)
    scores = [jnp.where(seen[..., None, :], _scores(q, new), MASKED)]
    for region in regions:
        score = _scores(q, region)
        if region.length is not None:
            seen = jnp.arange(region.v.shape[3]) < region.length[..., None]  # [P, Gr, S]
            score = jnp.where(seen[:, :, None, None, None, None], score, MASKED)
        scores.append(score)
    regions = (new, *regions)
    tops = [_common(score.max(-1)) for score in scores]
    top = jax.lax.stop_gradient(functools.reduce(jnp.maximum, tops))
    weights = [jnp.exp(score - _native(top, score.shape[1])[..., None]) for score in scores]
    total = sum(_common(weight.sum(-1)) for weight in weights)
    out = sum(_common(_mix(weight.astype(q.dtype), region)) for weight, region in zip(weights, regions))
    return (out / total[..., None]).reshape(P, G, T, N, H).astype(q.dtype)


def _scores(q: Float[Array, "P G T K R H"], region: Region) -> Float[Array, "P Gr K g T R S"]:
    """Scaled dot products of queries with a region's keys; g = G / Gr branches share a key."""
    P, G, T, K, R, H = q.shape
    rows = region.k.shape[1]
    q = q.reshape(P, rows, G // rows, T, K, R, H)
    return jnp.einsum("pugtkrh,pukhs->pukgtrs", q, region.k, preferred_element_type=jnp.float32)


def _mix(weights: Float[Array, "P Gr K g T R S"], region: Region) -> Float[Array, "P Gr K g T R H"]:
    """Weighted sums of a region's values."""
    return jnp.einsum("pukgtrs,puksh->pukgtrh", weights, region.v, preferred_element_type=jnp.float32)


def _common(x: Float[Array, "P Gr K g T R *H"]) -> Float[Array, "P G T K R *H"]:
    P, rows, K, g, T, R, *H = x.shape
    x = x.transpose(0, 1, 3, 4, 2, 5, *range(6, x.ndim))
    return x.reshape(P, rows * g, T, K, R, *H)


def _native(x: Float[Array, "P G T K R"], rows: int) -> Float[Array, "P Gr K g T R"]:
    P, G, T, K, R = x.shape
    return x.reshape(P, rows, G // rows, T, K, R).transpose(0, 1, 4, 2, 3, 5)
