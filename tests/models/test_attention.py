"""Invariance: attention in blocks against all scores at once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dwrl_jax.models.attention import Region, as_region, attend_at_once, attend_in_blocks
from dwrl_jax.models.attention.backends import attend
from tests.small import assert_trees_close


def inputs(P=2, G=3, T=11, N=4, K=2, H=8, S=6):
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


SEGMENTS = jnp.asarray([[[0] * 11, [0] * 4 + [1] * 7, [2] * 3 + [5] * 6 + [-1] * 2]] * 2)


def value_and_gradient(attention, q, k, v, regions, segments=None):
    target = jnp.asarray(np.random.default_rng(1).normal(size=q.shape), jnp.float32)

    def total(floats):
        q, k, v, keys_values = floats
        out = attention(q, k, v, tuple(Region(*kv, r.length) for kv, r in zip(keys_values, regions)), segments)
        return (out * target).sum(), out

    floats = (q, k, v, [(r.k, r.v) for r in regions])
    (_, out), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(floats)
    return out, gradient


@pytest.mark.parametrize("segments", [None, SEGMENTS], ids=["whole", "segments"])
@pytest.mark.parametrize(("size", "together"), [(1, 1), (4, 1), (11, 1), (11, 3), (6, 3)])
def test_blocks_change_nothing(size, together, segments):
    expected = value_and_gradient(lambda *a: attend_at_once(*a)[0], *inputs(), segments)
    found = value_and_gradient(lambda *a: attend_in_blocks(*a, size, together), *inputs(), segments)
    assert_trees_close(found, expected, 1e-5)


def test_segments_are_texts_of_their_own():
    q, k, v, regions = inputs()
    found = attend(q, k, v, regions, SEGMENTS)
    for branch, start, stop in ((0, 0, 11), (1, 0, 4), (1, 4, 11), (2, 3, 9)):
        expected = attend(*(x[:, :, start:stop] for x in (q, k, v)), regions)
        np.testing.assert_allclose(found[:, branch, start:stop], expected[:, branch], atol=1e-5)


def test_attention_by_hand():
    """One query at a time with an ordinary softmax over all that it may see."""
    q, k, v, regions = inputs()
    found = attend(q, k, v, regions)
    for p, g, t, n in np.ndindex(*found.shape[:4]):
        rows = [(r.k[p, g % r.k.shape[1]], r.v[p, g % r.v.shape[1]], r.length) for r in regions]
        rows = [(k.transpose(2, 0, 1), v.transpose(1, 0, 2), length) for k, v, length in rows]
        seen = [(x if n_ is None else x[: int(jnp.broadcast_to(n_, (2, 3))[p, g])], y) for x, y, n_ in rows]
        keys = jnp.concatenate([k[p, g, : t + 1], *(x for x, _ in seen)])[:, n // 2]
        values = jnp.concatenate([v[p, g, : t + 1], *(y[: len(x)] for x, y in seen)])[:, n // 2]
        weights = jax.nn.softmax(keys @ q[p, g, t, n] / np.sqrt(8))
        np.testing.assert_allclose(found[p, g, t, n], weights @ values, atol=1e-5)


def test_blocks_are_for_the_cpu_alone():
    shapes = jax.eval_shape(lambda: inputs(T=256, S=512))
    for backend, loops in (("auto", True), ("blocks", True), ("xla", False)):
        program = jax.jit(functools.partial(attend, backend=backend)).lower(*shapes).as_text()
        assert ("stablehlo.while" in program) == loops


def test_the_tpu_kernel_is_for_passes_over_many_tokens():
    """Lowered for a TPU, none present: the kernel is called for 65 tokens, and left out for a token or a question."""

    def program(tokens):
        shapes = jax.eval_shape(lambda: inputs(T=tokens))
        traced = jax.jit(functools.partial(attend, backend="splash")).trace(*shapes)
        return traced.lower(lowering_platforms=("tpu",)).as_text()

    assert "tpu_custom_call" in program(65)
    assert "tpu_custom_call" not in program(64)
