"""Code that several families share: it reads the keys of config.json that Llama and similar models have in common."""

from dwrl_jax.core.errors import UserError
from dwrl_jax.models.transformer import RopeScaling

# values that the decoder supports: an absent key means the same value, any other value is an error
SUPPORTED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
    "pretraining_tp": 1,
    "quantization_config": None,
}


def shape(hf_config: dict, **differences) -> dict:
    """The fields of `ModelConfig` from a config.json like Llama's. `differences` replaces fields for a family.

    KeyError for a missing key, UserError for a feature that the decoder does not support.
    """
    for key, value in SUPPORTED.items():
        if hf_config.get(key, value) != value:
            raise UserError(f"config.json: {key} = {hf_config[key]!r} is not supported, only {value!r}")
    if set(hf_config.get("layer_types") or ()) - {"full_attention"}:
        raise UserError(f"config.json: layer_types = {hf_config['layer_types']!r} is not supported")
    rope_theta, rope_scaling = _rope(hf_config)
    hidden, heads = hf_config["hidden_size"], hf_config["num_attention_heads"]
    fields = {
        "vocab_size": hf_config["vocab_size"],
        "hidden_size": hidden,
        "layers": hf_config["num_hidden_layers"],
        "heads": heads,
        "kv_heads": hf_config.get("num_key_value_heads") or heads,
        "head_dim": hf_config.get("head_dim") or hidden // heads,
        "mlp_size": hf_config["intermediate_size"],
        "rope_theta": rope_theta,
        "rope_scaling": rope_scaling,
        "norm_eps": hf_config["rms_norm_eps"],
        "tied": bool(hf_config.get("tie_word_embeddings", False)),
        "qkv_bias": False,
        "qk_norm": False,
        "max_position": hf_config["max_position_embeddings"],
    }
    return fields | differences


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
