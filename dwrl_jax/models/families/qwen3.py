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


FAMILY = Family(
    language_model="Qwen3ForCausalLM",
    reward_model="Qwen3ForSequenceClassification",
    shape=shape,
    presets={
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
    },
)
