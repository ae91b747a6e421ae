"""Qwen3 with a mixture of experts in the place of each feed-forward."""

from dwrl_jax.core.errors import UserError
from dwrl_jax.models.families import Family, parts, qwen3

DEFAULTS = {
    "num_key_value_heads": 4,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "norm_topk_prob": False,
    "intermediate_size": 6144,
}


def shape(hf_config: dict) -> dict:
    for key, value in (("decoder_sparse_step", 1), ("mlp_only_layers", [])):
        if hf_config.get(key) not in (None, value):
            raise UserError(
                f"config.json: {key} = {hf_config[key]!r} is not supported, only {value!r}: experts in all layers"
            )
    heads = hf_config.get("head_dim") or hf_config["hidden_size"] // hf_config["num_attention_heads"]
    size = hf_config.get("sliding_window", 4096) if hf_config.get("use_sliding_window") else None
    kinds = ["full_attention" if size is None else "sliding_attention"] * hf_config["num_hidden_layers"]
    return qwen3.shape(hf_config | {"layer_types": None, "use_sliding_window": False}) | {
        "head_dim": heads,
        "windows": parts.windows_by_kind(hf_config, kinds, size),
        "experts": hf_config.get("num_local_experts") or hf_config.get("num_experts") or 128,  # transformers 5 and 4
        "experts_per_token": hf_config["num_experts_per_tok"],
        "expert_size": hf_config["moe_intermediate_size"],
        "norm_experts": bool(hf_config["norm_topk_prob"]),
    }


FAMILY = Family(
    language_model="Qwen3MoeForCausalLM",
    reward_model="Qwen3MoeForSequenceClassification",
    shape=shape,
    presets={
        "qwen3-30b-a3b": qwen3.FAMILY.presets["qwen3-8b"]
        | {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_hidden_layers": 48,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        },
    },
    defaults=DEFAULTS,
    small={"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
)
