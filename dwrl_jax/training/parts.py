"""All parts of a training run."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dwrl_jax.data.batches import Batches
from dwrl_jax.data.pairs import Pair
from dwrl_jax.training.programs import Recipe


@dataclasses.dataclass(frozen=True)
class Run(Recipe):
    """A recipe with its data, its starting model and its workdir. Counts are in pairs and steps."""

    workdir: Path
    steps: int
    load_params: Callable[[], Any]  # the starting model, laid out for training
    batches: Batches
    describe: Callable[[int], Pair]  # pair id -> training pair
    describe_held_out: Callable[[int], Pair]
    decode: Callable[[np.ndarray], str]  # token ids -> text
    eval_batches: Batches | None  # held-out pairs in a fixed order
    curve_batches: Batches | None  # the part of them that the curve uses
    eval_every: int
    thoughts_every: int
    thought_pairs: int
    checkpoint_every: int
    checkpoints_kept: int  # of the last ones; the best is kept too
    most_skipped: int  # steps in a row with a skipped update
    packing: bool  # short thoughts share lanes in the update
    profile: bool  # trace the steps after the first, which compiles
