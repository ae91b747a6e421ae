"""The section `model` of a config."""

import dataclasses
from typing import Literal

from dwrl_jax.core.settings import setting


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    path: str = setting("", "Hugging Face folder or hub id; empty where `base` or `model.preset` makes the model")
    preset: str = setting("", "random weights of this architecture in small, for a trial: models/families/presets.py")
    tokenizer: str = setting("", "folder or hub id, if not the model's; a preset has the built-in world's tokenizer")
    dtype: Literal["float32", "bfloat16"] = setting("float32", 'type of the computation; "bfloat16" on accelerators')
    param_dtype: Literal["float32", "bfloat16"] = setting(
        "float32", "type of the weights and of the optimizer's second moment"
    )
    remat: Literal["none", "dots", "full"] = setting(
        "dots",
        'the backward pass keeps everything ("none"), products and attention ("dots") or only layers ("full")',
        resumable=True,
    )
    attention: Literal["auto", "xla", "blocks", "splash", "cudnn"] = setting(
        "auto",
        '"blocks" is for CPUs, "splash" for TPUs, "cudnn" for NVIDIA GPUs in bfloat16; "auto" takes what is best here',
        resumable=True,
    )
