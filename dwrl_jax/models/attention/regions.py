"""Attention of new tokens to themselves and to regions of earlier keys and values.

Letters: P prefixes (rows), G branches per prefix, T new tokens, S earlier tokens, N query heads, K key/value
heads, R = N / K query heads per key/value head, H head size.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from dwrl_jax.models.attention import few_bits
from dwrl_jax.models.attention.few_bits import FewBits

KEPT = "attention"  # name of the results that remat may keep, so that attention is not computed again
MASKED = -1e30  # finite, so that a fully masked region has a zero gradient instead of nan


class Region(NamedTuple):
    """Keys and values of earlier tokens. A branch sees the first `length` of them, or all if `length` is None.

    A region with a single branch (`Gr = 1`) is shared by all G branches of its row and is never copied per branch.
    The last axis of the keys is the token axis, because the product with queries reads them so: a decoding loop then
    copies nothing. Outside the layer stack `k` and `v` have a leading axis of layers, or are tuples over layers.
    Those in few bits have no gradient.
    """

    k: Float[Array, "*layers P Gr K H S"] | FewBits
    v: Float[Array, "*layers P Gr K S H"] | FewBits
    length: Int[Array, "P Gr"] | None = None


class Window(NamedTuple):
    """A sliding window: a query at position p sees the keys at positions above p - size.

    `positions` are those of the new tokens. A region's first key stands directly behind the visible keys of the region
    before it, and the first region begins at position 0.
    """

    size: Int[Array, ""]
    positions: Int[Array, "P G T"]


def as_region(k: Float[Array, "P G T K H"], v: Float[Array, "P G T K H"], length=None) -> Region:
    """The keys and values of new tokens as a region for later tokens."""
    return Region(k.transpose(0, 1, 3, 4, 2), v.transpose(0, 1, 3, 2, 4), length)


def attend_at_once(
    q: Float[Array, "P G T N H"],
    k: Float[Array, "P G T K H"],
    v: Float[Array, "P G T K H"],
    regions: tuple[Region, ...],
    segments: Int[Array, "P G T"] | None = None,
    start: int = 0,
    window: Window | None = None,
) -> tuple[Float[Array, "P G T N H"], Float[Array, "P G T K R"]]:
    """softmax(q k^T / sqrt(H)) v over all regions and causally over the new tokens, with a common softmax.

    If a branch holds several segments, a new token sees only the new tokens of its own segment. A `window` hides the
    keys that lie too far back. The queries may be fewer than the keys: they are then the new tokens from number `start`
    on. The second result is the logarithm of
    each query's sum of exponentiated scores.

    Scores and softmax are float32, and all scores are computed together. The regions share a maximum and a
    denominator, so keys and values are neither concatenated nor repeated.
    """
    P, G, T, N, H = q.shape
    q = _scaled(q, k)
    regions, scores = _all_scores(q, k, v, regions, segments, start, window)
    tops = [_common(score.max(-1)) for score in scores]
    top = jax.lax.stop_gradient(functools.reduce(jnp.maximum, tops))
    weights = [jnp.exp(score - _native(top, score.shape[1])[..., None]) for score in scores]
    total = sum(_common(weight.sum(-1)) for weight in weights)
    out = sum(_common(_mix(weight.astype(q.dtype), region)) for weight, region in zip(weights, regions))
    out = (out / total[..., None]).reshape(P, G, T, N, H).astype(q.dtype)
    return out, top + jnp.log(total)


def gradient_at_once(q, k, v, regions, segments, start, window, out, log_sum, d_out):
    """Gradients of `attend_at_once` with respect to q, k, v and every region's (k, v), given its results.

    With the weights w = exp(score - log_sum), d_score = w (d_w - sum_h d_out_h out_h), as in FlashAttention.
    """
    P, G, T, N, H = q.shape
    q = _scaled(q, k)
    d_out, out = d_out.reshape(q.shape), out.reshape(q.shape)
    balance = jnp.einsum("...h,...h->...", d_out, out, preferred_element_type=jnp.float32)
    d_q, d_regions = 0.0, []
    for region, score in zip(*_all_scores(q, k, v, regions, segments, start, window)):
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
def attend_in_blocks(
    q, k, v, regions, segments, size: int, together: int, window: Window | None = None
) -> Float[Array, "P G T N H"]:
    """`attend_at_once` in blocks: a single row, `together` of its branches and `size` queries of each at a time.

    A block leaves out the keys after its last query. The gradient computes the scores again.
    """
    return _blocks_forward(q, k, v, regions, segments, size, together, window)[0]


def _blocks_forward(q, k, v, regions, segments, size, together, window):
    def bundle(carry, row, branches):
        (q, k, v, segments, positions), before = branches[:5], _together(row, branches[5])
        parts = []
        for a, b in _cuts(q.shape[2], size):
            mine = None if segments is None else segments[:, :, :b]
            near = None if window is None else Window(window.size, positions[:, :, :b])
            parts.append(attend_at_once(q[:, :, a:b], k[:, :, :b], v[:, :, :b], before, mine, a, near))
        return carry, tuple(jnp.concatenate(part, 2) for part in zip(*parts))

    shared, private = _apart(regions)
    branches = (q, k, v, segments, window and window.positions, private)
    _, results = _over_bundles(bundle, (), shared, branches, together)
    out, log_sum = (checkpoint_name(x, KEPT) for x in results)
    return out, (q, k, v, regions, segments, window, out, log_sum)


def _blocks_backward(size, together, kept, d_out):
    q, k, v, regions, segments, window, out, log_sum = kept

    def bundle(sums, row, branches):
        (q, k, v, segments, positions, out, log_sum, d_out), before = branches[:8], _together(row, branches[8])
        d_k, d_v, d_q, d_before = jnp.zeros_like(k), jnp.zeros_like(v), [], None
        for a, b in _cuts(q.shape[2], size):
            mine = None if segments is None else segments[:, :, :b]
            near = None if window is None else Window(window.size, positions[:, :, :b])
            done = (x[:, :, a:b] for x in (out, log_sum, d_out))
            parts = gradient_at_once(q[:, :, a:b], k[:, :, :b], v[:, :, :b], before, mine, a, near, *done)
            d_q.append(parts[0])
            d_k, d_v = d_k.at[:, :, :b].add(parts[1]), d_v.at[:, :, :b].add(parts[2])
            d_before = parts[3] if d_before is None else jax.tree.map(jnp.add, d_before, parts[3])
        d_shared = [d for d, region in zip(d_before, row) if region is not None]
        d_private = [d for d, region in zip(d_before, row) if region is None]
        return jax.tree.map(jnp.add, sums, d_shared), (jnp.concatenate(d_q, 2), d_k, d_v, d_private)

    shared, private = _apart(regions)
    zeros = [tuple(jnp.zeros((1, *x.shape[1:]), jnp.float32) for x in (r.k, r.v)) for r in shared if r is not None]
    branches = (q, k, v, segments, window and window.positions, out, log_sum, d_out, private)
    d_shared, (d_q, d_k, d_v, d_private) = _over_bundles(bundle, zeros, shared, branches, together)
    d_shared, d_private = iter(jax.tree.map(lambda x: x.astype(q.dtype), d_shared)), iter(d_private)
    d_regions = tuple(Region(*next(d_private if region is None else d_shared), None) for region in shared)
    return d_q, d_k, d_v, d_regions, None, None


attend_in_blocks.defvjp(_blocks_forward, _blocks_backward)


def _cuts(total: int, size: int) -> list[tuple[int, int]]:
    """(start, end) of blocks that cover `total`, of nearly equal size and of at most `size`."""
    count = -(-total // size)
    edges = [total * i // count for i in range(count + 1)]
    return list(zip(edges, edges[1:]))


def _apart(regions: tuple[Region, ...]) -> tuple[list, list]:
    """The shared regions, and the regions with an entry for each branch.

    Each list has None where the other list has the region. Lengths have an entry for each branch of a region.
    """

    def with_length(r):
        return r if r.length is None else r._replace(length=jnp.broadcast_to(r.length, r.k.shape[:2]))

    regions = [with_length(r) for r in regions]
    shared = [r if r.k.shape[1] == 1 else None for r in regions]
    return shared, [None if r.k.shape[1] == 1 else r for r in regions]


def _together(shared: list, private: list) -> tuple[Region, ...]:
    return tuple(mine if ours is None else ours for ours, mine in zip(shared, private))


def _over_bundles(body, zeros, shared, branches, together: int):
    """Call body(sums, the row's shared regions, a bundle of its branches) -> (sums, results) for all rows and bundles.

    The sums of each row start as `zeros`. Returns the sums by row, [P ...], and the results by branch, [P G ...].
    """

    def bundles(x):
        return x.reshape(x.shape[0], -1, 1, together, *x.shape[2:])

    def one_row(_, row):
        ours, mine = jax.tree.map(lambda x: x[None], row[0]), row[1]
        return None, jax.lax.scan(lambda sums, bundle: body(sums, ours, bundle), zeros, mine)

    _, (sums, results) = jax.lax.scan(one_row, None, (shared, jax.tree.map(bundles, branches)))
    sums = jax.tree.map(lambda x: x[:, 0], sums)
    return sums, jax.tree.map(lambda x: x.reshape(x.shape[0], -1, *x.shape[4:]), results)


def _scaled(q: Float[Array, "P G T N H"], k) -> Float[Array, "P G T K R H"]:
    P, G, T, N, H = q.shape
    return (q * H**-0.5).reshape(P, G, T, k.shape[3], -1, H)


def _all_scores(q: Float[Array, "P G T K R H"], k, v, regions, segments, start, window):
    """The regions, with the new tokens as the first, and the masked scores for each, [P Gr K G/Gr T R S]."""
    at = start + jnp.arange(q.shape[2])
    queries = slice(start, start + q.shape[2])
    seen = jnp.arange(k.shape[2]) <= at[:, None]  # [T, S]
    if segments is not None:
        seen = seen & (segments[:, :, queries, None] == segments[:, :, None])  # [P, G, T, S]
    if window is not None:
        seen = seen & (window.positions[:, :, None] > window.positions[:, :, queries, None] - window.size)
    if seen.ndim > 2:
        seen = seen[:, :, None, None]
    in_windows = in_window(window, regions, queries)
    regions = (as_region(k, v), *regions)
    scores = [jnp.where(seen[..., None, :], _scores(q, regions[0]), MASKED)]
    for region, near in zip(regions[1:], in_windows):
        score = _scores(q, region)
        if region.length is not None:
            seen = jnp.arange(region.v.shape[3]) < region.length[..., None]  # [P, Gr, S]
            score = jnp.where(seen[:, :, None, None, None, None], score, MASKED)
        if near is not None:
            rows = region.k.shape[1]
            near = near.reshape(near.shape[0], rows, near.shape[1] // rows, *near.shape[2:])
            score = jnp.where(near[:, :, None, :, :, None], score, MASKED)
        scores.append(score)
    return regions, scores


def in_window(window: Window | None, regions, queries: slice = slice(None)) -> list[Bool[Array, "P G T S"] | None]:
    """For each region, which of its keys lie in the window of each query. None for each without a window."""
    if window is None:
        return [None] * len(regions)
    last_hidden, start, near = (window.positions - window.size)[:, :, queries, None], jnp.zeros((1, 1), int), []
    for region in regions:
        size = region.v.shape[3]
        near.append(start[:, :, None, None] + jnp.arange(size) > last_hidden)
        start = start + (size if region.length is None else region.length)
    return near


def _scores(q: Float[Array, "P G T K R H"], region: Region) -> Float[Array, "P Gr K g T R S"]:
    """Dot products of scaled queries with a region's keys, in float32. g = G / Gr branches share a key."""
    P, G, T, K, R, H = q.shape
    rows = region.k.shape[1]
    q = q.reshape(P, rows, G // rows, T, K, R, H)
    keys, scales = few_bits.parts(region.k, q.dtype)
    scores = jnp.einsum("pugtkrh,pukhs->pukgtrs", q, keys, preferred_element_type=jnp.float32)
    return scores if scales is None else scores * scales


def _mix(weights: Float[Array, "P Gr K g T R S"], region: Region) -> Float[Array, "P Gr K g T R H"]:
    """Weighted sums of a region's values."""
    values, scales = few_bits.parts(region.v, weights.dtype)
    weights = weights if scales is None else (weights * scales).astype(weights.dtype)
    return jnp.einsum("pukgtrs,puksh->pukgtrh", weights, values, preferred_element_type=jnp.float32)


def _common(x: Float[Array, "P Gr K g T R *H"]) -> Float[Array, "P G T K R *H"]:
    P, rows, K, g, T, R, *H = x.shape
    x = x.transpose(0, 1, 3, 4, 2, 5, *range(6, x.ndim))
    return x.reshape(P, rows * g, T, K, R, *H)


def _native(x: Float[Array, "P G T K R"], rows: int) -> Float[Array, "P Gr K g T R"]:
    P, G, T, K, R = x.shape
    return x.reshape(P, rows, G // rows, T, K, R).transpose(0, 1, 4, 2, 3, 5)
