"""The values that config.json may have. It comes from elsewhere, and a wrong type or an absurd size is named.

A key that is absent or null is no matter of this file.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

from dwrl_jax.core.errors import UserError

POSITIONS = 2**31 - 1
SIZES = {  # least and most; no published model is near the most
    "vocab_size": (1, 2**24),
    "hidden_size": (1, 2**20),
    "num_hidden_layers": (1, 2**12),
    "num_attention_heads": (1, 2**14),
    "num_key_value_heads": (1, 2**14),
    "head_dim": (1, 2**14),
    "intermediate_size": (1, 2**24),
    "moe_intermediate_size": (1, 2**24),
    "num_experts": (0, 2**14),
    "num_local_experts": (0, 2**14),
    "num_experts_per_tok": (0, 2**14),
    "max_position_embeddings": (1, POSITIONS),
    "original_max_position_embeddings": (1, POSITIONS),
    "max_window_layers": (0, 2**12),
    "sliding_window": (0, POSITIONS),
    "sliding_window_pattern": (1, 2**12),
    "no_rope_layer_interval": (1, 2**12),
    "num_labels": (0, 2**24),
}
POSITIVE = ("rope_theta", "rope_local_base_freq", "query_pre_attn_scalar", "rms_norm_eps", "final_logit_softcapping")
SWITCHES = ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window", "norm_topk_prob")
ROPES = ("rope_scaling", "rope_parameters")
ROPE_NUMBERS = ("factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "attention_factor")
ROPE_NUMBERS += ("rope_theta", "mscale", "mscale_all_dim")
OBJECTS = (*ROPES, "id2label", "quantization_config", "compression_config", "quantization")
NAMES = ("layer_types", "architectures")


def check(path: Path, hf_config: Mapping) -> None:
    """UserError for the first value of a config.json that is of a wrong type or size; it names file and key."""
    for key, (least, most) in SIZES.items():
        _check(path, hf_config, key, lambda x, a=least, b=most: _whole(x, a, b), f"a whole number, {least} to {most}")
    for key in POSITIVE:
        _check(path, hf_config, key, _positive, "a positive number")
    for key in SWITCHES:
        _check(path, hf_config, key, lambda x: isinstance(x, bool), "true or false")
    for key in OBJECTS:
        _check(path, hf_config, key, lambda x: isinstance(x, dict), "an object")
    for key in NAMES:
        _check(path, hf_config, key, _strings, "a list of names")
    for name in ROPES:
        rope = hf_config.get(name) or {}
        _check_rope(path, rope, name)
        for kind, part in rope.items():  # transformers 5 may have one for each kind of layer
            if isinstance(part, dict):
                _check_rope(path, part, f"{name}.{kind}")


def _check_rope(path: Path, rope: Mapping, name: str) -> None:
    for key in ROPE_NUMBERS:
        _check(path, rope, key, _positive, "a positive number", f"{name}.")
    original = "original_max_position_embeddings"
    _check(path, rope, original, lambda x: _whole(x, 1, POSITIONS), f"a whole number, 1 to {POSITIONS}", f"{name}.")


def _check(path: Path, content: Mapping, key: str, holds: Callable, wanted: str, inside: str = "") -> None:
    value = content.get(key)
    if value is not None and not holds(value):
        raise UserError(f"{path}: {inside}{key} = {repr(value)[:60]} is not possible: it must be {wanted}")


def _whole(value, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _positive(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e38 and math.isfinite(value)


def _strings(value) -> bool:
    return isinstance(value, list) and all(isinstance(part, str) for part in value)
