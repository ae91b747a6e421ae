"""SmolLM3: Llama, with a rotary embedding in three of four layers. `no_rope_layers` has 1 for a layer with it."""

from dwrl_jax.core.errors import UserError
from dwrl_jax.models.families import Family, parts

DEFAULTS = {"num_key_value_heads": 4, "tie_word_embeddings": True, "no_rope_layer_interval": 4}


def shape(hf_config: dict) -> dict:
    layers, bias = hf_config["num_hidden_layers"], bool(hf_config.get("attention_bias"))
    every, size = hf_config["no_rope_layer_interval"], hf_config.get("sliding_window")
    turned = parts.value_of(hf_config, "no_rope_layers", [int(i % every != 0) for i in range(1, layers + 1)])
    if len(turned) < layers:
        raise UserError(f"config.json: no_rope_layers has {len(turned)} numbers for {layers} layers")
    near = hf_config.get("use_sliding_window") and size is not None
    kinds = ["sliding_attention" if near and not x else "full_attention" for x in turned[:layers]]
    kinds = parts.value_of(hf_config, "layer_types", kinds)
    return parts.shape(
        hf_config,
        positions=32768,
        theta=2000000.0,
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=bool(hf_config.get("mlp_bias")),
        windows=parts.windows_by_kind(hf_config, kinds, size, switch="use_sliding_window"),
        layer_ropes=tuple("model" if x else "none" for x in turned[:layers]),
    )


FAMILY = Family(
    language_model="SmolLM3ForCausalLM",
    reward_model="SmolLM3ForSequenceClassification",
    shape=shape,
    presets={
        "smollm3-3b": {
            "architectures": ["SmolLM3ForCausalLM"],
            "model_type": "smollm3",
            "vocab_size": 128256,
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 65536,
            "rope_theta": 5000000.0,
            "rope_scaling": None,
            "no_rope_layer_interval": 4,
            "no_rope_layers": [1, 1, 1, 0] * 9,
            "layer_types": ["full_attention"] * 36,
            "use_sliding_window": False,
            "sliding_window": None,
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": True,
            "bos_token_id": 128000,
            "eos_token_id": 128012,
            "pad_token_id": 128004,
            "torch_dtype": "bfloat16",
        },
    },
    defaults=DEFAULTS,
    small={"no_rope_layers": [1, 0], "layer_types": ["full_attention"] * 2},
)
