"""The keys at the top of a config and its section `optim`."""

import dataclasses
from typing import Literal

from dwrl_jax.core.settings import setting


@dataclasses.dataclass(frozen=True)
class RunSettings:
    seed: int = setting(0, "order of the pairs, sampling and fresh weights follow from it")
    profile: bool = setting(False, "trace a few steps into WORKDIR/profile", resumable=True)


@dataclasses.dataclass(frozen=True)
class OptimSettings:
    steps: int = setting(
        1000, "training steps; a run that goes on may have more where the schedule is constant", at_least=1
    )
    learning_rate: float = setting(1e-6, "of AdamW, at its peak", at_least=0)
    warmup: int = setting(10, "steps in which the learning rate grows to its peak", at_least=0)
    schedule: Literal["constant", "linear", "cosine"] = setting("cosine", "of the learning rate, after the warm-up")
    final_share: float = setting(0.1, "learning rate at the end, as a share of its peak", at_least=0)
    beta1: float = setting(0.9, "decay of Adam's first moment", at_least=0, below=1)
    beta2: float = setting(0.95, "decay of Adam's second moment", at_least=0, below=1)
    epsilon: float = setting(1e-8, "Adam's epsilon", at_least=0)
    weight_decay: float = setting(0.0, "AdamW's decay of the matrices, times the learning rate", at_least=0)
    clip_norm: float = setting(1.0, "a gradient with a larger norm is scaled down to this norm; 0: off", at_least=0)
    value_head_rate: float = setting(10.0, "multiplies the learning rate for a value head", at_least=0)
    moment_dtype: Literal["float32", "bfloat16"] = setting(
        "float32", 'type of Adam\'s first moment; "bfloat16" saves 2 bytes per parameter'
    )
    moments: Literal["shared", "separate"] = setting(
        "shared",
        'Adam\'s moments of the phases of a step (dwrl: Eq. 14, Eq. 15); "separate" moments take memory for each phase',
    )
    most_skipped: int = setting(
        10,
        "a run stops when so many steps in a row had an update that was skipped, because a figure was not finite",
        at_least=1,
        resumable=True,
    )
    micro_batches: int = setting(
        1,
        "parts of the batch whose gradients are summed: less memory, the same result up to rounding",
        at_least=1,
        resumable=True,
    )
    packing: bool = setting(
        True,
        "short thoughts share lanes: fewer positions, at most two more programs per bucket, the same up to rounding",
        resumable=True,
    )
