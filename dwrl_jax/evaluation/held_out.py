"""Scores of held-out pairs."""

from collections.abc import Callable, Iterable

import jax
import numpy as np
from jaxtyping import Float

from dwrl_jax.core.types import PreferenceBatch


def vote_scores(
    scores_of: Callable, batches: Iterable[PreferenceBatch]
) -> tuple[np.ndarray, Float[np.ndarray, "N S K"]]:
    """Pair ids [N], ascending, and log scores of K sampled thoughts for both sides of every pair.

    `scores_of(batch)` samples them, Float[B S K]. Its keys depend on the pair alone, so neither the order nor
    the packing of batches matters.
    """
    scores, ids = [], []
    for batch in batches:
        valid = np.asarray(batch.valid)
        scores.append(np.asarray(jax.device_get(scores_of(batch)))[valid])
        ids.append(np.asarray(batch.pair_id)[valid])
    order = np.argsort(np.concatenate(ids))
    return np.concatenate(ids)[order], np.concatenate(scores)[order]
