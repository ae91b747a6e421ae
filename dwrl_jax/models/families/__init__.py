"""Hugging Face's config.json <-> `ModelConfig`, and what of it the decoder can do."""

import json
from pathlib import Path

from dwrl_jax.core.errors import UserError
from dwrl_jax.models.transformer import ModelConfig, RopeScaling

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
REWARD_MODELS = {kind: name.replace("CausalLM", "SequenceClassification") for kind, name in ARCHITECTURES.items()}
NUMERICS = ("dtype", "param_dtype", "remat", "attention")  # what no config.json has
# what the decoder does; a config that says otherwise is refused, an absent key means the same
SUPPORTED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
    "pretraining_tp": 1,
    "quantization_config": None,
}


def read_config(folder) -> dict:
    """The folder's config.json; `UserError` when it is missing or no JSON object."""
    return read_json(Path(folder) / "config.json")


def read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); is it a model folder?") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def model_config(hf_config: dict, **numerics: str) -> ModelConfig:
    """`ModelConfig` of a Llama, Qwen2 or Qwen3 config.json; `UserError` for what the decoder does not do.

    `numerics` are its fields named in NUMERICS.
    """
    kind = hf_config.get("model_type")
    if kind not in ARCHITECTURES:
        raise UserError(f"config.json: model_type = {kind!r} is not supported, only {list(ARCHITECTURES)}")
    for key, value in SUPPORTED.items():
        if hf_config.get(key, value) != value:
            raise UserError(f"config.json: {key} = {hf_config[key]!r} is not supported, only {value!r}")
    if set(hf_config.get("layer_types") or ()) - {"full_attention"}:
        raise UserError(f"config.json: layer_types = {hf_config['layer_types']!r} is not supported")
    rope_theta, rope_scaling = _rope(hf_config)
    try:
        hidden, heads = hf_config["hidden_size"], hf_config["num_attention_heads"]
        return ModelConfig(
            vocab_size=hf_config["vocab_size"],
            hidden_size=hidden,
            layers=hf_config["num_hidden_layers"],
            heads=heads,
            kv_heads=hf_config.get("num_key_value_heads") or heads,
            head_dim=hf_config.get("head_dim") or (128 if kind == "qwen3" else hidden // heads),
            mlp_size=hf_config["intermediate_size"],
            rope_theta=rope_theta,
            rope_scaling=rope_scaling,
            norm_eps=hf_config["rms_norm_eps"],
            tied=bool(hf_config.get("tie_word_embeddings", False)),
            qkv_bias=kind == "qwen2",
            qk_norm=kind == "qwen3",
            max_position=hf_config["max_position_embeddings"],
            value_head=_outputs(hf_config) if hf_config.get("architectures") == [REWARD_MODELS[kind]] else 0,
            **numerics,
        )
    except KeyError as error:
        raise UserError(f"config.json: the key {error.args[0]!r} is missing") from error


def with_value_head(hf_config: dict, pad_id: int, outputs: int = 1) -> dict:
    """The config.json of the same model with so many outputs, one a reward, at the last token that is no `pad_id`."""
    names = ["reward"] if outputs == 1 else [f"embedding_{i}" for i in range(outputs)]
    by_name = {name: i for i, name in enumerate(names)}
    labels = {"num_labels": outputs, "id2label": {str(i): name for name, i in by_name.items()}, "label2id": by_name}
    return hf_config | labels | {"architectures": [REWARD_MODELS[hf_config["model_type"]]], "pad_token_id": pad_id}


def _outputs(hf_config: dict) -> int:
    """How many outputs a model has that classifies; transformers leaves its names of two out."""
    return len(hf_config.get("id2label") or (0, 1))


def _rope(hf_config: dict) -> tuple[float, RopeScaling | None]:
    """Base and scaling, from `rope_parameters` (transformers 5) or from `rope_theta` and `rope_scaling`."""
    name = "rope_parameters" if hf_config.get("rope_parameters") else "rope_scaling"
    rope = hf_config.get(name) or {}
    theta = float(rope.get("rope_theta", hf_config.get("rope_theta", 10000.0)))
    kind = rope.get("rope_type", rope.get("type", "default"))
    partial = rope.get("partial_rotary_factor", hf_config.get("partial_rotary_factor", 1.0))
    if partial != 1.0:
        raise UserError(f"config.json: partial_rotary_factor = {partial!r} is not supported, only 1.0")
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise UserError(f"config.json: {name}.rope_type = {kind!r} is not supported, only default, llama3")
    keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    for key in keys:
        if key not in rope:
            raise UserError(f"config.json: the key {name}.{key} is missing")
    return theta, RopeScaling(*(rope[key] for key in keys))
