"""The section `sampler` of a config."""

import dataclasses
from typing import Literal

from dwrl_jax.core.settings import setting


@dataclasses.dataclass(frozen=True)
class SamplerSettings:
    group_size: int = setting(8, "thoughts per response in training, the paper's n", at_least=1)
    max_thought: int = setting(512, "longest thought, in tokens", at_least=1)
    temperature: float = setting(1.0, "temperature of the density that is sampled and differentiated", above=0)
    top_k: int = setting(
        0, "0: off. With truncation the sampled density differs from the one that is differentiated", at_least=0
    )
    top_p: float = setting(1.0, "1: off. It is a truncation too, with the same effect as top_k", above=0, at_most=1)
    batch_size: int = setting(
        0,
        "pairs sampled at a time; 0 for all. A smaller number needs less memory and gives the same thoughts",
        at_least=0,
        resumable=True,
    )
    spread: bool = setting(
        False,
        "in decoding a device has 1 / (tensor x fsdp) of each feed-forward instead of 1 / tensor, and computes it for "
        "the tokens of its whole fsdp axis: less memory is read per token, and tokens are sent",
        resumable=True,
    )
    cache: Literal["", "int8", "float8"] = setting(
        "", "type of keys and values in decoding, with a scale for each; empty for the type of the computation"
    )
    weights: Literal["", "int8"] = setting(
        "", "type of the layers' matrices in decoding, with a scale for each output; empty for that of the computation"
    )
