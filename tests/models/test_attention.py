"""Invariance: attention in blocks against all scores at once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dwrl_jax.models.attention import Region, Window, as_region, attend_at_once, attend_in_blocks
from dwrl_jax.models.attention.backends import attend
from tests.small import assert_trees_close


@functools.cache
def inputs(P=2, G=3, T=5, N=4, K=2, H=8, S=6):
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    def region(rows, length):
        return as_region(normal(P, rows, S, K, H), normal(P, rows, S, K, H), length)

    shared = region(1, jnp.asarray([[S], [0]]))
    own = region(G, jnp.asarray(rng.integers(0, S + 1, (P, G))))
    alike = region(G, jnp.asarray([[2], [5]]))
    full = region(G, None)
    return normal(P, G, T, N, H), normal(P, G, T, K, H), normal(P, G, T, K, H), (shared, own, alike, full)


SEGMENTS = jnp.asarray([[[0] * 5, [0] * 2 + [1] * 3, [2] + [5] * 3 + [-1]]] * 2)


# positions behind the shared and own regions; the packed texts of a lane begin there again
WINDOW = Window(jnp.int32(4), jnp.asarray(np.random.default_rng(2).integers(9, 13, (2, 3, 1)) + np.arange(5)))
PACKED = Window(jnp.int32(4), jnp.asarray([[[9, 10, 11, 12, 13], [9, 10, 9, 10, 11], [9, 9, 10, 11, 0]]] * 2))


def value_and_gradient(attention, q, k, v, regions, segments=None, window=None):
    target = jnp.asarray(np.random.default_rng(1).normal(size=q.shape), jnp.float32)

    def total(floats):
        q, k, v, keys_values = floats
        regions_now = tuple(Region(*kv, r.length) for kv, r in zip(keys_values, regions))
        out = attention(q, k, v, regions_now, segments, *([] if window is None else [window]))
        return (out * target).sum(), out

    floats = (q, k, v, [(r.k, r.v) for r in regions])
    (_, out), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(floats)
    return out, gradient


def all_scores(q, k, v, regions, segments=None, window=None):
    return attend_at_once(q, k, v, regions, segments, window=window)[0]


@pytest.fixture(
    scope="module",
    params=[(None, None), (SEGMENTS, None), (SEGMENTS, PACKED)],
    ids=["whole", "segments", "packed window"],
)
def at_once(request):
    """Segments and a window, and what `attend_at_once` makes of them."""
    return *request.param, value_and_gradient(all_scores, *inputs(), *request.param)


@pytest.mark.parametrize(("size", "together"), [(1, 1), (2, 1), (5, 1), (5, 3), (3, 3)])
def test_blocks_change_nothing(size, together, at_once):
    segments, window, expected = at_once
    if window is not None and (size, together) not in ((2, 1), (3, 3)):
        pytest.skip("two of the sizes are enough for windows")

    def in_blocks(q, k, v, regions, segments, window=None):
        return attend_in_blocks(q, k, v, regions, segments, size, together, window)

    assert_trees_close(value_and_gradient(in_blocks, *inputs(), segments, window), expected, 1e-5)


def by_hand(p, g, t, n, q, k, v, regions, segments, window):
    """One query's ordinary softmax [H] over all that it may see."""
    at, last_hidden = 0, -1 if window is None else window.positions[p, g, t] - window.size
    mine = [s for s in range(t + 1) if segments is None or segments[p, g, s] == segments[p, g, t]]
    mine = [s for s in mine if window is None or window.positions[p, g, s] > last_hidden]
    keys, values = [k[p, g, mine, n // 2]], [v[p, g, mine, n // 2]]
    for r in regions:
        branch, size = g % r.k.shape[1], r.v.shape[-2]
        length = size if r.length is None else np.broadcast_to(r.length, (2, 3))[p, g]
        near = slice(min(max(last_hidden + 1 - at, 0), length), length)
        at += length
        keys.append(r.k[p, branch, n // 2, :, near].T)
        values.append(r.v[p, branch, n // 2, near])
    scores = np.concatenate(keys) @ q[p, g, t, n] / np.sqrt(8)
    weights = np.exp(scores - scores.max())
    return weights @ np.concatenate(values) / weights.sum()


@pytest.mark.parametrize(
    ("segments", "window"),
    [(None, None), (SEGMENTS, None), (None, WINDOW), (SEGMENTS, PACKED)],
    ids=["whole", "segments", "window", "packed window"],
)
def test_attention_by_hand(segments, window):
    arguments = (*inputs(), segments, window)
    found = np.asarray(jax.jit(attend)(*arguments))
    arguments = jax.tree.map(np.asarray, arguments)
    for at in np.ndindex(*found.shape[:4]):
        np.testing.assert_allclose(found[at], by_hand(*at, *arguments), atol=1e-5)


def test_blocks_are_for_the_cpu_alone():
    shapes = jax.eval_shape(lambda: inputs.__wrapped__(T=256, S=512))
    for backend, loops in (("auto", True), ("blocks", True), ("xla", False)):
        program = jax.jit(functools.partial(attend, backend=backend)).lower(*shapes).as_text()
        assert ("stablehlo.while" in program) == loops


def test_the_tpu_kernel_is_for_passes_over_many_tokens():
    """Lowered for a TPU, none present: the kernel is called for 65 tokens, and left out for a token or a question."""

    def program(tokens):
        shapes = jax.eval_shape(lambda: inputs.__wrapped__(T=tokens))
        traced = jax.jit(functools.partial(attend, backend="splash")).trace(*shapes)
        return traced.lower(lowering_platforms=("tpu",)).as_text()

    assert "tpu_custom_call" in program(65)
    assert "tpu_custom_call" not in program(64)
