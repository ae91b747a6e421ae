"""The decoder and its Hugging Face files against transformers; regions against whole sequences; errors."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dwrl_jax.errors import UserError
from dwrl_jax.models import hf
from dwrl_jax.models.attention import Region
from dwrl_jax.models.hf_config import model_config, read_config
from dwrl_jax.models.presets import PRESETS, shrink
from dwrl_jax.models.transformer import Decoder, Prefix, logits, output_table, unstack

VOCAB = 192
CASES = [(name, tied) for name in ("llama3.1-8b", "qwen2.5-3b", "qwen3-4b") for tied in (True, False)]


@functools.partial(jax.jit, static_argnums=0)
def full_logits(model, params, ids):
    """float32 logits [B, T, V] of whole sequences [B, T]."""
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    hidden, _ = model.apply(params, ids[:, None], positions[:, None])
    return logits(hidden[:, 0], output_table(params))


def lively(params):
    """Random parameters far from their initial values, so that attention, norms and biases all matter."""
    rng = np.random.default_rng(0)

    def change(path, leaf):
        noise = rng.normal(size=leaf.shape)
        values = {"embedding": noise, "scale": 1 + 0.3 * noise, "bias": 0.5 * noise}
        return jnp.asarray(values.get(path[-1].key, 0.15 * noise), leaf.dtype)

    return jax.tree_util.tree_map_with_path(change, params)


@pytest.fixture(scope="module")
def tiny():
    """Config.json, config and parameters of a small Qwen3: the one with q/k norms and wide heads."""
    hf_config = shrink(PRESETS["qwen3-4b"], VOCAB)
    config = model_config(hf_config)
    return hf_config, config, lively(hf.random_params(config, 0))


# ------------------------------------------------------------------------------ parity: a real model


def test_parity_stories_logits(shared_data):
    folder = shared_data / "models/stories260K"
    config = model_config(read_config(folder))
    reference = np.load(folder / "reference_logits.npz")
    ours = full_logits(Decoder(config), hf.load_params(folder, config), reference["input_ids"])
    np.testing.assert_allclose(ours, reference["logits"], atol=1e-4, rtol=0)


def test_parity_stories_greedy(shared_data):
    """200 greedy tokens, one at a time over two regions: the prefilled prefix and the written tokens."""
    folder = shared_data / "models/stories260K"
    config = model_config(read_config(folder))
    params, model = hf.load_params(folder, config), Decoder(config)
    expected = json.loads((folder / "expected_greedy.json").read_text())["ids"]
    prefill, steps = 5, len(expected) - 5

    @jax.jit
    def generate(params, prefix):
        _, (k, v) = model.apply(params, prefix[:, :, :-1], jnp.arange(prefill - 1)[None, None])
        shared = Region(k, v, jnp.full((1, 1), prefill - 1))
        rows = (config.layers, 1, 1, config.kv_heads)
        empty = jnp.zeros((*rows, config.head_dim, steps)), jnp.zeros((*rows, steps, config.head_dim))

        def one(carry, t):
            token, k, v = carry
            position = (prefill - 1 + t)[None, None, None]
            own = Region(k, v, jnp.full((1, 1), t))
            hidden, (new_k, new_v) = model.apply(params, token, position, (shared, own))
            k = jax.lax.dynamic_update_slice_in_dim(k, new_k, t, 5)
            v = jax.lax.dynamic_update_slice_in_dim(v, new_v, t, 4)
            token = logits(hidden, output_table(params)).argmax(-1)
            return (token, k, v), token[0, 0, 0]

        return jax.lax.scan(one, (prefix[:, :, -1:], *empty), jnp.arange(steps))[1]

    assert expected[prefill:] == generate(params, jnp.array(expected[:prefill])[None, None]).tolist()


# ------------------------------------------------------------------- parity: every supported architecture


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{'tied' if case[1] else 'untied'}")
def torch_model(request, tmp_path_factory):
    """A small random transformers model, its folder, and its float32 logits on ids [2, 200]."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    name, tied = request.param
    hf_config = shrink(PRESETS[name], VOCAB, tie_word_embeddings=tied, torch_dtype="float32")
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(**hf_config)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            scale = 1.0 if "embed" in key else 0.3 if parameter.ndim == 1 else 0.15
            parameter.copy_((parameter if "norm" in key else 0) + scale * torch.randn_like(parameter))
        ids = torch.randint(VOCAB, (2, 200))
        expected = model(ids).logits.numpy()
    folder = tmp_path_factory.mktemp("torch") / "model"
    model.save_pretrained(folder, max_shard_size="100KB")
    return folder, hf_config, ids.numpy(), expected


def test_parity_with_transformers(torch_model):
    """Both ways of writing the config, sharded files, positions three times past the original window."""
    folder, hf_config, ids, expected = torch_model
    assert (folder / hf.INDEX).exists()
    config = model_config(read_config(folder))
    assert config == model_config(hf_config)
    ours = full_logits(Decoder(config), hf.load_params(folder, config), ids)
    np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=0)


def test_parity_of_exports(torch_model, tmp_path):
    """transformers loads what `save_model` writes: nothing missing, nothing left over, the same logits."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder, hf_config, ids, expected = torch_model
    config = model_config(hf_config)
    params = hf.load_params(folder, config)
    hf.save_model(tmp_path / "out", params, config, hf_config, max_shard_bytes=100_000)
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == torch.float32
    with torch.no_grad():
        np.testing.assert_allclose(model(torch.tensor(ids)).logits, expected, atol=1e-5, rtol=0)


# ------------------------------------------------------------------------------------- exact: round trips


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_exact_round_trip(dtype, tmp_path):
    """save -> load gives the same bits and the same tree as initialisation, also from several files."""
    hf_config = shrink(PRESETS["qwen2.5-7b"], VOCAB)
    config = model_config(hf_config, param_dtype=dtype)
    params = lively(hf.random_params(config, 3))
    for name, limit, files in (("one", 2**30, 1), ("many", 50_000, 5)):
        hf.save_model(tmp_path / name, params, config, hf_config, dtype=dtype, max_shard_bytes=limit)
        assert len(list((tmp_path / name).glob("*.safetensors"))) >= files
        assert (tmp_path / name / hf.SINGLE).exists() == (name == "one")
        again = hf.load_params(tmp_path / name, config)
        assert jax.tree.structure(again) == jax.tree.structure(params)
        jax.tree.map(np.testing.assert_array_equal, again, params)
        assert {leaf.dtype for leaf in jax.tree.leaves(again)} == {jnp.dtype(dtype)}
    assert read_config(tmp_path / "one")["torch_dtype"] == dtype
    assert sorted(path.name for path in tmp_path.iterdir()) == ["many", "one"]


def test_exact_half_precision_sources(tiny, tmp_path):
    """bfloat16 and float16 files read as float32 hold exactly the rounded values."""
    hf_config, config, params = tiny
    hf.save_model(tmp_path / "model", params, config, hf_config)
    tensors = load_file(tmp_path / "model" / hf.SINGLE)
    for dtype in (jnp.bfloat16, np.float16):
        save_file({key: t.astype(dtype) for key, t in tensors.items()}, tmp_path / "model" / hf.SINGLE)
        rounded = jax.tree.map(lambda leaf: np.asarray(leaf).astype(dtype).astype(np.float32), params)  # noqa: B023
        jax.tree.map(np.testing.assert_array_equal, hf.load_params(tmp_path / "model", config), rounded)


def test_exact_placement(tiny, tmp_path):
    """Leaves come out where `shardings` puts them."""
    hf_config, config, params = tiny
    hf.save_model(tmp_path / "model", params, config, hf_config)
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    placed = hf.load_params(tmp_path / "model", config, shardings=jax.tree.map(lambda _: sharding, params))
    assert all(leaf.sharding == sharding for leaf in jax.tree.leaves(placed))
    jax.tree.map(np.testing.assert_array_equal, placed, params)


def test_exact_presets():
    """Parameter counts of the published models, from the table alone (model cards: 3.09 B, 7.62 B ...)."""
    published = {
        "qwen2.5-3b": 3_085_938_688,
        "qwen2.5-7b": 7_615_616_512,
        "llama3.2-3b": 3_212_749_824,
        "llama3.1-8b": 8_030_261_248,
        "qwen3-4b": 4_022_468_096,
    }
    for name, hf_config in PRESETS.items():
        tensors = hf.hf_tensors(model_config(hf_config))
        assert sum(int(np.prod(weight.hf_shape)) for _, weight, _ in tensors) == published[name]
    with pytest.raises(UserError, match="num_layers"):
        shrink(PRESETS["qwen3-4b"], VOCAB, num_layers=3)


# ----------------------------------------------------------------- invariance: regions and whole sequences

LENGTHS = np.array([5, 9, 0])  # prefix tokens per row, one of them none at all
BRANCHES, WRITTEN = 4, 6


@pytest.fixture(scope="module")
def texts():
    """Prefixes [P, L] with other tokens behind their ends, branches [P, G, T]."""
    rng = np.random.default_rng(0)
    return rng.integers(VOCAB, size=(3, 9)), rng.integers(VOCAB, size=(3, BRANCHES, WRITTEN))


@functools.partial(jax.jit, static_argnums=0)
def whole(model, params, texts):
    """Hidden states of the branches [P, G, T, D], each branch as one sequence with its prefix."""
    size = LENGTHS.max() + WRITTEN
    ids = jnp.zeros((3, BRANCHES, size), int)
    for row, length in enumerate(LENGTHS):
        ids = ids.at[row, :, :length].set(texts[0][row, :length])
        ids = ids.at[row, :, length : length + WRITTEN].set(texts[1][row])
    positions = jnp.broadcast_to(jnp.arange(size), ids.shape)
    hidden, _ = model.apply(params, ids.reshape(-1, 1, size), positions.reshape(-1, 1, size))
    hidden = hidden.reshape(3, BRANCHES, size, -1)
    return jnp.stack([h[:, length : length + WRITTEN] for h, length in zip(hidden, LENGTHS)])


def prefix_region(model, params, prefix):
    positions = np.broadcast_to(np.arange(prefix.shape[1]), prefix.shape)
    _, (k, v) = model.apply(params, prefix[:, None], positions[:, None])
    return Region(k, v, jnp.asarray(LENGTHS)[:, None])


def beside(model, params, texts):
    """The same hidden states with one prefix per row, computed beside its branches."""
    positions = jnp.broadcast_to(LENGTHS[:, None, None] + np.arange(WRITTEN), texts[1].shape)
    return model.apply(params, texts[1], positions, prefix=Prefix(texts[0], jnp.asarray(LENGTHS)))[0]


def before(model, params, texts):
    """The same with the prefix in a pass of its own, and every layer's weights apart."""
    region = prefix_region(model, params, texts[0])
    apart = dataclasses.replace(model.config, scanned=False)
    positions = jnp.broadcast_to(LENGTHS[:, None, None] + np.arange(WRITTEN), texts[1].shape)
    return Decoder(apart).apply(unstack(params, apart), texts[1], positions, (region,))[0]


@pytest.mark.parametrize("run", [beside, before])
def test_invariance_shared_prefix(tiny, texts, run):
    _, config, params = tiny
    ours = jax.jit(run, static_argnums=0)(Decoder(config), params, texts)
    np.testing.assert_allclose(ours, whole(Decoder(config), params, texts), atol=1e-5, rtol=0)


def test_invariance_one_token_at_a_time(tiny, texts):
    """Decoding over the shared prefix and a region per branch, of which the first t tokens are written."""
    _, config, params = tiny
    model = Decoder(config)

    @jax.jit
    def decode(params, prefix, branches):
        region = prefix_region(model, params, prefix)
        rows = (config.layers, 3, BRANCHES, config.kv_heads)
        junk = jnp.full((*rows, config.head_dim, WRITTEN), 9.0), jnp.full((*rows, WRITTEN, config.head_dim), 9.0)

        def one(carry, t):
            k, v = carry
            positions = jnp.broadcast_to(LENGTHS[:, None, None] + t, (3, BRANCHES, 1))
            token = jax.lax.dynamic_slice_in_dim(branches, t, 1, 2)
            regions = (region, Region(k, v, jnp.full((3, BRANCHES), t)))
            hidden, new = model.apply(params, token, positions, regions)
            carry = tuple(jax.lax.dynamic_update_slice_in_dim(a, b, t, axis) for a, b, axis in zip((k, v), new, (5, 4)))
            return carry, hidden[:, :, 0]

        return jax.lax.scan(one, junk, jnp.arange(WRITTEN))[1].transpose(1, 2, 0, 3)

    expected = whole(model, params, texts)
    np.testing.assert_allclose(decode(params, *texts), expected, atol=1e-5, rtol=0)


def test_invariance_gradient(tiny, texts):
    """The gradient through the shared prefix, with recomputed layers, is that of independent sequences."""
    hf_config, config, params = tiny
    weights = np.random.default_rng(1).normal(size=(3, BRANCHES, WRITTEN, config.hidden_size))

    def gradient(run, model):
        return jax.jit(jax.grad(lambda params: (run(model, params, texts) * weights).mean()))(params)

    expected = gradient(whole, Decoder(config))
    ours = gradient(beside, Decoder(model_config(hf_config, remat="full")))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6, rtol=1e-4), ours, expected)


# ------------------------------------------------------------------------------------------------- errors


@pytest.fixture
def saved(tiny, tmp_path):
    hf_config, config, params = tiny
    hf.save_model(tmp_path / "model", params, config, hf_config)
    return tmp_path / "model", config


Q1 = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(Q1), rf"1 tensors are missing.*{Q1}"),
        (lambda t: t.update({"score.weight": np.zeros((1, 64), "f4")}), "unexpected tensor score.weight"),
        (lambda t: t.update({Q1: t[Q1].T.copy()}), rf"{Q1} has shape \(64, 128\).* makes it \(128, 64\)"),
        (lambda t: t.update({Q1: t[Q1].astype("i1")}), rf"{Q1} has type I8"),
        (lambda t: t.update({"lm_head.weight": np.zeros((VOCAB, 64), "f4")}), "lm_head.weight differs"),
    ],
    ids=["missing", "unexpected", "shape", "type", "untied"],
)
def test_exact_errors_name_the_tensor(saved, change, message):
    folder, config = saved
    tensors = load_file(folder / hf.SINGLE)
    change(tensors)
    save_file(tensors, folder / hf.SINGLE)
    with pytest.raises(UserError, match=message):
        hf.load_params(folder, config)


def test_exact_harmless_extras(saved):
    """A tied lm-head that repeats the embedding and an old rotary buffer are no errors."""
    folder, config = saved
    tensors = load_file(folder / hf.SINGLE)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(16, "f4")
    save_file(tensors, folder / hf.SINGLE)
    hf.load_params(folder, config)


def test_exact_errors_of_files(saved, tiny, tmp_path):
    folder, config = saved
    with pytest.raises(UserError, match="not an empty folder"):
        hf.save_model(folder, tiny[2], config, tiny[0])
    with pytest.raises(UserError, match="another model"):
        hf.save_model(tmp_path / "new", tiny[2], config, tiny[0] | {"vocab_size": 7})
    whole_file = (folder / hf.SINGLE).read_bytes()
    (folder / hf.SINGLE).write_bytes(whole_file[: len(whole_file) // 2])
    with pytest.raises(UserError, match=r"model\.safetensors: no readable"):
        hf.load_params(folder, config)
    (folder / hf.SINGLE).unlink()
    with pytest.raises(UserError, match="neither model.safetensors nor"):
        hf.load_params(folder, config)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: not JSON"):
        read_config(folder)
    with pytest.raises(UserError, match=r"nowhere/config\.json: cannot be read"):
        read_config(tmp_path / "nowhere")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_exact_no_half_written_export(tiny, tmp_path, monkeypatch):
    def full_disk(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(hf, "save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        hf.save_model(tmp_path / "out", tiny[2], tiny[1], tiny[0])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gemma2"}, "model_type = 'gemma2'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling.rope_type = 'yarn'"),
        ({"rope_parameters": {"rope_type": "dynamic"}}, "rope_parameters.rope_type = 'dynamic'"),
        ({"rope_scaling": {"type": "llama3", "factor": 8.0}}, "rope_scaling.low_freq_factor is missing"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"use_sliding_window": True}, "use_sliding_window = True"),
        ({"attention_bias": True}, "attention_bias = True"),
        ({"layer_types": ["sliding_attention"]}, "layer_types"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_exact_errors_of_configs(change, message):
    with pytest.raises(UserError, match=message):
        model_config(PRESETS["qwen3-4b"] | change)


def test_exact_resolve(saved, monkeypatch):
    assert hf.resolve(str(saved[0])) == saved[0]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="nobody/nothing-here: no such folder, and not to be had") as caught:
        hf.resolve("nobody/nothing-here")
    assert "\n" not in str(caught.value)


def test_exact_tokenizer_travels(shared_data, tmp_path):
    """The exported folder of a real model is a whole one: its tokenizer and end tokens come along."""
    transformers = pytest.importorskip("transformers")
    folder = shared_data / "models/stories260K"
    hf_config = read_config(folder)
    config = model_config(hf_config)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    params = hf.load_params(folder, config)
    hf.save_model(tmp_path / "out", params, config, hf_config, tokenizer=tokenizer)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert again("Once upon a time").input_ids == tokenizer("Once upon a time").input_ids
    ends = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert ends == {"bos_token_id": 1, "eos_token_id": 2}
