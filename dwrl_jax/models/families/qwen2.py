"""Qwen2 and Qwen2.5: Llama with biases in the projections to queries, keys and values.

The presets are the base models. Their -Instruct variants have weights of the same shapes, and end a turn with the
token 151645.
"""

from dwrl_jax.models.families import Family, parts


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


def shape(hf_config: dict) -> dict:
    return parts.shape(hf_config, positions=32768, qkv_bias=True, windows=parts.windows(hf_config))


FAMILY = Family(
    language_model="Qwen2ForCausalLM",
    reward_model="Qwen2ForSequenceClassification",
    shape=shape,
    presets={
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
    },
)
