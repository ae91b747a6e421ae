"""JudgeBench: pairs of which one response is correct, as answers to hard questions. A tie is wrong.

A pairwise judge is asked in both orders. Each verdict counts +1 if it is right and -1 if it is wrong, and a pair is
right if the sum is above 0: ties and changes of mind are wrong. A judge that scores each response is asked once. The
score is the mean over pairs; many published columns are the mean over the four groups of sources, so both are given.

Source: Tan et al., arXiv 2410.12784, https://github.com/ScalerLab/JudgeBench (utils/metrics.py).
"""

import numpy as np

from dwrl_jax.data.formats import Malformed
from dwrl_jax.evaluation.benchmarks import Benchmark
from dwrl_jax.evaluation.benchmarks.parts.reading import need, read
from dwrl_jax.evaluation.benchmarks.parts.result import Result, by_subset, means, pooled

LABELS = {"A>B": [True, False], "B>A": [False, True]}
GROUPS = {
    "mmlu-pro": "Knowledge",
    "livebench-reasoning": "Reasoning",
    "livebench-math": "Math",
    "livecodebench": "Coding",
}


def rows(data, split=""):
    """Rows of pair_id, source, question, response_A, response_B and label."""
    return read(data, split, ("gpt", "claude"), _rows_of)


def _rows_of(raw, name):
    question, first, second, label = need(raw, "question", "response_A", "response_B", "label")
    if label not in LABELS:
        raise Malformed(f"label {str(label)[:20]!r}, not one of {', '.join(LABELS)}")
    source = str(raw.get("source", ""))
    group = next((title for start, title in GROUPS.items() if source.startswith(start)), source or "all")
    row = {"subset": group, "prompt": question, "responses": [first, second], "right": LABELS[label]}
    yield row | ({"id": raw["pair_id"]} if raw.get("pair_id") is not None else {})


def aggregate(scored):
    """The mean over pairs ("micro"), and the mean over the groups of sources ("macro")."""
    values = by_subset(scored, is_right)
    subsets, parts = means(values), pooled(values)
    return Result(parts, subsets, {"micro": parts["all"].mean, "macro": float(np.mean(list(subsets.values())))})


def is_right(row) -> bool:
    """Whether the verdicts of all orders together are for the right response."""
    votes = [0 if verdict is None else 1 if row["right"][verdict] else -1 for verdict in row["verdicts"]]
    return sum(votes) > 0


BENCHMARK = Benchmark(
    "JudgeBench", "question, response_A, response_B, label", rows, aggregate, hub="ScalerLab/JudgeBench"
)
