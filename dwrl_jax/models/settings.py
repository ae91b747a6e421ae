"""The section `model` of a config."""

import dataclasses
from typing import Literal

from dwrl_jax.core.settings import setting


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    path: str = setting("", "Hugging Face folder or hub id; empty if `base` or `model.preset` makes the model")
    preset: str = setting("", "small model of this architecture with random weights: models/families/presets.py")
    tokenizer: str = setting("", "folder or hub id; empty for the model's, or for a preset the built-in world's")
    dtype: Literal["float32", "bfloat16"] = setting("float32", 'type of the computation; "bfloat16" on accelerators')
    param_dtype: Literal["float32", "bfloat16"] = setting(
        "float32", "type of the weights and of the optimizer's second moment"
    )
    remat: Literal["none", "dots", "narrow", "full"] = setting(
        "dots",
        'kept for the backward pass: everything ("none"), products and attention ("dots"), the same but for the wide '
        'products of the feed-forward ("narrow"), only layers ("full")',
        resumable=True,
    )
    attention: Literal["auto", "xla", "blocks", "splash", "cudnn"] = setting(
        "auto",
        '"blocks" is for CPUs, "splash" for TPUs, "cudnn" for NVIDIA GPUs in bfloat16; "auto" chooses the best here',
        resumable=True,
    )
    balance: float = setting(0.0, "weight of the load-balance loss of a mixture of experts; 0 for none", at_least=0)


@dataclasses.dataclass(frozen=True)
class LoraSettings:
    """Adapters beside frozen weights. A matrix W becomes W + scale * A B with A and B of `rank` columns and rows."""

    rank: int = setting(0, "rank of the adapters; 0: all weights are trained, without adapters", at_least=0)
    alpha: float = setting(32.0, "scale = alpha / rank", above=0)
    targets: tuple[str, ...] = setting(
        ("attention", "feed_forward"),
        "matrices with an adapter: attention, feed_forward, experts, q_proj, k_proj, v_proj, o_proj, gate_proj, "
        "up_proj, down_proj, embed_tokens, lm_head",
        fewest=1,
    )
    dropout: float = setting(0.0, "share of an adapter's inputs that an update sets to zero", at_least=0, below=1)
    rank_stabilised: bool = setting(False, "scale = alpha / sqrt(rank)")
    base: Literal["float32", "bfloat16", "int8", "nf4"] = setting(
        "bfloat16", 'type of the frozen weights; "int8" and "nf4" are for the matrices of layers, beside bfloat16'
    )

    @property
    def scale(self) -> float:
        return self.alpha / (self.rank**0.5 if self.rank_stabilised else self.rank)

    @property
    def numerics(self) -> dict[str, str]:
        """The fields of `ModelConfig` for the frozen weights."""
        few_bits = self.base in ("int8", "nf4")
        return {"param_dtype": "bfloat16", "quantised": self.base} if few_bits else {"param_dtype": self.base}
