"""Published shapes of the paper's models, in the words of their own config.json, and the same in small.

The values are those of the base models. Their -Instruct variants have the same weights' shapes and end a turn
with other tokens: 151645 for Qwen2.5, [128001, 128008, 128009] for Llama 3.
"""

from dwrl_jax.core.errors import UserError


def _qwen25(**shape) -> dict:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "use_sliding_window": False,
        "bos_token_id": 151643,
        "eos_token_id": 151643,
        "torch_dtype": "bfloat16",
        **shape,
    }


def _llama3(*, rope_factor, **shape) -> dict:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 128256,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": rope_factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "attention_bias": False,
        "mlp_bias": False,
        "pretraining_tp": 1,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
        "torch_dtype": "bfloat16",
        **shape,
    }


PRESETS: dict[str, dict] = {
    "qwen2.5-3b": _qwen25(
        vocab_size=151936,
        hidden_size=2048,
        intermediate_size=11008,
        num_hidden_layers=36,
        num_attention_heads=16,
        num_key_value_heads=2,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
    ),
    "qwen2.5-7b": _qwen25(
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        max_position_embeddings=131072,
        tie_word_embeddings=False,
    ),
    "llama3.2-3b": _llama3(
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=28,
        num_attention_heads=24,
        rope_factor=32.0,
        tie_word_embeddings=True,
    ),
    "llama3.1-8b": _llama3(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        rope_factor=8.0,
        tie_word_embeddings=False,
    ),
    "qwen3-4b": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": 151936,
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 40960,
        "rope_theta": 1000000.0,
        "rope_scaling": None,
        "use_sliding_window": False,
        "attention_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "torch_dtype": "bfloat16",
    },
}


def published(hub_id: str) -> dict:
    """The config.json of a hub id among PRESETS, "-Instruct" or not; UserError for another."""
    name = hub_id.rpartition("/")[2].lower().removesuffix("-instruct")
    found = [config for key, config in PRESETS.items() if key.replace("-", "") == name.replace("-", "")]
    if not found:
        raise UserError(
            f"model.path={hub_id!r}: no such folder, and its shape is not known without a download; "
            f"give a folder with its config.json, or one of {', '.join(PRESETS)}"
        )
    return found[0]


def shrink(hf_config: dict, vocab_size: int, **changes) -> dict:
    """The same architecture in small: two layers of width 64, four query heads on two key/value heads.

    Ties, biases, q/k norms and the kind of rope scaling stay; Llama 3's scaling moves to 64 original
    positions, so that short sequences feel it. Special tokens outside the new vocabulary become None.
    `changes` replaces keys of the result; an unknown one is a `UserError`.
    """
    small = dict(
        hf_config,
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
    )
    if "head_dim" in hf_config:
        square = hf_config["head_dim"] * hf_config["num_attention_heads"] == hf_config["hidden_size"]
        small["head_dim"] = 16 if square else 32
    for name in ("rope_scaling", "rope_parameters"):
        if "original_max_position_embeddings" in (hf_config.get(name) or {}):
            small[name] = hf_config[name] | {"original_max_position_embeddings": 64}
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        ids = small.get(name)
        if ids is not None and max(ids if isinstance(ids, list) else [ids]) >= vocab_size:
            small[name] = None
    for key in changes.keys() - small.keys():
        raise UserError(f"shrink: {key!r} is not a key of this config; it has {', '.join(sorted(small))}")
    return small | changes
