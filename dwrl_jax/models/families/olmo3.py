"""OLMo 3: OLMo 2 with a window in three of four layers, whose rope is not rescaled."""

from dwrl_jax.models.families import Family, olmo2, parts


def shape(hf_config: dict) -> dict:
    kinds = parts.layer_kinds(hf_config, every=4)
    theta = float(parts.value_of(hf_config, "rope_theta", 500000.0))
    windows = parts.windows_by_kind(hf_config, kinds, hf_config["sliding_window"])
    hf_config, ropes = parts.local_ropes(hf_config, kinds, theta, theta)
    return olmo2.shape(hf_config, theta=theta, windows=windows, **ropes)


FAMILY = Family(
    language_model="Olmo3ForCausalLM",
    reward_model="Olmo3ForSequenceClassification",
    shape=shape,
    presets={
        "olmo-3-1025-7b": olmo2.olmo(
            architectures=["Olmo3ForCausalLM"],
            model_type="olmo3",
            vocab_size=100278,
            max_position_embeddings=65536,
            sliding_window=4096,
            layer_types=(["sliding_attention"] * 3 + ["full_attention"]) * 8,
            rope_scaling={
                "rope_type": "yarn",
                "factor": 8.0,
                "original_max_position_embeddings": 8192,
                "attention_factor": 1.2079441541679836,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
            },
            torch_dtype="bfloat16",
        ),
    },
    defaults={"sliding_window": 4096},
    small={"sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"]},
)
