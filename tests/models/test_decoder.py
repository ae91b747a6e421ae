"""The decoder and its Hugging Face files against transformers; regions against whole sequences."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dwrl_jax.generation.forced import teacher_forced
from dwrl_jax.generation.sampler import SamplerOptions, write
from dwrl_jax.generation.writer import Writer
from dwrl_jax.models import families, hf, rope
from dwrl_jax.models.attention import Region
from dwrl_jax.models.families import model_config, read_config
from dwrl_jax.models.families.presets import PRESETS, shrink
from dwrl_jax.models.transformer import Decoder, Prefix, logits, output_table
from dwrl_jax.models.unstacked import unstack
from tests.small import VOCAB, lively

CASES = {  # model and changes of its config.json
    f"{name}-{kind}": (name, {"tie_word_embeddings": kind == "tied"})
    for name in ("llama3.1-8b", "qwen2.5-3b", "qwen3-4b")
    for kind in ("tied", "untied")
} | {
    "gemma3-4b": ("gemma3-4b", {"final_logit_softcapping": 30.0, "attention_bias": True}),
    "mistral-nemo": ("mistral-nemo-2407", {"sliding_window": 24}),
    "olmo2": ("olmo-2-1124-7b", {}),
    "olmo3": ("olmo-3-1025-7b", {}),
    "smollm3": ("smollm3-3b", {}),
    "qwen3-moe": ("qwen3-30b-a3b", {}),
    "qwen3-moe-not-normalised": ("qwen3-30b-a3b", {"norm_topk_prob": False, "num_experts_per_tok": 3}),
}


@functools.partial(jax.jit, static_argnums=0)
def full_logits(model, params, ids):
    """float32 logits [B, T, V] of whole sequences [B, T]."""
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    hidden, _ = model.apply(params, ids[:, None], positions[:, None])
    return logits(hidden[:, 0], output_table(params), model.config.logit_cap)


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


@pytest.fixture(scope="module", params=CASES)
def torch_model(request, tmp_path_factory):
    """A small random transformers model's folder, its float32 logits on ids [2, 200], and the model."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    name, changes = CASES[request.param]
    hf_config = shrink(PRESETS[name], VOCAB, torch_dtype="float32", **changes)
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(**hf_config)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    if request.param == "olmo3" and not hasattr(model.model.rotary_emb, "sliding_attention_inv_freq"):
        pytest.skip(f"transformers {transformers.__version__} rescales the positions of OLMo 3's sliding layers too")
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            scale = 1.0 if "embed" in key else 0.3 if parameter.ndim == 1 else 0.15
            parameter.copy_((parameter if "norm" in key else 0) + scale * torch.randn_like(parameter))
        ids = torch.randint(VOCAB, (2, 200))
        expected = model(ids).logits.numpy()
    folder = tmp_path_factory.mktemp("torch") / "model"
    model.save_pretrained(folder, max_shard_size="100KB")
    return folder, hf_config, ids.numpy(), expected, model


def test_parity_with_transformers(torch_model):
    """Both ways of writing the config, sharded files, positions three times past the original window."""
    folder, hf_config, ids, expected, _ = torch_model
    assert (folder / hf.INDEX).exists()
    config = model_config(read_config(folder))
    assert config == model_config(hf_config)
    ours = full_logits(Decoder(config), hf.load_params(folder, config), ids)
    np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=0)


def test_parity_of_exports(torch_model, tmp_path):
    """transformers loads what `save_model` writes: nothing missing, nothing left over, the same logits."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder, hf_config, ids, expected, _ = torch_model
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


FAMILIES = {PRESETS[name]["model_type"]: case for case, (name, _) in CASES.items()}  # a case of each
STARTS, TOKENS = (40, 31), 8  # of two prompts, longer than any window here, and of each written text


def greedy(model, ids):
    """transformers' greedy text [2, TOKENS] behind each prompt."""
    import torch

    model.generation_config.eos_token_id = None
    prompts = [torch.tensor(row[None, :start]) for row, start in zip(ids, STARTS)]
    how = {"do_sample": False, "max_new_tokens": TOKENS, "pad_token_id": 0}
    texts = [model.generate(prompt, attention_mask=torch.ones_like(prompt), **how) for prompt in prompts]
    return np.stack([text[0, -TOKENS:].numpy() for text in texts])


def independent(model, ids, texts):
    """transformers' log-probabilities [2, G, TOKENS] of texts [2, G, TOKENS], each with its prompt as one sequence."""
    import torch

    found = np.zeros(texts.shape, np.float32)
    for row, start in enumerate(STARTS):
        prompts = np.broadcast_to(ids[row, :start], (texts.shape[1], start))
        with torch.no_grad():
            by_place = model(torch.tensor(np.concatenate([prompts, texts[row]], 1))).logits.log_softmax(-1).numpy()
        found[row] = np.take_along_axis(by_place[:, start - 1 : -1], texts[row][..., None], -1)[..., 0]
    return found


def test_every_family_writes():
    assert FAMILIES.keys() == {*families.names()}


@pytest.mark.parametrize("group", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("torch_model", FAMILIES.values(), indirect=True)
def test_parity_of_written_texts(torch_model, group):
    """Greedy text is transformers'; sampler and update, which share prefixes, have the density of whole sequences."""
    folder, hf_config, ids, _, reference = torch_model
    params, lengths = hf.load_params(folder, model_config(hf_config)), jnp.array(STARTS)
    writer = Writer(Decoder(model_config(hf_config)), end=VOCAB, pad=0)  # no token ends a text
    options, keys = SamplerOptions(group, TOKENS, top_k=1), jax.random.split(jax.random.key(0), (2, group))
    drawn = jax.jit(lambda *given: write(writer, options, *given)[0])(params, ids[:, : STARTS[0]], lengths, keys)
    np.testing.assert_array_equal(drawn.thought, np.repeat(greedy(reference, ids)[:, None], group, 1))
    others = np.random.default_rng(0).integers(VOCAB, size=(2, 2, TOKENS))
    texts = np.concatenate([drawn.thought, others], 1)
    expected = independent(reference, ids, texts)
    np.testing.assert_allclose(drawn.logp, expected[:, :group], atol=1e-4, rtol=0)
    sizes = np.full(texts.shape[:2], TOKENS)
    forced = jax.jit(lambda *given: teacher_forced(writer, *given, following=(0,)))
    found = forced(params, ids[:, : STARTS[0]], lengths, texts, sizes)
    np.testing.assert_allclose(found.logp, expected, atol=1e-4, rtol=0)


# ----------------------------------------------------------------- invariance: regions and whole sequences

LENGTHS = np.array([5, 9, 0])  # prefix tokens per row, one of them none at all
BRANCHES, WRITTEN = 4, 6


@pytest.fixture(scope="module")
def texts():
    """Prefixes [P, L] with other tokens behind their ends, branches [P, G, T]."""
    rng = np.random.default_rng(0)
    return rng.integers(VOCAB, size=(3, 9)), rng.integers(VOCAB, size=(3, BRANCHES, WRITTEN))


@pytest.fixture(scope="module", params=["plain", "special", "norms", "experts"])
def small(request, tiny):
    """Config and parameters of a plain Qwen3, and of models with all that config.json can ask for beside."""
    _, config, params = tiny
    if request.param == "plain":
        return config, params
    yarn = rope.Yarn(4.0, 8, 32, 1, 1.2, True)
    every = {"qkv_bias": True, "o_bias": True, "mlp_bias": True, "rope_scaling": yarn, "windows": (0, 4)}
    if request.param == "norms":
        every = {"norms": "both", "norm_offset": 1.0, "qk_norm_of_all": True, "query_scale": 0.8, "embed_scale": 8.0}
        every |= {"layer_ropes": ("local", "none"), "local_rope_theta": 100.0, "activation": "gelu_tanh"}
    if request.param == "experts":
        every = {"experts": 8, "experts_per_token": 2, "expert_size": 32, "norm_experts": True}
    config = dataclasses.replace(config, **every)
    return config, lively(config)


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
def test_invariance_shared_prefix(small, texts, run):
    config, params = small
    ours = jax.jit(run, static_argnums=0)(Decoder(config), params, texts)
    np.testing.assert_allclose(ours, whole(Decoder(config), params, texts), atol=1e-5, rtol=0)


def test_invariance_one_token_at_a_time(small, texts):
    """Decoding over the shared prefix and a region per branch, of which the first t tokens are written."""
    config, params = small
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


@pytest.mark.parametrize("remat", ["full", "narrow", pytest.param("dots", marks=pytest.mark.slow)])
def test_invariance_gradient(small, texts, remat):
    """The gradient through the shared prefix, with recomputed layers, is that of independent sequences."""
    config, params = small
    weights = np.random.default_rng(1).normal(size=(3, BRANCHES, WRITTEN, config.hidden_size))

    def gradient(run, model):
        return jax.jit(jax.grad(lambda params: (run(model, params, texts) * weights).mean()))(params)

    expected = gradient(whole, Decoder(config))
    ours = gradient(beside, Decoder(dataclasses.replace(config, remat=remat)))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6, rtol=1e-4), ours, expected)
