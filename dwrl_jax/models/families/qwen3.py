"""Qwen3: Llama with norms of queries and keys. The default size of a head is 128 at every width."""

from dwrl_jax.models.families import Family, parts


def shape(hf_config: dict) -> dict:
    bias = bool(hf_config.get("attention_bias"))
    return parts.shape(
        hf_config,
        positions=32768,
        head_dim=hf_config.get("head_dim") or 128,
        qk_norm=True,
        qkv_bias=bias,
        o_bias=bias,
        windows=parts.windows(hf_config),
    )


def _qwen3(**shape) -> dict:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": 151936,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 40960,
        "rope_theta": 1000000.0,
        "rope_scaling": None,
        "use_sliding_window": False,
        "attention_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "torch_dtype": "bfloat16",
        **shape,
    }


def _sizes(hidden: int, mlp: int, layers: int, heads: int) -> dict:
    return {
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }


FAMILY = Family(
    language_model="Qwen3ForCausalLM",
    reward_model="Qwen3ForSequenceClassification",
    shape=shape,
    presets={
        "qwen3-0.6b": _qwen3(**_sizes(1024, 3072, 28, 16), tie_word_embeddings=True),
        "qwen3-1.7b": _qwen3(**_sizes(2048, 6144, 28, 16), tie_word_embeddings=True),
        "qwen3-4b": _qwen3(**_sizes(2560, 9728, 36, 32), tie_word_embeddings=True),
        "qwen3-8b": _qwen3(**_sizes(4096, 12288, 36, 32)),
        "qwen3-14b": _qwen3(**_sizes(5120, 17408, 40, 40)),
        "qwen3-32b": _qwen3(**_sizes(5120, 25600, 64, 64)),
    },
)
