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
    remat: Literal["none", "dots", "full"] = setting(
        "dots",
        'kept for the backward pass: everything ("none"), products and attention ("dots"), only layers ("full")',
        resumable=True,
    )
    attention: Literal["auto", "xla", "blocks", "splash", "cudnn"] = setting(
        "auto",
        '"blocks" is for CPUs, "splash" for TPUs, "cudnn" for NVIDIA GPUs in bfloat16; "auto" chooses the best here',
        resumable=True,
    )
    balance: float = setting(0.0, "weight of the load-balance loss of a mixture of experts; 0 for none", at_least=0)
