"""Gemma 3: norms that multiply by 1 + w, before and after attention and feed-forward, and scaled embeddings.

Five layers with a window and a rope of their own stand before each layer that sees everything. The text half of a
multimodal folder (model_type gemma3) is such a model. transformers reads attn_logit_softcapping and does not use it,
so a config.json that has it is refused.
"""

from dwrl_jax.core.errors import UserError
from dwrl_jax.models.families import Family, parts

DEFAULTS = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131072,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}
LONG = {"sliding_window": 1024, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}  # of the multimodal sizes
SUPPORTED = {
    "hidden_activation": (None, "gelu_pytorch_tanh"),
    "attn_logit_softcapping": (None,),
    "use_bidirectional_attention": (None, False),
}


def shape(hf_config: dict) -> dict:
    for key, values in SUPPORTED.items():
        if hf_config.get(key) not in values:
            raise UserError(f"config.json: {key} = {hf_config[key]!r} is not supported, only {values[-1]!r}")
    kinds = parts.layer_kinds(hf_config, every=parts.value_of(hf_config, "sliding_window_pattern", 6))
    local = parts.value_of(hf_config, "rope_local_base_freq", 10000.0)
    hf_config, ropes = parts.local_ropes(hf_config, kinds, 1000000.0, local)
    bias = bool(hf_config.get("attention_bias"))
    head_dim = hf_config["head_dim"]
    return parts.shape(
        hf_config,
        theta=1000000.0,
        head_dim=head_dim,
        max_position=hf_config["max_position_embeddings"],  # with the factor of a rescaling
        qkv_bias=bias,
        o_bias=bias,
        qk_norm=True,
        windows=parts.windows_by_kind(hf_config, kinds, hf_config["sliding_window"]),
        norms="both",
        norm_offset=1.0,
        activation="gelu_tanh",
        query_scale=(head_dim / hf_config["query_pre_attn_scalar"]) ** 0.5,
        embed_scale=hf_config["hidden_size"] ** 0.5,
        logit_cap=hf_config.get("final_logit_softcapping") or 0.0,
        **ropes,
    )


def _gemma3(**shape) -> dict:
    return DEFAULTS | {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": None,
        "sliding_window_pattern": 6,
        "attention_bias": False,
        "final_logit_softcapping": None,
        "bos_token_id": 2,
        "eos_token_id": [1, 106],
        "pad_token_id": 0,
        "torch_dtype": "bfloat16",
        **shape,
    }


FAMILY = Family(
    language_model="Gemma3ForCausalLM",
    reward_model="Gemma3TextForSequenceClassification",
    shape=shape,
    presets={
        "gemma3-1b": _gemma3(
            vocab_size=262144,
            hidden_size=1152,
            intermediate_size=6912,
            num_attention_heads=4,
            num_key_value_heads=1,
            max_position_embeddings=32768,
            sliding_window=512,
        ),
        "gemma3-4b": _gemma3(
            hidden_size=2560,
            intermediate_size=10240,
            num_hidden_layers=34,
            **LONG,
        ),
        "gemma3-12b": _gemma3(
            hidden_size=3840,
            intermediate_size=15360,
            num_hidden_layers=48,
            num_attention_heads=16,
            num_key_value_heads=8,
            **LONG,
        ),
        "gemma3-27b": _gemma3(
            hidden_size=5376,
            intermediate_size=21504,
            num_hidden_layers=62,
            num_attention_heads=32,
            num_key_value_heads=16,
            head_dim=128,
            query_pre_attn_scalar=168,
            **LONG,
        ),
    },
    defaults=DEFAULTS,
    small={"sliding_window": 24, "sliding_window_pattern": 2, "query_pre_attn_scalar": 40},
)
