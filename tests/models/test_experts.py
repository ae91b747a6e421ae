"""The mixture of experts against a dense reference, and on meshes that split the experts."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dwrl_jax.core import sharding
from dwrl_jax.core.errors import UserError
from dwrl_jax.models import experts, lora
from dwrl_jax.models.families import model_config
from dwrl_jax.models.families.presets import PRESETS, shrink
from dwrl_jax.models.settings import LoraSettings
from dwrl_jax.models.transformer import Decoder, axis_names
from dwrl_jax.planning import counts
from tests.models.test_lora import moved
from tests.small import VOCAB, assert_trees_close, in_process_of_devices, lively

M, D, E, F, A = 96, 16, 8, 12, 3


def inputs():
    rng = np.random.default_rng(0)
    shapes = (M, D), (D, E), (E, D, F), (E, D, F), (E, F, D)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def grouped(x, router, *matrices):
    return experts.mixed(x, *experts.route(x, router, A, True)[:2], *matrices)


def with_adapters(matrices, rank=4):
    """Each matrix W as (W, A, B)."""
    draw = np.random.default_rng(2).normal
    shapes = [((E, m.shape[1], rank), (E, rank, m.shape[2])) for m in matrices]
    return [(m, *(jnp.asarray(draw(size=s), jnp.float32) for s in both)) for m, both in zip(matrices, shapes)]


def dense(x, router, *matrices):
    """All experts for all tokens; those that were not chosen have weight zero."""
    gate, up, down = (m[0] + m[1] @ m[2] if isinstance(m, tuple) else m for m in matrices)
    weights, chosen, _ = experts.route(x, router, A, True)
    weights = (jax.nn.one_hot(chosen, E) * weights[..., None]).sum(1)
    inner = jax.nn.silu(jnp.einsum("md,edf->mef", x, gate)) * jnp.einsum("md,edf->mef", x, up)
    return jnp.einsum("mef,efd,me->md", inner, down, weights)


@pytest.mark.parametrize("case", ["spread out", "all to the same", "adapters"])
def test_parity_with_a_dense_reference(case):
    """Values and gradients of everything, also where all tokens choose the same experts: none is dropped."""
    arguments = inputs()
    if case == "adapters":
        arguments[2:] = with_adapters(arguments[2:])
    if case == "all to the same":
        arguments[0] = jnp.abs(arguments[0])
        arguments[1] = arguments[1] * 0.01 + jnp.array([9.0] * A + [0.0] * (E - A))
        assert set(np.asarray(experts.route(*arguments[:2], A, True)[1]).ravel()) == set(range(A))
    d_out = np.random.default_rng(1).normal(size=(M, D))

    def run(function):
        def loss(arguments):
            out = function(*arguments)
            return (out * d_out).sum(), out

        (_, out), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(arguments)
        return out, gradient

    for ours, reference in zip(run(grouped), run(dense)):
        assert_trees_close(ours, reference, 1e-5)


@pytest.mark.parametrize("sizes", [[9, 0, 7, 80, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0], [96, 0, 0, 0, 0]])
def test_parity_of_blocks_with_ragged_dot(sizes):
    """Empty experts, an expert of many blocks, and rows behind the last expert's: these give zero, not NaN."""
    rng, sizes = np.random.default_rng(0), jnp.array(sizes, jnp.int32)
    rows, weights, d_out = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((96, 8), (5, 8, 6), (96, 6)))
    rows = jnp.where((jnp.arange(96) < sizes.sum())[:, None], rows, jnp.inf)

    def run(product):
        out, back = jax.vjp(lambda r, w: product(r, w, sizes), rows, weights)
        return out, *back(d_out)

    def reference(rows, weights, sizes):
        inside = (jnp.arange(96) < sizes.sum())[:, None]
        return jnp.where(inside, jax.lax.ragged_dot(jnp.where(inside, rows, 0), weights, sizes), 0)

    for ours, expected in zip(run(experts.grouped), run(reference)):
        np.testing.assert_allclose(ours, expected, atol=1e-5, rtol=0)


def test_exact_load_balance_loss():
    """As transformers computes it, without the tokens that do not count; its gradient is added, and nothing else."""
    config = dataclasses.replace(model_config(shrink(PRESETS["qwen3-30b-a3b"], VOCAB)), layers=1)
    x, router, *_ = inputs()
    _, chosen, probabilities = experts.route(x, router, A, True)
    counted = jnp.arange(M) < 40
    times = np.bincount(np.asarray(chosen)[:40].ravel(), minlength=E) / 40
    expected = E * (times * np.asarray(probabilities)[:40].mean(0)).sum()
    np.testing.assert_allclose(experts.imbalance(probabilities, chosen, counted), expected, rtol=1e-5)

    params, h = lively(config)["params"]["layers"]["experts"], np.random.default_rng(0).normal(size=(M, 64))
    params, h = jax.tree.map(lambda leaf: leaf[0], params), jnp.asarray(h, jnp.float32)

    def out(params, balance):
        part = experts.Experts(dataclasses.replace(config, balance=balance))
        return part.apply({"params": params}, h, counted).sum()

    def alone(router):
        _, chosen, probabilities = experts.route(h, router, config.experts_per_token, True)
        return 0.5 * experts.imbalance(probabilities, chosen, counted)

    plain, balanced = (jax.grad(out)(params, balance) for balance in (0.0, 0.5))
    added = jax.tree.map(jnp.subtract, balanced, plain)
    np.testing.assert_allclose(added["router"], jax.grad(alone)(params["router"]), atol=1e-5)
    assert not any(jnp.any(added[name]) for name in ("gate", "up", "down"))
    with pytest.raises(UserError, match="model.balance=0.1: the model has no experts"):
        model_config(PRESETS["qwen3-8b"], balance=0.1)


def a_pass(sizes):
    """Hidden states and gradients of a model of experts with adapters on a mesh of these sizes."""
    config = dataclasses.replace(model_config(shrink(PRESETS["qwen3-30b-a3b"], VOCAB)), remat="full", balance=0.1)
    mesh = sharding.make_mesh(dict(zip(sharding.AXES, sizes)), jax.devices()[: np.prod(sizes)])
    settings = LoraSettings(rank=4, targets=("experts",))
    adapters = moved(config, settings, lively(config))
    places = sharding.shardings(mesh, (axis_names(config), lora.trained_axes(config, settings)))
    ids = np.random.default_rng(0).integers(VOCAB, size=(8, 1, 20))
    at = np.broadcast_to(np.arange(20), ids.shape)
    weights = np.random.default_rng(1).normal(size=(*ids.shape, config.hidden_size))

    def loss(params):
        hidden, _ = Decoder(config).apply(lora.variables(settings, *params), ids, at)
        return (hidden * weights).mean(), hidden

    with jax.set_mesh(mesh):
        params = jax.device_put((lively(config), adapters), places)
        held = [tree["layers"]["experts"]["gate"] for tree in (params[0]["params"], params[1]["lora"])]
        held = [x.addressable_shards[0].data.shape for x in jax.tree.leaves(held)]
        E, F = 8 // sizes[1], 32 // sizes[2]
        assert held == [(2, E, 64, F), (2, E, 64, 4), (2, E, 4, F)]
        return jax.device_get(jax.jit(jax.grad(loss, has_aux=True))(params))


def every_mesh_agrees():
    (grads, hidden), *others = map(a_pass, [(1, 1, 1), (1, 4, 1), (2, 1, 2), (1, 2, 2)])
    for found in others:
        np.testing.assert_allclose(found[1], hidden, atol=1e-5)
        assert_trees_close(found[0], grads, 1e-5)


def test_invariance_mesh():
    """Experts on one device, on four, and each split over two."""
    in_process_of_devices(every_mesh_agrees, 4)


def test_exact_counts():
    """Of the 30 B parameters a token passes through 3 B: hence the model's name."""
    config = model_config(PRESETS["qwen3-30b-a3b"])
    active = config.layers * counts.layer_weights(config) + 2 * config.vocab_size * config.hidden_size
    norms = config.layers * (2 * config.hidden_size + 2 * config.head_dim) + config.hidden_size
    rest = config.layers * (config.experts - config.experts_per_token) * 3 * config.hidden_size * config.expert_size
    assert counts.parameters(config) == active + norms + rest == 30_532_122_624
    assert 3.3e9 < active < 3.4e9
    axes = nn.meta.unbox(lora.adapter_axes(config, LoraSettings(rank=16, targets=("experts", "q_proj"))))
    of_expert, of_queries = 3 * (2048 + 768), 2048 + 4096
    assert sum(x.size for x in jax.tree.leaves(axes)) == 48 * 16 * (128 * of_expert + of_queries)
    assert counts.passed(config, axes) == 48 * 16 * (8 * of_expert + of_queries)
