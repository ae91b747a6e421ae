"""Parity of the accelerators' fused attention with all scores at once.

The TPU's kernels run interpreted, the GPU's call without cuDNN; what is tested is what we hand to them: keys, masks,
lengths, heads and padding. The last test compiles for a TPU where its compiler is installed, without one.
"""

import functools
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dwrl_jax.models.attention import Region, Window, as_region, kernels
from tests.models.test_attention import all_scores, value_and_gradient
from tests.small import assert_trees_close

BACKENDS = {
    "splash": functools.partial(kernels.splash, interpret=True),
    "cudnn": functools.partial(kernels.cudnn, implementation="xla"),
}


def inputs(*regions, P=2, G=3, T=11, N=4, K=2, H=8, segments=None, dtype=jnp.float32, window=None):
    """Random tokens; a region is given by its number of branches, its size and its lengths."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    def region(branches, size, lengths=None):
        lengths = None if lengths is None else jnp.asarray(lengths)
        return as_region(normal(P, branches, size, K, H), normal(P, branches, size, K, H), lengths)

    new = normal(P, G, T, N, H), normal(P, G, T, K, H), normal(P, G, T, K, H)
    made = *new, tuple(region(*r) for r in regions), None if segments is None else jnp.asarray(segments)
    if window is None:
        return made
    before = sum((r.v.shape[3] if r.length is None else r.length for r in made[3]), jnp.zeros((P, G), int))
    return *made, Window(jnp.int32(window), before[..., None] + jnp.arange(T))


SHARED = (1, 9, [[4], [0]])
OWN = (3, 5, [[0, 5, 2], [1, 3, 4]])
SEGMENTS = [[[0] * 11, [0] * 4 + [1] * 7, [2] * 3 + [5] * 6 + [-1] * 2], [[3] * 2 + [4] * 9, [1] * 11, [7] * 10 + [8]]]
LONG = (1, 140, [[140], [100]])
case = functools.partial
CASES = {
    "causal": case(inputs),
    "one branch": case(inputs, G=1, T=150),
    "shared": case(inputs, (1, 9)),
    "lengths": case(inputs, SHARED),
    "own": case(inputs, OWN),
    "shared and own": case(inputs, OWN, SHARED, (1, 3), (3, 2)),
    "one length for all": case(inputs, (3, 6, [[2], [5]])),
    "segments": case(inputs, segments=SEGMENTS),
    "segments behind shared": case(inputs, SHARED, (1, 3), segments=SEGMENTS),
    "segments behind own": case(inputs, SHARED, OWN, segments=SEGMENTS),
    "window": case(inputs, window=4),
    "window behind shared and own": case(inputs, SHARED, OWN, (1, 3), window=7),
    "window in segments": case(inputs, SHARED, segments=SEGMENTS, window=3),
    "one key head": case(inputs, SHARED, K=1),
    "as many key heads": case(inputs, SHARED, N=3, K=3),
    "several blocks": case(inputs, LONG, T=190, N=2, K=1),
    "blocks of segments": case(
        inputs, LONG, T=190, N=2, K=1, segments=np.repeat(np.arange(12).reshape(2, 3, 2), 95, 2)
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_parity(case):
    arguments = CASES[case]()
    expected = value_and_gradient(all_scores, *arguments)
    for backend in BACKENDS.values():
        found = value_and_gradient(backend, *arguments)
        for one, other in zip(found, expected):
            assert_trees_close(one, other, 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_parity_in_bfloat16(backend):
    """As near to the float32 result as all scores at once are."""
    wide = inputs(SHARED, OWN)
    q, k, v, regions, _ = wide
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (q, k, v))
    halved = tuple(Region(r.k.astype(jnp.bfloat16), r.v.astype(jnp.bfloat16), r.length) for r in regions)
    found = value_and_gradient(BACKENDS[backend], *narrow, halved)
    assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(found))
    expected = value_and_gradient(all_scores, *wide)
    for a, b in zip(found, expected):
        assert_trees_close(jax.tree.map(lambda x: x.astype(jnp.float32), a), b, 2e-2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_under_scan_and_remat(backend):
    """A stack of layers, each made again for the gradient."""
    q, k, v, regions, segments = inputs(SHARED, segments=SEGMENTS)

    def stack(attention, q, k, v, regions, segments):
        @jax.checkpoint
        def layer(q, _):
            return attention(q, k, v, regions, segments), None

        return jax.lax.scan(layer, q, length=2)[0]

    expected = value_and_gradient(functools.partial(stack, all_scores), q, k, v, regions, segments)
    found = value_and_gradient(functools.partial(stack, BACKENDS[backend]), q, k, v, regions, segments)
    assert_trees_close(found, expected, 1e-5)


def fallback(function, *arguments):
    """Whether the function's program is that of all scores at once."""
    shapes = [str(jax.make_jaxpr(f)(*arguments)) for f in (function, all_scores)]
    return shapes[0] == shapes[1]


def test_what_falls_back():
    interpreted, cudnn = BACKENDS["splash"], kernels.cudnn
    assert not fallback(interpreted, *inputs(SHARED, OWN))
    assert not fallback(interpreted, *inputs(SHARED, segments=SEGMENTS))
    assert fallback(interpreted, *inputs(SHARED, OWN, segments=SEGMENTS))
    assert fallback(interpreted, *inputs((2, 5), G=4))
    assert fallback(interpreted, *inputs(SHARED, window=4))
    long = jax.eval_shape(lambda: inputs(G=8, T=16385, N=1, K=1)[:3])
    assert fallback(interpreted, *long, ())
    assert fallback(cudnn, *inputs(SHARED))
    assert fallback(cudnn, *inputs(SHARED, H=12, dtype=jnp.bfloat16))
    assert fallback(cudnn, *inputs(SHARED, H=256, dtype=jnp.bfloat16))


def test_masked_blocks_are_left_out():
    """Of 8 branches' tokens, a query's block meets its own branch's alone; the prefix it meets wholly."""
    tree = kernels._tree([inputs((1, 1024))[3][0]], [], 8, 512)
    blocks = [tree[i : i + 512, j : j + 512] for i in range(0, 4096, 512) for j in range(0, 5120, 512)]
    assert sum(bool(block.any()) for block in blocks) == 8 * (2 + 1)
    assert tree.shape == (4096, 5120)


ON_DEVICES = """
import functools
import jax
from dwrl_jax.models.attention import kernels
from tests.small import assert_trees_close
from tests.models.test_attention import value_and_gradient
from tests.models.test_kernels import all_scores, inputs, OWN, SEGMENTS, SHARED

lengths = [[9], [4], [0], [7]]
cases = [
    ((2, 2, 2), inputs((1, 9, lengths), (3, 5, OWN[2] * 2), (1, 2), P=4)),
    ((4, 1, 2), inputs((1, 9, lengths), P=4, segments=SEGMENTS * 2)),
    ((2, 2, 2), inputs((1, 9, lengths[:3]), P=3)),
]
for shape, case in cases:
    mesh = jax.make_mesh(shape, ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
    expected = value_and_gradient(all_scores, *case)
    found = value_and_gradient(functools.partial(kernels.splash, mesh=mesh, interpret=True), *case)
    assert_trees_close(found, expected, 1e-5)
    print("same on", jax.device_count(), "of", len(found[0].sharding.device_set))
"""


def test_splash_over_a_mesh():
    """Rows and heads over eight devices, and rows that the mesh does not divide."""
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", ON_DEVICES], env=env, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["same on 8 of 8"] * 2


def placed(mesh, heads, shape, dtype=jnp.bfloat16):
    """An array's shape, its rows split over the mesh and so axis `heads`, where that divides it."""
    split = [kernels.ROWS] + [None] * (len(shape) - 1)
    if heads is not None and shape[heads] % mesh.shape["tensor"] == 0:
        split[heads] = "tensor"
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*split)))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the TPU's compiler: pip install libtpu")
@pytest.mark.parametrize("case", ["shared", "own", "segments", "key heads of 64", "prefix"])
def test_tpu_compiles(case, monkeypatch):
    """The gradient at a 7B model's size on four v5e chips, none present, takes a small part of the scores' memory."""
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
    mesh = Mesh(np.array(devices).reshape(1, 2, 2), (*kernels.ROWS, "tensor"))
    P, N, L = 4, 28, 1024
    G, T = (1, L) if case == "prefix" else (8, 520)
    K, H = (2, 64) if "64" in case else (4, 128)
    sizes = {"prefix": [], "own": [(1, L), (G, 256)]}.get(case, [(1, L)])
    q, k = placed(mesh, 3, (P, G, T, N, H)), placed(mesh, 3, (P, G, T, K, H))
    regions = [(placed(mesh, 2, (P, rows, K, H, S)), placed(mesh, 2, (P, rows, K, S, H))) for rows, S in sizes]
    lengths = [placed(mesh, None, (P, rows), jnp.int32) for rows, _ in sizes]
    segments = placed(mesh, None, (P, G, T), jnp.int32) if case == "segments" else None

    def peak(attention):
        def total(floats, lengths, segments):
            *new, regions = floats
            regions = tuple(Region(*kv, length) for kv, length in zip(regions, lengths))
            return attention(*new, regions, segments).astype(jnp.float32).sum()

        compiled = jax.jit(jax.grad(total)).lower((q, k, k, regions), lengths, segments).compile()
        assert ("tpu_custom_call" in compiled.as_text()) == (attention is not all_scores)
        return compiled.memory_analysis().temp_size_in_bytes

    scores = 4 * P * N * G * T * (T + sum(S for _, S in sizes)) / mesh.size
    found, expected = peak(functools.partial(kernels.splash, mesh=mesh)), peak(all_scores)
    print(f"{case}: {found / 2**20:.0f} MiB, {expected / 2**20:.0f} with all scores at once")
    assert found < scores / 4 and found < expected / 4
