"""Scores of held-out pairs, batch by batch."""

from collections.abc import Callable, Iterable

import jax
import numpy as np
from jaxtyping import Float

from dwrl_jax.core.types import PreferenceBatch


def vote_scores(
    scores_of: Callable, batches: Iterable[PreferenceBatch]
) -> tuple[np.ndarray, Float[np.ndarray, "N S K"]]:
    """Pair ids [N] in ascending order, and log scores [N S K] of K sampled thoughts for both sides of every pair.

    `scores_of(batch)` samples the scores of a batch, Float[B S K]. Its keys depend on the pair alone. So neither the
    order of the batches nor the pairs in each batch matter.
    """
    scores, ids = [], []
    for batch in batches:
        valid = np.asarray(batch.valid)
        scores.append(np.asarray(jax.device_get(scores_of(batch)))[valid])
        ids.append(np.asarray(batch.pair_id)[valid])
    order = np.argsort(np.concatenate(ids))
    return np.concatenate(ids)[order], np.concatenate(scores)[order]
