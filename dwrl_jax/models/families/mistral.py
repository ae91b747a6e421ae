"""Mistral: Llama, with a sliding window in all layers of the first releases. The size of a head may be given."""

from dwrl_jax.models.families import Family, parts

DEFAULTS = {"num_key_value_heads": 8, "sliding_window": 4096}


def shape(hf_config: dict) -> dict:
    size = hf_config["sliding_window"]
    kinds = ["full_attention" if size is None else "sliding_attention"] * hf_config["num_hidden_layers"]
    return parts.shape(hf_config, positions=131072, windows=parts.windows_by_kind(hf_config, kinds, size))


def _mistral(**shape) -> dict:
    return {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 32768,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "bfloat16",
        **shape,
    }


FAMILY = Family(
    language_model="MistralForCausalLM",
    reward_model="MistralForSequenceClassification",
    shape=shape,
    presets={
        "mistral-7b-v0.1": _mistral(vocab_size=32000, rope_theta=10000.0, sliding_window=4096),
        "mistral-7b-v0.3": _mistral(vocab_size=32768),
        "mistral-nemo-2407": _mistral(
            vocab_size=131072,
            hidden_size=5120,
            num_hidden_layers=40,
            head_dim=128,
            max_position_embeddings=131072,
        ),
    },
    defaults=DEFAULTS,
)
