"""Frozen matrices in few bits: the numbers, the passes that restore them, and the memory that these need."""

import dataclasses
import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dwrl_jax.core import sharding
from dwrl_jax.core.errors import UserError
from dwrl_jax.models import frozen, hf, lora, quantised
from dwrl_jax.models.families import model_config
from dwrl_jax.models.families.presets import PRESETS, shrink
from dwrl_jax.models.settings import LoraSettings
from dwrl_jax.models.transformer import Decoder, axis_names
from dwrl_jax.models.unstacked import unstack, within_loop
from dwrl_jax.objectives import dwrl
from dwrl_jax.training.step import gradient
from tests.models.test_lora import moved, outputs
from tests.small import VOCAB, assert_trees_close, given_thoughts, lively, make_batch, make_judge

ALONE = functools.partial(sharding.make_mesh, {"data": 1, "fsdp": 1, "tensor": 1})
EMBED_FIRST, EMBED_LAST = ("embed", "heads", "head_dim"), ("heads", "head_dim", "embed")


def round_trip(kernel, kind, names):
    parts = quantised.quantised(kernel, kind, names)
    return parts, quantised.restored(kind, kernel.shape, names, "float32", parts)


def test_exact_levels_of_nf4():
    """Appendix E's construction: quantiles of N(0, 1) at evenly spaced places, 8 below zero and 9 from zero on."""
    offset = 0.9677083
    quantiles = jax.scipy.stats.norm.ppf
    high, low = quantiles(jnp.linspace(offset, 0.5, 9)[:-1]), -quantiles(jnp.linspace(offset, 0.5, 8)[:-1])
    expected = np.sort(np.concatenate([low, [0.0], high]))
    np.testing.assert_allclose(quantised.LEVELS, expected / expected.max(), atol=1e-5)
    np.testing.assert_array_equal(quantised.level(jnp.arange(16, dtype=jnp.uint8)), np.float32(quantised.LEVELS))
    x = jnp.linspace(-1, 1, 1001)
    distance = np.abs(np.asarray(x)[:, None] - np.float32(quantised.LEVELS))
    taken = np.take_along_axis(distance, np.asarray(quantised.nearest(x), int)[:, None], 1)[:, 0]
    np.testing.assert_allclose(taken, distance.min(1), atol=1e-6)


def test_exact_numbers():
    """By hand: int8's scale is that of an output, nf4's of a block; a matrix of levels comes back as it was."""
    matrix = jnp.array([[127.0, 0.0, -2.0], [-63.4, 0.0, 1.0]])
    parts, back = round_trip(matrix, "int8", ("embed", "mlp"))
    np.testing.assert_array_equal(parts["codes"], [[127, 0, -127], [-63, 0, 64]])
    np.testing.assert_allclose(back, [[127, 0, -2], [-63, 0, 128 / 127]], rtol=1e-6)
    levels = jnp.asarray(quantised.LEVELS)[jnp.arange(128).reshape(2, 64) % 16] * jnp.array([[3.0], [5.0]])
    parts, back = round_trip(levels, "nf4", ("embed", "mlp"))
    np.testing.assert_allclose(back, levels, rtol=1e-5)
    np.testing.assert_array_equal(parts["codes"][0, :4], [0x00, 0x11, 0x22, 0x33])  # 0 and 32 are the same level
    assert (float(parts["offset"]), *parts["groups"]) == (4.0, 1.0, 1.0)
    np.testing.assert_array_equal(parts["scales"], [[-127], [127]])


@pytest.mark.parametrize("size", [1, 7, 8, 33])
def test_packed_codes_come_back(size):
    codes = jnp.asarray(np.random.default_rng(0).integers(0, 16, (3, size, 2)), jnp.uint8)
    packed = quantised.packed(codes, 1)
    assert packed.shape == (3, -(-size // 2), 2)
    np.testing.assert_array_equal(quantised.unpacked(packed, 1, size), codes)


@pytest.mark.parametrize(
    ("shape", "names", "block"),
    [
        ((6, 128), ("embed", "mlp"), 64),
        ((6, 100), ("embed", "mlp"), 50),
        ((67, 6), ("mlp", "embed"), 1),
        ((105, 6), ("mlp", "embed"), 35),
        ((6, 3, 96), EMBED_FIRST, 48),
        ((3, 16, 6), EMBED_LAST, 16),
    ],
)
def test_error_bounds_of_any_shape(shape, names, block):
    """Half the widest gap between levels, 0.3038, of a block's maximum, and what 8 bits change in that maximum."""
    kernel = jax.random.normal(jax.random.key(0), shape)
    how = quantised.layout(shape, names)
    assert how.block == block
    parts, back = round_trip(kernel, "nf4", names)
    matrix, error = kernel.reshape(how.sizes), jnp.abs(back - kernel).reshape(how.sizes)
    within = how.long + 1
    split = functools.partial(quantised._split, axis=how.long, size=block)
    scales = jnp.abs(split(matrix)).max(within)
    bound = 0.3039 / 2 * scales + jnp.expand_dims(parts["groups"], how.long) / 254 + 1e-6
    assert bool((split(error).max(within) <= bound).all())
    assert parts["codes"].size == matrix.size // block * -(-block // 2) and parts["codes"].dtype == jnp.uint8
    parts, back = round_trip(kernel, "int8", names)
    error, scales = jnp.abs(back - kernel).reshape(how.sizes).max(0), jnp.abs(matrix).max(0)
    assert bool((error <= scales / 254 + 1e-6).all())


def test_a_matrix_of_zeros_stays_zero():
    for kind in quantised.KINDS:
        np.testing.assert_array_equal(round_trip(jnp.zeros((2, 128)), kind, ("embed", "mlp"))[1], 0)


def test_nf4_takes_about_half_a_byte_for_a_number():
    """The matrices of Qwen2.5-7B in 0.516 bytes a number, and its tables and norms in bfloat16."""
    settings = LoraSettings(rank=16, base="nf4")
    dense = model_config(PRESETS["qwen2.5-7b"], param_dtype="bfloat16")

    def of_kernels(config):
        layers = nn.meta.unbox(axis_names(config))["params"]["layers"]
        return jax.tree.leaves([part["kernel"] for part in layers.values() if "kernel" in part])

    numbers = sum(x.size for x in of_kernels(dense))
    kept = sum(x.size * x.dtype.itemsize for x in of_kernels(frozen.shape_of(dense, settings)))
    assert 0.5156 < kept / numbers < 0.5175
    eight = of_kernels(frozen.shape_of(dense, dataclasses.replace(settings, base="int8")))
    assert 1 < sum(x.size * x.dtype.itemsize for x in eight) / numbers < 1.002


def in_few_bits(config, params, kind, dtype="float32"):
    """The shape and the parameters of the same model in few bits, and those that they stand for."""
    shape = dataclasses.replace(config, quantised=kind, param_dtype=dtype)
    keep = frozen._in_few_bits(shape, ALONE(devices=jax.devices()[:1]))
    layers = {
        name: {key: keep(("layers", name, key), x) for key, x in part.items()}
        for name, part in params["params"]["layers"].items()
    }
    kept = {"params": params["params"] | {"layers": layers}}
    return shape, kept, frozen.restored(kept, shape)


@pytest.mark.parametrize(("kind", "most"), [pytest.param("int8", 0.02, marks=pytest.mark.slow), ("nf4", 0.25)])
def test_parity_of_logits_with_the_restored_matrices(kind, most):
    """Equal to a model whose weights are the restored ones, also as the sampler has them; close to the original."""
    config = dataclasses.replace(model_config(shrink(PRESETS["qwen2.5-7b"], VOCAB)), tied=False)
    params, settings = lively(config), LoraSettings(rank=3, alpha=6.0, base=kind)
    shape, kept, dense = in_few_bits(config, params, kind)
    trained = moved(config, settings, params)
    expected, found = (outputs(c, lora.variables(settings, p, trained)) for c, p in ((config, dense), (shape, kept)))
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    original = outputs(config, lora.variables(settings, params, trained))
    assert 0 < float(jnp.sqrt(((found - original) ** 2).mean()) / original.std()) < most
    alone = dataclasses.replace(shape, scanned=False)
    assert_trees_close(outputs(alone, unstack(lora.variables(settings, kept, trained), alone)), expected, 1e-5)


@pytest.mark.parametrize("kind", ["nf4", pytest.param("int8", marks=pytest.mark.slow)])
def test_exact_gradient_of_adapters(kind):
    """That beside the restored matrices, for A and for B."""
    judge, params = make_judge()
    config, settings = judge.model.config, LoraSettings(rank=3, alpha=6.0, base=kind)
    shape, kept, dense = in_few_bits(dataclasses.replace(config, remat="dots"), params, kind)
    rng = np.random.default_rng(0)
    thoughts = given_thoughts(rng.integers(4, 24, (2, 2, 2, 5)), rng.integers(2, 6, (2, 2, 2)))
    loss, trained = dwrl.updates(dwrl.Hyper(updates="joint"))["joint"], moved(config, settings, params)

    def grads(judge, start):
        model = functools.partial(lora.variables, settings, start)
        return jax.jit(lambda t: gradient(judge, loss, t, make_batch(pairs=2), thoughts, model=model)[0])(trained)

    expected = grads(judge, dense)
    assert_trees_close(grads(dataclasses.replace(judge, model=Decoder(shape)), kept), expected, 1e-5)
    assert min(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected)) > 0


def model_of(layers, scanned):
    """The shape of a bfloat16 model in nf4, and the shapes of its parameters."""
    sizes = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": layers}
    config = model_config(shrink(PRESETS["llama3.2-3b"], 32, **sizes), param_dtype="bfloat16", dtype="bfloat16")
    shape = dataclasses.replace(config, quantised="nf4", scanned=scanned)
    return shape, nn.meta.unbox(axis_names(shape))


def hidden(config, scale, params):
    """Hidden states of eight tokens, with this scale in the last norm."""
    tokens = jnp.arange(8)[None, None]
    return Decoder(config).apply({"params": params["params"] | {"norm": {"scale": scale}}}, tokens, tokens)[0]


def test_a_backward_pass_restores_one_layer_at_a_time():
    """A layer more needs less than its matrices would, though this pass keeps all activations; so do constants."""
    needed = []
    for layers in (4, 8):
        shape, params = model_of(layers, scanned=True)
        embedding = params["params"]["embed"]["embedding"]

        def loss(x, params, shape=shape):
            params = {"params": params["params"] | {"embed": {"embedding": x}}}
            return hidden(shape, params["params"]["norm"]["scale"], params).sum()

        program = jax.jit(jax.grad(loss)).lower(embedding, params).compile()
        needed.append(program.memory_analysis().temp_size_in_bytes)
    matrices = 2 * 3 * 128 * 512  # of a feed-forward, in bfloat16
    assert needed[1] - needed[0] < 4 * matrices and needed[0] < 8 * matrices, needed


def test_a_loop_over_tokens_carries_few_bits():
    """No compiler has restored the matrices ahead of the loop."""
    shape, params = model_of(2, scanned=False)

    def decode(x, params):
        return jax.lax.fori_loop(0, 9, lambda t, x: x + hidden(shape, x, within_loop(params, t))[0, 0, 0], x)

    text = jax.jit(decode).lower(params["params"]["norm"]["scale"], params).compile().as_text()
    (loop,) = (line for line in text.splitlines() if " while(" in line)
    assert "u8[128,256]" in loop and not re.search(r"f(16|32)\[(128,512|512,128|128,64,2|64,2,128)\]", loop)


def test_experts_are_one_line():
    config = dataclasses.replace(model_config(shrink(PRESETS["qwen3-30b-a3b"], VOCAB)), quantised="nf4")
    with pytest.raises(UserError, match="lora.base='nf4': experts of a mixture are not kept in few bits"):
        frozen.check_kept(config)


def test_a_folder_is_read_in_few_bits(tmp_path):
    """As from memory; and the whole start is what the few bits stand for."""
    hf_config = shrink(PRESETS["llama3.2-3b"], VOCAB)
    config, mesh = model_config(hf_config), ALONE(devices=jax.devices()[:1])
    params, settings = lively(config), LoraSettings(rank=3, base="nf4")
    hf.save_model(tmp_path / "model", params, config, hf_config)
    found = frozen.load(tmp_path / "model", config, settings, mesh)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    _, kept, dense = in_few_bits(dataclasses.replace(config, param_dtype="bfloat16"), half, "nf4", "bfloat16")
    jax.tree.map(np.testing.assert_array_equal, found, kept)
    whole = frozen.whole_start(tmp_path / "model", config, settings, mesh)
    jax.tree.map(np.testing.assert_array_equal, whole, dense)
