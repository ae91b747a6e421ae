"""OLMo 2: norms stand after attention and feed-forward, and those of queries and keys span all heads."""

from dwrl_jax.models.families import Family, parts


def shape(hf_config: dict, **differences) -> dict:
    bias = bool(hf_config.get("attention_bias"))
    return parts.shape(
        hf_config,
        norm_eps=parts.value_of(hf_config, "rms_norm_eps", 1e-5),
        qkv_bias=bias,
        o_bias=bias,
        qk_norm=True,
        qk_norm_of_all=True,
        norms="post",
        **differences,
    )


def olmo(**shape) -> dict:
    """A published config.json. The releases have the same width and layers at 7B."""
    return {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 500000,
        "attention_bias": False,
        "tie_word_embeddings": False,
        "pad_token_id": 100277,
        "eos_token_id": 100257,
        **shape,
    }


def _olmo2(**shape) -> dict:
    return olmo(
        architectures=["Olmo2ForCausalLM"],
        model_type="olmo2",
        vocab_size=100352,
        max_position_embeddings=4096,
        rope_scaling=None,
        torch_dtype="float32",
        **shape,
    )


FAMILY = Family(
    language_model="Olmo2ForCausalLM",
    reward_model="Olmo2ForSequenceClassification",
    shape=shape,
    presets={
        "olmo-2-0425-1b": _olmo2(
            hidden_size=2048,
            intermediate_size=8192,
            num_hidden_layers=16,
            num_attention_heads=16,
            num_key_value_heads=16,
        ),
        "olmo-2-1124-7b": _olmo2(),
    },
)
