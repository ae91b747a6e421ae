"""Families: found by their files, published models, and what the decoder does not do."""

import json
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dwrl_jax.core.errors import UserError
from dwrl_jax.models import families, hf
from dwrl_jax.models.families import model_config, read_config, with_value_head
from dwrl_jax.models.families.presets import PRESETS, shrink
from tests.small import VOCAB, lively


def test_exact_presets():
    """Parameter counts of the published models, from the table alone (model cards: 3.09 B, 7.62 B ...)."""
    published = {
        "qwen2.5-3b": 3_085_938_688,
        "qwen2.5-7b": 7_615_616_512,
        "llama3.2-3b": 3_212_749_824,
        "llama3.1-8b": 8_030_261_248,
        "llama3.3-70b": 70_553_706_496,
        "qwen3-0.6b": 596_049_920,
        "qwen3-4b": 4_022_468_096,
        "qwen3-8b": 8_190_735_360,
        "qwen3-30b-a3b": 30_532_122_624,
        "gemma3-1b": 999_885_952,
        "gemma3-4b": 3_880_263_168,
        "mistral-7b-v0.1": 7_241_732_096,
        "mistral-7b-v0.3": 7_248_023_552,
        "mistral-nemo-2407": 12_247_782_400,
        "olmo-2-1124-7b": 7_298_617_344,
        "olmo-3-1025-7b": 7_298_011_136,
        "smollm3-3b": 3_075_098_624,
    }
    for name, parameters in published.items():
        tensors = hf.hf_tensors(model_config(PRESETS[name]))
        assert sum(int(np.prod(weight.hf_shape)) for _, weight, _ in tensors) == parameters
    with pytest.raises(UserError, match="num_layers"):
        shrink(PRESETS["qwen3-4b"], VOCAB, num_layers=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model_type": "gemma2"},
            rf"model_type = 'gemma2' is not .*; choose a model of {', '.join(families.names())}, .*CONTRIBUTING.md\)$",
        ),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 4.0}}, "rope_scaling.rope_type = 'longrope'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters.factor is missing"),
        ({"rope_scaling": {"type": "llama3", "factor": 8.0}}, "rope_scaling.low_freq_factor is missing"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, "only the same values for all layers"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "default"}},
            "rope_scaling and rope_parameters say different things",
        ),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"layer_types": ["sliding_attention"]}, "layer_types"),
        ({"layer_types": ["full_attention", "sliding_attention"] * 18}, "needs use_sliding_window = true"),
        ({"layer_types": ["chunked_attention"] * 36}, "must say full_attention or sliding_attention"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_exact_errors_of_configs(change, message):
    with pytest.raises(UserError, match=message):
        model_config(PRESETS["qwen3-4b"] | change)


def windows_of(**change):
    return model_config(shrink(PRESETS["qwen3-4b"], VOCAB) | change).windows


def test_exact_sliding_windows():
    """Those of transformers: `layer_types` decides, else the number of the layer; a model of Llama has none."""
    use = {"use_sliding_window": True, "sliding_window": 8}
    assert windows_of(sliding_window=8) == windows_of(**use) == windows_of(**use, max_window_layers=2) == ()
    assert windows_of(**use, max_window_layers=1) == (0, 8)
    assert windows_of(**use, max_window_layers=1, layer_types=["sliding_attention", "full_attention"]) == (8, 0)
    assert windows_of(use_sliding_window=True, sliding_window=None, max_window_layers=0) == ()
    assert model_config(shrink(PRESETS["llama3.1-8b"], VOCAB) | use | {"max_window_layers": 0}).windows == ()


def test_exact_lengths_by_rope_scaling():
    """YaRN and linear rescaling are there for longer texts; with dynamic rescaling these change all frequencies."""
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    for scaling, longest in ((yarn, 131072), ({"type": "linear", "factor": 2}, 81920), ({"type": "dynamic"}, 40960)):
        assert model_config(PRESETS["qwen3-4b"] | {"rope_scaling": scaling}).max_position == longest


TREE = """
from dwrl_jax.models.families import Family, llama, parts

FAMILY = Family(
    language_model="TreeForCausalLM",
    reward_model="TreeForSequenceClassification",
    shape=lambda hf_config: parts.shape(hf_config | {"hidden_size": hf_config["n_embd"]}, qk_norm=True),
    presets={"tree-3b": llama.FAMILY.presets["llama3.2-3b"] | {"model_type": "tree", "n_embd": 64}},
    tensor_name=lambda key: key.replace("model.", "transformer.").replace("lm_head", "output"),
)
"""


@pytest.mark.parametrize("outputs", [0, 1])
def test_exact_a_family_is_one_file(outputs, tmp_path, monkeypatch):
    """From its config.json through its files and back, tensors of other names included."""
    (tmp_path / "tree.py").write_text(TREE)
    monkeypatch.setattr(families, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "dwrl_jax.models.families.tree", raising=False)
    assert families.names() == ["tree"]
    hf_config = shrink(families.load("tree").presets["tree-3b"], VOCAB, tie_word_embeddings=False)
    hf_config = with_value_head(hf_config, 0) if outputs else hf_config
    config = model_config(hf_config)
    assert config.qk_norm and config.value_head == outputs
    params = lively(config)
    hf.save_model(tmp_path / "model", params, config, hf_config)
    prefixes = {key.split(".")[0] for key in load_file(tmp_path / "model" / hf.SINGLE)}
    assert prefixes == {"transformer", "score" if outputs else "output"}
    assert model_config(read_config(tmp_path / "model")) == config
    jax.tree.map(np.testing.assert_array_equal, hf.load_params(tmp_path / "model", config), params)


def test_exact_text_half_of_a_multimodal_folder(tmp_path, monkeypatch):
    """Its config.json has the absent keys that transformers fills in; the other half's tensors are left out."""
    text = shrink(PRESETS["gemma3-4b"], VOCAB, torch_dtype="float32")
    config = model_config(text)
    params = lively(config)
    hf.save_model(tmp_path / "text", params, config, text)
    for layout in ("language_model.model.", "model.language_model."):
        tensors = load_file(tmp_path / "text" / hf.SINGLE)
        tensors = {layout + key.removeprefix("model."): tensor for key, tensor in tensors.items()}
        tensors |= {"vision_tower.vision_model.head.weight": np.ones((2, 2), "f4")}
        tensors |= {"model.multi_modal_projector.mm_input_projection_weight": np.ones((2, 2), "f4")}
        folder = tmp_path / layout
        folder.mkdir()
        save_file(tensors, folder / hf.SINGLE)
        inner = {key: value for key, value in text.items() if key not in ("architectures", "hidden_activation")}
        whole = {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "eos_token_id": [1, 106]}
        (folder / "config.json").write_text(json.dumps(whole | {"text_config": inner, "vision_config": {}}))
        described = hf.describe(folder)
        assert described.hf_config["eos_token_id"] == [1, 106] and "text half of a gemma3 model" in described.notes[0]
        assert model_config(described.hf_config) == config
        jax.tree.map(np.testing.assert_array_equal, hf.load_params(folder, config), params)


@pytest.mark.parametrize(
    ("preset", "change", "message"),
    [
        ("gemma3-1b", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0 is not supported, only None"),
        ("gemma3-1b", {"sliding_window": None}, "a sliding_window of at least 1, not None$"),
        ("olmo-3-1025-7b", {"rope_parameters": {"sliding_attention": {"rope_type": "yarn"}}}, "'yarn' of sliding_att"),
        ("smollm3-3b", {"no_rope_layers": [1]}, "no_rope_layers has 1 numbers for 36 layers"),
    ],
)
def test_exact_errors_of_families(preset, change, message):
    with pytest.raises(UserError, match=message):
        model_config(PRESETS[preset] | change)


def test_exact_kinds_of_layers():
    """Five layers with a window before each without; a window in all layers of Mistral; every fourth without rope."""
    gemma = model_config(PRESETS["gemma3-1b"])
    assert gemma.windows[:7] == (512,) * 5 + (0, 512) and gemma.layer_ropes[4:6] == ("local", "model")
    assert model_config(PRESETS["mistral-7b-v0.1"]).windows == (4096,) * 32
    assert model_config(PRESETS["mistral-7b-v0.3"]).windows == ()
    absent = {
        key: value for key, value in PRESETS["smollm3-3b"].items() if key not in ("no_rope_layers", "layer_types")
    }
    assert model_config(absent) == model_config(PRESETS["smollm3-3b"])
    assert model_config(absent).layer_ropes[:5] == ("model", "model", "model", "none", "model")
