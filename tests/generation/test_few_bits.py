"""Sampling in few bits: the numbers, the products with codes, and the density that a sample records."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dwrl_jax.core import sharding
from dwrl_jax.core.types import Logps, ThoughtBatch
from dwrl_jax.generation import sampler
from dwrl_jax.generation.keys import pair_keys
from dwrl_jax.generation.sampler import SamplerOptions, write
from dwrl_jax.models import quantised
from dwrl_jax.models.attention import Region, few_bits
from dwrl_jax.models.attention.backends import attend
from dwrl_jax.models.transformer import Decoder, axis_names, logits, output_table
from dwrl_jax.models.unstacked import matrices_in_few_bits, unstack
from dwrl_jax.objectives import dwrl
from dwrl_jax.objectives.parts.policy import log_importance
from tests.small import in_process_of_devices, lively, make_batch, make_judge

CASES = [
    ("float8", ""),
    ("int8", "int8"),
    *(pytest.param(*x, marks=pytest.mark.slow) for x in (("int8", ""), ("", "int8"))),
]


def test_exact_numbers():
    """By hand: a key's scale is its largest number over 127 or 448, and a key of zeros stays one."""
    keys = jnp.array([[127.0, -63.4, 0.6], [0.0, 0.0, 0.0]]).T.reshape(1, 1, 1, 3, 2)
    coded = few_bits.encode(keys, "int8", 3)
    np.testing.assert_array_equal(coded.codes[0, 0, 0], np.array([[127, -63, 1], [0, 0, 0]]).T)
    np.testing.assert_allclose(coded.scales[0, 0, 0], [[1.0, 1 / 127]])
    values = jnp.array([[448.0, 17.0, 0.4]]).reshape(1, 1, 1, 1, 3)
    coded = few_bits.encode(values, "float8", 4)
    np.testing.assert_array_equal(few_bits.decode(coded, "float32")[0, 0, 0], [[448.0, 16.0, 0.40625]])
    assert coded.codes.dtype.itemsize == 1 and coded.shape == values.shape


@pytest.mark.parametrize("kind", ["int8", "float8"])
@pytest.mark.parametrize("backend", ["xla", "blocks", "cudnn"])
def test_attention_to_codes_is_attention_to_what_they_stand_for(kind, backend):
    tokens = 70 if backend == "cudnn" else 5  # more than FEW
    keys = iter(jax.random.split(jax.random.key(0), 7))
    q = jax.random.normal(next(keys), (2, 3, tokens, 4, 8))
    k, v = (jax.random.normal(next(keys), (2, 3, tokens, 2, 8)) for _ in range(2))
    shared = (jax.random.normal(next(keys), (2, 1, 2, *shape)) for shape in ((8, 11), (11, 8)))
    own = (jax.random.normal(next(keys), (2, 3, 2, *shape)) for shape in ((8, 6), (6, 8)))
    lengths = jnp.array([[11], [4]]), jnp.array([[6, 2, 0], [1, 5, 6]])
    coded = [
        Region(few_bits.encode(k, kind, 3), few_bits.encode(v, kind, 4), length)
        for (k, v), length in zip((shared, own), lengths)
    ]
    plain = [Region(*(few_bits.decode(x, "float32") for x in r[:2]), r.length) for r in coded]
    found, expected = (attend(q, k, v, tuple(regions), backend=backend) for regions in (coded, plain))
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)


def few_bits_model(judge, params, weights):
    """The decoder without scan, and its parameters with matrices rounded as `weights` says."""
    config = dataclasses.replace(judge.model.config, scanned=False)
    params = unstack(params, config)
    if not weights:
        return Decoder(config), params
    names = axis_names(config)["params"]
    for layer, modules in params["params"].items():
        for name, module in modules.items() if layer.startswith("layer_") else ():
            if "kernel" in module:
                kernel, axes = module["kernel"], names[layer][name]["kernel"].names
                parts = quantised.quantised(kernel, weights, axes)
                module["kernel"] = quantised.restored(weights, kernel.shape, axes, "float32", parts)
    return Decoder(config), params


def sampled(judge, params, batch, options):
    """The drawn thoughts, and the arguments of `write`."""
    prefix, length = batch.prefix.reshape(-1, batch.prefix.shape[-1]), batch.prefix_len.reshape(-1)
    keys = pair_keys(jax.random.key(1), batch.pair_id, 2, options.group_size)
    drawn = jax.jit(lambda *given: write(judge.writer, options, *given)[0])(params, prefix, length, keys)
    return drawn, prefix, length, keys


def rounded(x, cache, axis):
    return few_bits.decode(few_bits.encode(x, cache, axis), "float32") if cache else x


def small_judge():
    judge, _ = make_judge()
    return judge, lively(judge.model.config)


@pytest.mark.parametrize(("cache", "weights"), CASES)
def test_recorded_density_is_that_of_the_rounded_model(cache, weights, monkeypatch):
    """Token by token: a step sees rounded keys and values of all earlier tokens, by matrices that are rounded."""
    monkeypatch.setattr(sampler, "SMALLEST", 4)
    judge, params = small_judge()
    batch, group, size = make_batch(), 3, 9  # the region grows once, and a few last thoughts in rows of their own
    options = SamplerOptions(group, size, cache=cache, weights=weights)
    drawn, prefix, length, keys = sampled(judge, params, batch, options)
    exact = sampled(judge, params, batch, SamplerOptions(group, size))[0]
    same = (drawn.thought == exact.thought).all(-1)
    assert same.any() and np.abs(np.asarray(drawn.logp - exact.logp))[same].max() > 1e-5, "few bits change the density"

    places = jnp.broadcast_to(jnp.arange(prefix.shape[1]), prefix.shape)
    _, (k, v) = judge.model.apply(params, prefix[:, None], places[:, None])
    before = Region(tuple(rounded(x, cache, 3) for x in k), tuple(rounded(x, cache, 4) for x in v), length[:, None] - 1)
    model, matrices = few_bits_model(judge, params, weights)
    last = jnp.take_along_axis(prefix, length[:, None] - 1, 1)
    tokens = jnp.concatenate([jnp.broadcast_to(last[:, :, None], (len(prefix), group, 1)), drawn.thought], -1)
    written, found = None, []
    step = jax.jit(model.apply)
    for t in range(int(drawn.length.max())):
        at = jnp.broadcast_to((length - 1 + t)[:, None, None], (*keys.shape, 1))
        hidden, (k, v) = step(matrices, tokens[..., t : t + 1], at, (before, written) if t else (before,))
        logp = jax.nn.log_softmax(logits(hidden[:, :, 0], output_table(matrices)) / judge.temperature)
        found.append(jnp.take_along_axis(logp, drawn.thought[..., t : t + 1], -1)[..., 0])
        new = tuple(rounded(x, cache, 3) for x in k), tuple(rounded(x, cache, 4) for x in v)
        ends = zip((written.k, written.v) if t else new, new, (4, 3))
        written = Region(*(tuple(jnp.concatenate(x, axis) for x in zip(a, b)) if t else b for a, b, axis in ends))
    inside = np.arange(size) < np.asarray(drawn.length)[..., None]
    found = np.pad(np.stack(found, -1), ((0, 0), (0, 0), (0, size - len(found))))
    np.testing.assert_allclose(np.where(inside, found, 0.0), drawn.logp, atol=2e-4)


@pytest.mark.slow
def test_same_thoughts_on_meshes():
    in_process_of_devices(thoughts_on_meshes, 8)


def thoughts_on_meshes():
    for cache, weights in (("float8", ""), ("int8", "int8")):
        _on_meshes(cache, weights)


def _on_meshes(cache, weights):
    judge, params = small_judge()
    batch = make_batch(pairs=4)
    results = []
    for sizes, spread in (((1, 1, 1), False), ((2, 2, 2), False), ((1, 4, 2), True)):
        mesh = sharding.make_mesh(dict(zip(sharding.AXES, sizes)), jax.devices()[: np.prod(sizes)])
        options = SamplerOptions(2, 12, cache=cache, weights=weights, spread=spread)
        with jax.set_mesh(mesh):
            results.append(sampled(judge, params, batch, options)[0])
    for other in results[1:]:
        np.testing.assert_array_equal(other.thought, results[0].thought)
        np.testing.assert_allclose(other.logp, results[0].logp, atol=1e-4)


def test_matrices_in_few_bits_are_all_of_them():
    judge, params = small_judge()
    config = dataclasses.replace(judge.model.config, scanned=False)
    coded, shape = matrices_in_few_bits(unstack(params, config), config, "int8")
    leaves = jax.tree_util.tree_leaves_with_path(coded["params"]["layer_0"])
    eights = {path[0].key for path, x in leaves if x.dtype == jnp.int8}
    assert eights == {"q", "k", "v", "o", "gate", "up", "down"} and shape.quantised == "int8"


def density(logits):
    return np.exp(logits) / np.exp(logits).sum()


def test_importance_weights_estimate_the_gradient_under_the_policy():
    """4,000 thoughts of a single token from another density; Eq. 14's gradient by enumeration under the policy."""
    rng = np.random.default_rng(0)
    policy, other, answer = density(rng.normal(size=5)), density(rng.normal(size=5)), rng.uniform(size=(2, 5))
    n = 4_000
    drawn = rng.choice(5, size=(1, 2, n), p=other)
    thoughts = ThoughtBatch(drawn[..., None], np.ones((1, 2, n), int), jnp.log(other)[drawn][..., None])
    logps = Logps(
        thought=jnp.log(policy)[drawn][..., None],
        answer=jnp.log(answer[np.arange(2)[:, None], drawn[0]])[None],
        entropy=jnp.zeros((1, 2, n, 1)),
        answer_mass=jnp.ones((1, 2, n)),
    )
    exact = (policy * answer).sum(1)
    share = policy * answer / exact[:, None]  # of each thought in p
    expected = exact[1] / exact.sum() * np.array([[-1.0], [1.0]]) * share

    def found(importance):
        gradient = jax.grad(
            lambda a: dwrl.score_loss(logps.replace(answer=a), thoughts, importance=importance)[0].sum()
        )
        per_thought = np.asarray(gradient(logps.answer))[0]
        return np.array([[per_thought[s][drawn[0, s] == o].sum() for o in range(5)] for s in range(2)])

    assert np.abs(found(0.0) - expected).max() > 0.05
    np.testing.assert_allclose(found(100.0), expected, atol=0.02)
    weights = np.exp(log_importance(logps, thoughts, 1.5))
    np.testing.assert_allclose(weights.mean(-1), 1.0, rtol=1e-5)
    ratio = np.minimum(policy / other, 1.5)[drawn]
    np.testing.assert_allclose(weights, ratio / ratio.mean(-1, keepdims=True), rtol=1e-4)
