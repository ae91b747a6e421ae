"""What a model folder holds, piece by piece: adapters, 8-bit floats, names, and what is no model folder."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dwrl_jax.core.errors import UserError
from dwrl_jax.models import hf
from dwrl_jax.models.families import model_config
from dwrl_jax.models.families.presets import PRESETS, shrink
from dwrl_jax.models.hf import peft_merge
from tests.small import VOCAB

Q0, Q1 = (f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1))


@pytest.fixture
def folder(tiny, tmp_path):
    """The folder of a small model, with its tensors to change and to save again."""
    hf_config, config, params = tiny
    hf.save_model(tmp_path / "model", params, config, hf_config)
    return tmp_path / "model"


def tensors_of(folder):
    return load_file(folder / hf.SINGLE)


def rewrite(folder, tensors, **config):
    save_file(tensors, folder / hf.SINGLE)
    said = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(said))


def held(folder, key):
    """A tensor as `describe` gives it."""
    return hf.describe(folder).tensors[key].view()


# ------------------------------------------------------------------------------------------------ adapters


def adapter(folder, tensors, **settings):
    """An adapter of the model in `folder`."""
    made = folder.with_name("adapter")
    made.mkdir()
    save_file({f"base_model.model.{key}": x for key, x in tensors.items()}, made / peft_merge.WEIGHTS)
    said = {"peft_type": "LORA", "base_model_name_or_path": "../model", "r": 2, "lora_alpha": 8} | settings
    (made / peft_merge.SETTINGS).write_text(json.dumps(said))
    return made


def low_rank(module, rank=2):
    rng = np.random.default_rng(3)
    return {
        f"{module}.lora_A.weight": rng.normal(size=(rank, 64)).astype("f4"),
        f"{module}.lora_B.weight": rng.normal(size=(128, rank)).astype("f4"),
    }


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({}, 4),
        ({"use_rslora": True}, 8 / 2**0.5),
        ({"alpha_pattern": {"layers.1.self_attn.q_proj": 3}}, 1.5),
        ({"alpha_pattern": {"layers.0.*": 3, "k_proj": 5}}, 4),
        ({"r": 64, "rank_pattern": {"q_proj": 2}}, 4),
    ],
)
def test_exact_adapters(folder, settings, scale):
    """W + scale B A for the changed matrix alone."""
    change = low_rank(Q1.removesuffix(".weight"))
    made, base = adapter(folder, change, **settings), tensors_of(folder)
    down, up = change.values()
    np.testing.assert_allclose(held(made, Q1), base[Q1] + scale * up @ down, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(held(made, Q0), base[Q0])
    assert f"merged into {made / '../model'}" in hf.describe(made).notes[-1]


def test_exact_adapters_with_whole_tensors(folder):
    """A trained head and an embedding with more rows take the place of the base's, which becomes a reward model."""
    rows, score = np.ones((VOCAB + 3, 64), "f4"), np.ones((1, 64), "f4")
    whole = {"model.embed_tokens.weight": rows, "score.modules_to_save.default.weight": score}
    whole["score.original_module.weight"] = -score
    made = hf.describe(adapter(folder, whole, task_type="SEQ_CLS"))
    config = model_config(made.hf_config)
    assert (config.vocab_size, config.value_head) == (VOCAB + 3, 1)
    params = hf.load_params(made.path, config)["params"]
    assert (np.asarray(params["value_head"]) == 1).all() and (np.asarray(params["embed"]["embedding"]) == 1).all()


@pytest.mark.parametrize(
    ("tensors", "settings", "message"),
    [
        ({}, {"peft_type": "IA3"}, "peft_type = 'IA3' is not read.*merge it with peft"),
        ({}, {"use_dora": True}, "use_dora = True is not read"),
        ({}, {"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4' changed the base model's weights"),
        ({"model.embed_tokens.lora_embedding_A": np.ones((2, 9), "f4")}, {}, "lora_embedding_A is no plain LoRA"),
        (low_rank("model.layers.7.self_attn.q_proj"), {}, "does not fit the base model's model.layers.7"),
        (low_rank("model.layers.1.self_attn.k_proj"), {}, "does not fit the base model's model.layers.1.self_attn.k"),
        ({}, {"base_model_name_or_path": None}, "base_model_name_or_path is missing"),
        ({}, {"base_model_name_or_path": "/nowhere/at all"}, "adapter_config.json: the base model is not there: /nowh"),
    ],
)
def test_adapters_of_other_kinds(folder, tensors, settings, message):
    with pytest.raises(UserError, match=message):
        hf.describe(adapter(folder, tensors, **settings))


# ------------------------------------------------------------------------------------------------ 8-bit floats


@pytest.mark.parametrize(
    ("name", "scales", "how"),
    [
        ("weight_scale_inv", (3, 2), {"quant_method": "fp8", "weight_block_size": [48, 48]}),
        ("weight_scale", (128, 1), {"quant_method": "compressed-tensors", "format": "float-quantized"}),
        ("weight_scale", (1,), {"quant_method": "fp8"}),
    ],
    ids=["blocks", "rows", "one scale"],
)
def test_exact_8_bit_floats(folder, name, scales, how):
    """Codes times scales, by hand; blocks need not divide the matrix. The config is that of a plain model."""
    tensors, rng = tensors_of(folder), np.random.default_rng(0)
    codes = tensors[Q1].astype(jnp.float8_e4m3fn)
    scale = rng.uniform(0.5, 2, scales).astype("f4")
    rewrite(folder, tensors | {Q1: codes, Q1.replace("weight", name): scale}, quantization_config=how)
    whole = np.broadcast_to(scale, (128, 64)) if len(scales) < 2 or scales[1] == 1 else scale
    if whole is scale:
        whole = np.array([[scale[i // 48, j // 48] for j in range(64)] for i in range(128)])
    np.testing.assert_array_equal(held(folder, Q1), codes.astype("f4") * whole)
    config = model_config(hf.describe(folder).hf_config)
    ours = hf.load_params(folder, config)["params"]["layers"]["q"]["kernel"][1]
    np.testing.assert_array_equal(np.asarray(ours), (codes.astype("f4") * whole).reshape(4, 32, 64).transpose(2, 0, 1))


def test_8_bit_floats_need_their_scales(folder):
    tensors = tensors_of(folder)
    rewrite(folder, tensors | {Q1: tensors[Q1].astype(jnp.float8_e4m3fn)}, quantization_config={"quant_method": "fp8"})
    with pytest.raises(UserError, match=f"{Q1} has type F8_E4M3 without scales that fit"):
        hf.describe(folder)


@pytest.mark.parametrize(
    ("config", "file"),
    [
        ({"quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized"}}, None),
        ({"quantization": {"bits": 4, "group_size": 64}}, None),
        ({}, "quantize_config.json"),
        ({}, None),
    ],
    ids=["packed", "mlx", "gptq file", "unsaid"],
)
def test_packed_weights(folder, config, file):
    tensors = tensors_of(folder)
    tensors[Q1.replace("weight", "weight_packed")] = np.zeros((128, 8), "i4")
    rewrite(folder, tensors, **config)
    if file:
        (folder / file).write_text('{"bits": 4}')
    with pytest.raises(UserError, match="quantised weights .*; give the original model's folder in full precision"):
        hf.describe(folder)


# ------------------------------------------------------------------------------------------------ names and heads


@pytest.mark.parametrize(
    "rename",
    [
        lambda key: f"_orig_mod.module.{key}",
        lambda key: key.replace("layers.0.", "layers.0._checkpoint_wrapped_module."),
        lambda key: f"policy.language_model.{key}",
        lambda key: "language_model." + key.removeprefix("model."),
    ],
    ids=["two wrappers", "inside", "shared beginning", "bare under a name"],
)
def test_exact_names(folder, tiny, rename):
    rewrite(folder, {rename(key): x for key, x in tensors_of(folder).items()})
    jax.tree.map(np.testing.assert_array_equal, hf.load_params(folder, tiny[1]), tiny[2])


def test_a_tensor_under_two_names(folder):
    tensors = tensors_of(folder)
    rewrite(folder, tensors | {f"module.{Q1}": tensors[Q1]})
    with pytest.raises(UserError, match=f"tensor .*{Q1} is there twice"):
        hf.describe(folder)


def test_the_head_decides_and_config_must_not_contradict(folder):
    tensors = tensors_of(folder) | {"score.weight": np.ones((2, 64), "f4")}
    rewrite(folder, tensors, architectures=["Qwen3ForSequenceClassification"])
    assert model_config(hf.describe(folder).hf_config).value_head == 2
    rewrite(folder, tensors, id2label={"0": "good"})
    with pytest.raises(UserError, match="say 1 outputs, but the value head has 2"):
        hf.describe(folder)


def test_what_stands_in_the_place_of_a_head(folder):
    """A tied base needs none; an untied one names what was stored instead."""
    rewrite(folder, tensors_of(folder) | {"score.0.weight": np.ones((64, 64), "f4")}, tie_word_embeddings=False)
    config = model_config(hf.describe(folder).hf_config)
    with pytest.raises(UserError, match=r"lm_head.weight is missing.*; tensor score.0.weight is there.*deeper head"):
        hf.load_params(folder, config)


# ------------------------------------------------------------------------------------------------ numbers


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite(folder, tiny, value):
    """Named with their tensor and its layer, whatever part of it is read; an export refuses them as well."""
    tensors = tensors_of(folder)
    tensors[Q1] = tensors[Q1].copy()
    tensors[Q1][3, 5:7] = value
    rewrite(folder, tensors)
    with pytest.raises(UserError, match=f"tensor {Q1} has 2 numbers that are not finite"):
        hf.load_params(folder, tiny[1])
    broken = jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(value), tiny[2])
    with pytest.raises(UserError, match="tensor .* has numbers that are not finite in float32"):
        hf.save_model(folder.with_name("out"), broken, tiny[1], tiny[0])


def test_float16_exports(folder, tiny):
    hf.save_model(folder.with_name("half"), tiny[2], tiny[1], tiny[0], dtype="float16")
    np.testing.assert_array_equal(held(folder.with_name("half"), Q1), tensors_of(folder)[Q1].astype("f2"))
    large = jax.tree.map(lambda x: x * 1e5, tiny[2])
    with pytest.raises(UserError, match="not finite in float16; give --dtype=float32"):
        hf.save_model(folder.with_name("out"), large, tiny[1], tiny[0], dtype="float16")
    assert sorted(path.name for path in folder.parent.iterdir()) == ["half", "model"]


# ------------------------------------------------------------------------------------------------ files


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["actor/model_world_size_8_rank_0.pt"], "verl.model_merger merge --backend fsdp"),
        (["global_step500/mp_rank_00_model_states.pt", "zero_to_fp32.py"], "python zero_to_fp32.py"),
        (["pytorch_model_fsdp_0/__0_0.distcp"], "accelerate merge-weights"),
        (["pytorch_model-00001-of-00002.bin", "config.json"], "convert them to safetensors once"),
        (["adapter_model.bin", "adapter_config.json"], "base_model_name_or_path is missing"),
        (["model-00001-of-00002.safetensors", "config.json"], "shards without model.safetensors.index.json"),
        (["consolidated.00.pth", "params.json"], "convert_llama_weights_to_hf.py"),
        (["tf_model.h5"], "weights of another library"),
        (["checkpoint-500/config.json", "checkpoint-90/config.json"], "give a folder inside it, such as .*checkpoint"),
        (["training_args.bin", "model.safetensors"], "config.json: cannot be read"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_what_other_folders_are(names, message, tmp_path):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(shrink(PRESETS["qwen3-4b"], VOCAB)) if name == "config.json" else "{}")
    with pytest.raises(UserError, match=message) as caught:
        hf.describe(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_index_decides(folder, tiny):
    """An index of a single file is no second opinion; a tensor that it misplaces is named."""
    places = dict.fromkeys(tensors_of(folder), hf.SINGLE)
    (folder / hf.INDEX).write_text(json.dumps({"weight_map": places}))
    assert hf.describe(folder).notes == ()
    (folder / hf.SINGLE).rename(folder / "all.safetensors")
    (folder / hf.INDEX).write_text(json.dumps({"weight_map": dict.fromkeys([*places, "more"], "all.safetensors")}))
    with pytest.raises(UserError, match="all.safetensors: tensor more is missing"):
        hf.describe(folder)
    (folder / hf.INDEX).write_text("{}")
    with pytest.raises(UserError, match="it has no weight_map"):
        hf.describe(folder)
