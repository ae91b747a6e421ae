"""Code that several families share: it reads the keys of config.json that Llama and similar models have in common.

An absent key has the value that transformers gives it, as a key with the value null has for most keys.
"""

import math

from dwrl_jax.core.errors import UserError
from dwrl_jax.models.rope import Linear, Llama3, Yarn

# values that the decoder supports: an absent key means the same value, any other value is an error
SUPPORTED = {"hidden_act": "silu", "pretraining_tp": 1, "quantization_config": None, "partial_rotary_factor": 1.0}
ROPES = ("default", "linear", "dynamic", "yarn", "llama3")


def shape(hf_config: dict, *, positions: int = 2048, theta: float = 10000.0, **differences) -> dict:
    """The fields of `ModelConfig` from a config.json like Llama's. `differences` replaces fields for a family.

    `positions` is the family's largest number of positions and `theta` its base of the rotary embedding, where
    config.json does not say them. KeyError for a missing key, UserError for a feature that the decoder does not
    support.
    """
    for key, value in SUPPORTED.items():
        if hf_config.get(key) not in (None, value):
            raise UserError(f"config.json: {key} = {hf_config[key]!r} is not supported, only {value!r}")
    hidden, heads = hf_config["hidden_size"], hf_config["num_attention_heads"]
    theta, scaling, longest = _rope(hf_config, value_of(hf_config, "max_position_embeddings", positions), theta)
    fields = {
        "vocab_size": hf_config["vocab_size"],
        "hidden_size": hidden,
        "layers": hf_config["num_hidden_layers"],
        "heads": heads,
        "kv_heads": hf_config.get("num_key_value_heads") or heads,
        "head_dim": hf_config.get("head_dim") or hidden // heads,
        "mlp_size": hf_config["intermediate_size"],
        "rope_theta": theta,
        "rope_scaling": scaling,
        "norm_eps": value_of(hf_config, "rms_norm_eps", 1e-6),
        "tied": bool(hf_config.get("tie_word_embeddings", False)),
        "qkv_bias": False,
        "qk_norm": False,
        "max_position": longest,
    }
    return fields | differences


def value_of(hf_config: dict, key: str, default):
    """The value of a key, or the default where it is absent or null."""
    value = hf_config.get(key)
    return default if value is None else value


def windows(hf_config: dict) -> tuple[int, ...]:
    """The sliding windows of Qwen's layers, as in `ModelConfig`: `layer_types` says which layers have one.

    Without `layer_types` those from number `max_window_layers` on have it. Without `use_sliding_window` none has.
    """
    layers, size = hf_config["num_hidden_layers"], hf_config.get("sliding_window", 4096)
    kinds = hf_config.get("layer_types")
    if kinds is None:
        first = value_of(hf_config, "max_window_layers", 28) if hf_config.get("use_sliding_window") else layers
        kinds = ["full_attention" if i < first or size is None else "sliding_attention" for i in range(layers)]
    return windows_by_kind(hf_config, kinds, size, switch="use_sliding_window")


def layer_kinds(hf_config: dict, every: int) -> list[str]:
    """`layer_types`; without it every layer whose number `every` divides, from 1 on, is full_attention."""
    layers = range(1, hf_config["num_hidden_layers"] + 1)
    kinds = ["sliding_attention" if i % every else "full_attention" for i in layers]
    return value_of(hf_config, "layer_types", kinds)


def windows_by_kind(hf_config: dict, kinds: list[str], size: int | None, switch: str = "") -> tuple[int, ...]:
    """The windows of layers of these kinds, as in `ModelConfig`. `switch` is a key that must be true for them.

    UserError for other kinds, and for windows without the switch or without a size.
    """
    layers = hf_config["num_hidden_layers"]
    if len(kinds) != layers or set(kinds) - {"full_attention", "sliding_attention"}:
        raise UserError(
            f"config.json: layer_types = {kinds!r} is not supported: "
            f"it must say full_attention or sliding_attention for each of the {layers} layers"
        )
    if "sliding_attention" not in kinds:
        return ()
    if not (not switch or hf_config.get(switch)) or not isinstance(size, int) or size < 1:
        needed, there = (f"{switch} = true and ", f"{hf_config.get(switch)!r} and ") if switch else ("", "")
        raise UserError(
            f"config.json: layer_types has sliding_attention, which needs {needed}a "
            f"sliding_window of at least 1, not {there}{size!r}"
        )
    return tuple(size if kind == "sliding_attention" else 0 for kind in kinds)


def local_ropes(hf_config: dict, kinds: list[str], theta: float, local_theta: float) -> tuple[dict, dict]:
    """config.json with the rope of its full_attention layers alone, and the fields of `ModelConfig` for the others.

    `rope_parameters` may have a rope for each of the two kinds (transformers 5). The rope of the layers with a window
    has a base of its own and is not rescaled. `theta` and `local_theta` are the bases where config.json has none.
    """
    given, base = hf_config.get("rope_parameters") or {}, local_theta
    if given.keys() & {"full_attention", "sliding_attention"}:
        local = given.get("sliding_attention") or {}
        if value_of(local, "rope_type", "default") != "default":
            raise UserError(f"config.json: rope_type = {local['rope_type']!r} of sliding_attention is not supported")
        hf_config = hf_config | {"rope_parameters": {"rope_theta": theta} | (given.get("full_attention") or {})}
        base = value_of(local, "rope_theta", local_theta)
    names = {"full_attention": "model", "sliding_attention": "local"}
    return hf_config, {"layer_ropes": tuple(names[kind] for kind in kinds), "local_rope_theta": float(base)}


def _rope(hf_config: dict, longest: int, base: float):
    """Base, rescaling and the largest number of positions.

    They are in `rope_parameters` (transformers 5), or in `rope_theta` and `rope_scaling`. UserError where both say
    different things. YaRN and linear rescaling lengthen the texts for which the model is meant by their factor. Dynamic
    rescaling leaves texts of the model's own length alone, and longer ones are refused.
    """
    read = {
        name: _one_rope(hf_config, name, longest, base)
        for name in ("rope_scaling", "rope_parameters")
        if hf_config.get(name) is not None and hf_config[name] != {}
    }
    if len(set(read.values())) > 1:
        raise UserError("config.json: rope_scaling and rope_parameters say different things; remove one of the two")
    return next(iter(read.values()), (_theta(hf_config, {}, base), None, longest))


def _theta(hf_config: dict, rope: dict, base: float) -> float:
    given = hf_config.get("rope_parameters") or {}
    return float(next(filter(None, (x.get("rope_theta") for x in (rope, hf_config, given))), base))


def _one_rope(hf_config: dict, name: str, longest: int, base: float):
    rope = hf_config[name]
    if not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
        raise UserError(f"config.json: {name} = {rope!r} is not supported, only the same values for all layers")
    kind = rope.get("rope_type") or rope.get("type") or "default"
    partial = value_of(rope, "partial_rotary_factor", value_of(hf_config, "partial_rotary_factor", 1.0))
    if partial != 1.0:
        raise UserError(f"config.json: partial_rotary_factor = {partial!r} is not supported, only 1.0")
    if kind not in ROPES:
        raise UserError(f"config.json: {name}.rope_type = {kind!r} is not supported, only {', '.join(ROPES)}")
    original = value_of(hf_config, "original_max_position_embeddings", rope.get("original_max_position_embeddings"))
    original = longest if original is None else original
    if kind == "yarn" and "factor" in rope and rope["factor"] is None:
        rope = rope | {"factor": longest / original}
    needed = {"llama3": ("factor", "low_freq_factor", "high_freq_factor"), "linear": ("factor",), "yarn": ("factor",)}
    for key in needed.get(kind, ()):
        if not isinstance(rope.get(key), int | float):
            raise UserError(f"config.json: the key {name}.{key} is missing or no number")
    theta = _theta(hf_config, rope, base)
    if kind == "llama3":
        return theta, Llama3(rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"], original), longest
    if kind == "linear":
        return theta, Linear(rope["factor"]), max(longest, int(longest * rope["factor"]))
    if kind == "yarn":
        return theta, _yarn(rope, original), max(longest, int(original * rope["factor"]))
    return theta, None, longest


def _yarn(rope: dict, original: int) -> Yarn:
    def scale(weight):
        return 0.1 * weight * math.log(rope["factor"]) + 1.0 if rope["factor"] > 1 else 1.0

    attention = rope.get("attention_factor")
    if attention is None:
        mscale, all_dim = rope.get("mscale"), rope.get("mscale_all_dim")
        attention = scale(mscale) / scale(all_dim) if mscale and all_dim else scale(1.0)
    return Yarn(
        factor=rope["factor"],
        original_max_position=original,
        beta_fast=rope.get("beta_fast") or 32,
        beta_slow=rope.get("beta_slow") or 1,
        attention_factor=float(attention),
        truncate=rope.get("truncate", True),
    )
