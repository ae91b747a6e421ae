"""Attention of new tokens over themselves and over regions of earlier keys and values.

Letters: P prefixes (rows), G branches per prefix, T new tokens, S earlier tokens, N query heads, K key/value
heads, R = N / K query heads per key/value head, H head size.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

KEPT = "attention"  # name of results that remat may keep, so that attention is not made again
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


def attend_at_once(
    q: Float[Array, "P G T N H"],
    k: Float[Array, "P G T K H"],
    v: Float[Array, "P G T K H"],
    regions: tuple[Region, ...],
    segments: Int[Array, "P G T"] | None = None,
    start: int = 0,
) -> tuple[Float[Array, "P G T N H"], Float[Array, "P G T K R"]]:
    """softmax(q k^T / sqrt(H)) v over all regions and causally over the new tokens, under one softmax.

    Of the new tokens, only those of one segment see each other, where a branch holds several. Queries may be fewer:
    the new tokens from number `start` on. Also returns the logarithm of each query's sum of exponentiated scores.

    Scores and softmax are float32, all made at a time. The regions are joined by their common maximum and
    denominator, so no key or value is concatenated or repeated.
    """
    P, G, T, N, H = q.shape
    q = _scaled(q, k)
    regions, scores = _all_scores(q, k, v, regions, segments, start)
    tops = [_common(score.max(-1)) for score in scores]
    top = jax.lax.stop_gradient(functools.reduce(jnp.maximum, tops))
    weights = [jnp.exp(score - _native(top, score.shape[1])[..., None]) for score in scores]
    total = sum(_common(weight.sum(-1)) for weight in weights)
    out = sum(_common(_mix(weight.astype(q.dtype), region)) for weight, region in zip(weights, regions))
    out = (out / total[..., None]).reshape(P, G, T, N, H).astype(q.dtype)
    return out, top + jnp.log(total)


def gradient_at_once(q, k, v, regions, segments, start, out, log_sum, d_out):
    """Gradients of `attend_at_once` by q, k, v and every region's (k, v), given its results.

    With weights w = exp(score - log_sum): d_score = w (d_w - sum of d_out out), as in FlashAttention.
    """
    P, G, T, N, H = q.shape
    q = _scaled(q, k)
    d_out, out = d_out.reshape(q.shape), out.reshape(q.shape)
    balance = jnp.einsum("...h,...h->...", d_out, out, preferred_element_type=jnp.float32)
    d_q, d_regions = 0.0, []
    for region, score in zip(*_all_scores(q, k, v, regions, segments, start)):
        rows = score.shape[1]
        weight = jnp.exp(score - _native(log_sum, rows)[..., None])
        d_weight = _scores(d_out, region._replace(k=region.v.swapaxes(-1, -2)))
        d_score = (weight * (d_weight - _native(balance, rows)[..., None])).astype(q.dtype)
        by_row = [x.reshape(P, rows, G // rows, *x.shape[2:]) for x in (q, d_out)]
        d_k = jnp.einsum("pukgtrs,pugtkrh->pukhs", d_score, by_row[0])
        d_v = jnp.einsum("pukgtrs,pugtkrh->puksh", weight.astype(q.dtype), by_row[1])
        d_q = d_q + _common(_mix(d_score, region._replace(v=region.k.swapaxes(-1, -2))))
        d_regions.append((d_k, d_v))
    d_q = (d_q * H**-0.5).reshape(P, G, T, N, H).astype(q.dtype)
    d_k, d_v = d_regions[0]
    return d_q, d_k.transpose(0, 1, 4, 2, 3), d_v.transpose(0, 1, 3, 2, 4), d_regions[1:]


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def attend_in_blocks(q, k, v, regions, segments, size: int, together: int) -> Float[Array, "P G T N H"]:
    """`attend`, one row, `together` of its branches and `size` queries of each at a time.

    Keys behind a block's last query are left out. The gradient makes the scores again.
    """
    return _blocks_forward(q, k, v, regions, segments, size, together)[0]


def _blocks_forward(q, k, v, regions, segments, size, together):
    def bundle(carry, row, branches):
        (q, k, v, segments), before = branches[:4], _together(row, branches[4])
        parts = []
        for a, b in _cuts(q.shape[2], size):
            mine = None if segments is None else segments[:, :, :b]
            parts.append(attend_at_once(q[:, :, a:b], k[:, :, :b], v[:, :, :b], before, mine, a))
        return carry, tuple(jnp.concatenate(part, 2) for part in zip(*parts))

    shared, own = _apart(regions)
    _, found = _over_bundles(bundle, (), shared, (q, k, v, segments, own), together)
    out, log_sum = (checkpoint_name(x, KEPT) for x in found)
    return out, (q, k, v, regions, segments, out, log_sum)


def _blocks_backward(size, together, kept, d_out):
    q, k, v, regions, segments, out, log_sum = kept

    def bundle(sums, row, branches):
        (q, k, v, segments, out, log_sum, d_out), before = branches[:7], _together(row, branches[7])
        d_k, d_v, d_q, d_before = jnp.zeros_like(k), jnp.zeros_like(v), [], None
        for a, b in _cuts(q.shape[2], size):
            mine = None if segments is None else segments[:, :, :b]
            done = (x[:, :, a:b] for x in (out, log_sum, d_out))
            found = gradient_at_once(q[:, :, a:b], k[:, :, :b], v[:, :, :b], before, mine, a, *done)
            d_q.append(found[0])
            d_k, d_v = d_k.at[:, :, :b].add(found[1]), d_v.at[:, :, :b].add(found[2])
            d_before = found[3] if d_before is None else jax.tree.map(jnp.add, d_before, found[3])
        d_shared = [d for d, region in zip(d_before, row) if region is not None]
        d_own = [d for d, region in zip(d_before, row) if region is None]
        return jax.tree.map(jnp.add, sums, d_shared), (jnp.concatenate(d_q, 2), d_k, d_v, d_own)

    shared, own = _apart(regions)
    zeros = [tuple(jnp.zeros((1, *x.shape[1:]), jnp.float32) for x in (r.k, r.v)) for r in shared if r is not None]
    branches = (q, k, v, segments, out, log_sum, d_out, own)
    d_shared, (d_q, d_k, d_v, d_own) = _over_bundles(bundle, zeros, shared, branches, together)
    d_shared, d_own = iter(jax.tree.map(lambda x: x.astype(q.dtype), d_shared)), iter(d_own)
    d_regions = tuple(Region(*next(d_own if region is None else d_shared), None) for region in shared)
    return d_q, d_k, d_v, d_regions, None


attend_in_blocks.defvjp(_blocks_forward, _blocks_backward)


def _cuts(total: int, size: int) -> list[tuple[int, int]]:
    """Starts and ends of equal blocks of at most `size`."""
    count = -(-total // size)
    edges = [total * i // count for i in range(count + 1)]
    return list(zip(edges, edges[1:]))


def _apart(regions: tuple[Region, ...]) -> tuple[list, list]:
    """Shared regions and own ones, with None where the other list has the region; lengths by branch or row."""

    def with_length(r):
        return r if r.length is None else r._replace(length=jnp.broadcast_to(r.length, r.k.shape[:2]))

    regions = [with_length(r) for r in regions]
    shared = [r if r.k.shape[1] == 1 else None for r in regions]
    return shared, [None if r.k.shape[1] == 1 else r for r in regions]


def _together(shared: list, own: list) -> tuple[Region, ...]:
    return tuple(mine if ours is None else ours for ours, mine in zip(shared, own))


def _over_bundles(body, zeros, shared, branches, together: int):
    """body(sums, row's shared regions, bundle of its branches) -> sums, results, over rows and bundles in turn.

    Sums start as `zeros` in each row. Returns them by row and the results by branch, [P G ...].
    """

    def bundles(x):
        return x.reshape(x.shape[0], -1, 1, together, *x.shape[2:])

    def one_row(_, row):
        ours, mine = jax.tree.map(lambda x: x[None], row[0]), row[1]
        return None, jax.lax.scan(lambda sums, bundle: body(sums, ours, bundle), zeros, mine)

    _, (sums, found) = jax.lax.scan(one_row, None, (shared, jax.tree.map(bundles, branches)))
    return jax.tree.map(lambda x: x[:, 0], sums), jax.tree.map(lambda x: x.reshape(x.shape[0], -1, *x.shape[4:]), found)


def _scaled(q: Float[Array, "P G T N H"], k) -> Float[Array, "P G T K R H"]:
    P, G, T, N, H = q.shape
    return (q * H**-0.5).reshape(P, G, T, k.shape[3], -1, H)


def _all_scores(q: Float[Array, "P G T K R H"], k, v, regions, segments, start):
    """Regions, the new tokens first, and masked scores of queries with each, [P Gr K G/Gr T R S]."""
    at = start + jnp.arange(q.shape[2])
    seen = jnp.arange(k.shape[2]) <= at[:, None]  # [T, S]
    if segments is not None:
        of_queries = segments[:, :, start : start + q.shape[2]]
        seen = seen & (of_queries[..., None] == segments[:, :, None])  # [P, G, T, S]
        seen = seen[:, :, None, None]
    regions = (as_region(k, v), *regions)
    scores = [jnp.where(seen[..., None, :], _scores(q, regions[0]), MASKED)]
    for region in regions[1:]:
        score = _scores(q, region)
        if region.length is not None:
            seen = jnp.arange(region.v.shape[3]) < region.length[..., None]  # [P, Gr, S]
            score = jnp.where(seen[:, :, None, None, None, None], score, MASKED)
        scores.append(score)
    return regions, scores


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
