"""The content of summary.json: the benchmark's number, and what that number alone does not tell."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from dwrl_jax.evaluation import calibration, judged, metrics, style
from dwrl_jax.evaluation.benchmarks import Benchmark
from dwrl_jax.evaluation.benchmarks.parts.result import Result, difference, interval_of
from dwrl_jax.evaluation.judged import Pair

VOTES = (1, 2, 4, 8, 16, 32)


def usable(rows: Sequence[dict]) -> list[dict]:
    """The rows that have scores."""
    return [row for row in rows if row.get("error") is None]


def summarise(benchmark: Benchmark, rows: Sequence[dict], kind: str, thinks: bool) -> dict:
    """All numbers that follow from the scored rows of a judge of this kind. Rows with errors are counted and left out.

    `thinks` says whether the judge reads thoughts; if so, its scores without a thought are summarised too.
    """
    scored = usable(rows)
    result = benchmark.aggregate(judged.for_aggregate(scored, kind))
    pairs = judged.pairs(benchmark, scored, kind)
    odds = judged.log_odds(pairs, kind)
    votes = np.array([np.size(row["votes"]) for row in scored], float)
    responses = np.array([len(row["votes"]) * _asked(row, kind) for row in scored], float)
    summary = {
        "overall": result.overall,
        "interval": interval_of(result),
        "n": len(scored),
        "ties": float((odds == 0).mean()) if len(odds) else 0.0,
        "subsets": dict(result.subsets),
        "averages": dict(result.averages),
        "curves": dict(result.curves),
        "errors": dict(Counter(_reason(row["error"]) for row in rows if row.get("error") is not None)),
        "votes": float((votes / responses).mean()),
        "tokens": {name: int(sum(row["tokens"][name] for row in scored)) for name in ("prefix", "thoughts")},
        "pairs": pair_metrics(pairs, odds, kind) if pairs else None,
        "no_thought": None,
    }
    if pairs:
        summary["cost"] = {
            "thoughts per pair": float(votes.sum() / len(pairs)) if thinks else 0.0,
            "tokens per pair": sum(summary["tokens"].values()) / len(pairs),
        }
    if thinks:
        summary["no_thought"] = without_thought(benchmark, scored, kind, result)
    return summary


def _asked(row: dict, kind: str) -> int:
    """Questions about each response."""
    return len(row["votes"]) - 1 if kind == "label" else 1


def _reason(error: str) -> str:
    """The reason without its numbers and texts, so that rows with the same reason are counted together."""
    return error.partition(":")[0]


def pair_metrics(pairs: Sequence[Pair], odds: np.ndarray, kind: str) -> dict:
    """Metrics of the pairs with all votes, and what they depend on."""
    scores = judged.stacked(pairs)
    most = scores.shape[2]
    right, wrong = ([pair.text(side) for pair in pairs] for side in (0, 1))
    won = metrics.wins(odds)[:, 0]
    order = metrics.order_metrics(scores, most) if kind == "label" else {"flips": 0.0, "position_bias": 0.0}
    return {
        **metrics.summary(odds),
        "tempered": tempered(odds),
        "confident half": calibration.confident_half(odds),
        "by votes": {str(k): pooled_accuracy(pairs, kind, k) for k in VOTES if k <= most},
        "stability": judged.stability(pairs, kind),
        "consistency": 1 - order["flips"],
        "position bias": order["position_bias"],
        "lengths": style.lengths(right, wrong, won),
        "style": style.regression(right, wrong, odds[:, 0]),
    }


def pooled_accuracy(pairs: Sequence[Pair], kind: str, votes: int) -> float:
    """Accuracy with this many votes, as a mean over the groups of votes that there are."""
    return float(metrics.wins(judged.log_odds(pairs, kind, votes)).mean())


def tempered(odds: np.ndarray) -> dict:
    """NLL, Brier score and calibration error after one temperature, fitted on other pairs, and both temperatures."""
    numbers = metrics.summary(calibration.tempered(odds))
    kept = {name: numbers[name] for name in ("nll", "brier", "ece")}
    return kept | {"temperatures": list(calibration.temperatures(odds))}


def without_thought(benchmark: Benchmark, scored: Sequence[dict], kind: str, result: Result) -> dict:
    """The same judge without a thought, and how much its thoughts add, paired by row."""
    plain = benchmark.aggregate(judged.for_aggregate(scored, kind, "no_thought"))
    odds = judged.log_odds(judged.pairs(benchmark, scored, kind, "no_thought"), kind)
    numbers = metrics.summary(odds) if len(odds) else None
    return {
        "overall": plain.overall,
        "interval": interval_of(plain),
        "pairs": numbers and numbers | {"tempered": tempered(odds)},
        "thoughts add": difference(result, plain),
    }
