"""The part of results.json that follows from held-out scores."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from dwrl_jax.evaluation import metrics

Scores = Mapping[str, Float[np.ndarray, "N S K"]]  # log scores of the "base" and the "trained" model


def summarise(
    scores: Scores,
    votes: Sequence[int],
    *,
    pairwise: bool,
    sources: Sequence[str] = (),
    references: Mapping[str, Float[np.ndarray, " N"]] | None = None,
) -> dict:
    """Metrics of both models with each number of votes, the gain between them, and metrics of the reference readers.

    `sources` names the source of each pair. `references` has the log-odds of each reference reader, such as the noise
    ceiling, by name.
    """
    results = {"base": {}, "trained": {}, "gain": {}, "reference": {"no_thought": None, "ceiling": None}}
    for k in sorted(votes):
        for name in ("base", "trained"):
            results[name][f"k{k}"] = metrics.metrics(scores[name], k, pairwise)
        before, after = (metrics.log_odds(scores[name], k, pairwise) for name in ("base", "trained"))
        results["gain"][f"k{k}"] = metrics.gain(before, after)
    for name, log_odds in (references or {}).items():
        results["reference"][name] = metrics.summary(log_odds[:, None])
    return results | {"sources": by_source(scores, max(votes), pairwise, sources)}


def by_source(scores: Scores, votes: int, pairwise: bool, sources: Sequence[str]) -> dict:
    """Metrics of both models on the pairs of each source; empty with a single source."""
    names = sorted(set(sources))
    if len(names) < 2:
        return {}
    where = {name: np.array(sources) == name for name in names}
    return {
        name: {model: {f"k{votes}": metrics.metrics(part[rows], votes, pairwise)} for model, part in scores.items()}
        for name, rows in where.items()
    }
