"""Llama 3 and all models with the same architecture.

The presets are the base models. Their -Instruct variants have weights of the same shapes, but end a turn with other
tokens: [128001, 128008, 128009]. Llama 3.3 was published as such a variant alone.
"""

from dwrl_jax.models.families import Family, parts


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


def shape(hf_config: dict) -> dict:
    bias = bool(hf_config.get("attention_bias"))
    return parts.shape(hf_config, qkv_bias=bias, o_bias=bias, mlp_bias=bool(hf_config.get("mlp_bias")))


FAMILY = Family(
    language_model="LlamaForCausalLM",
    reward_model="LlamaForSequenceClassification",
    shape=shape,
    presets={
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
        "llama3.3-70b": _llama3(
            hidden_size=8192,
            intermediate_size=28672,
            num_hidden_layers=80,
            num_attention_heads=64,
            rope_factor=8.0,
            tie_word_embeddings=False,
        ),
    },
)
