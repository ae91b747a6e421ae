"""From the scored rows of a benchmark to its pairs: log scores, log-odds and verdicts.

A scored row has the columns of the benchmark and those of `judge.score`. With a pairwise judge, `votes` of response i
are those of the questions that show i first, one other response after the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from dwrl_jax.evaluation import metrics
from dwrl_jax.evaluation.benchmarks import Benchmark, pairs_of

TINY = float(np.finfo(np.float32).tiny)  # a smaller score counts as this


@dataclass(frozen=True)
class Pair:
    """A right and a wrong response of a row. The log scores [2, K] are laid out as `metrics` says.

    The sides are (right, wrong), or the two orders for a pairwise judge.
    """

    row: dict
    right: int
    wrong: int
    log_scores: Float[np.ndarray, "2 K"]

    def text(self, side: int) -> str:
        """The right response (0) or the wrong one (1)."""
        return self.row["responses"][(self.right, self.wrong)[side]]


def pairs(benchmark: Benchmark, rows: Sequence[dict], kind: str, column: str = "votes") -> list[Pair]:
    """All compared pairs of the scored rows. `column` "no_thought" takes the scores without a thought."""
    return [
        Pair(row, right, wrong, log_scores(votes, right, wrong, kind))
        for row in rows
        for votes in [row["votes"] if column == "votes" else row["no_thought"]["votes"]]
        for right, wrong in pairs_of(benchmark, row)
    ]


def log_scores(votes: Sequence[Sequence[float]], right: int, wrong: int, kind: str) -> Float[np.ndarray, "2 K"]:
    """Log scores of both sides by the votes about a row's responses; rewards as they are."""
    if kind == "label":
        right_first, wrong_first = _shown_first(votes, right, wrong), _shown_first(votes, wrong, right)
        return np.log(np.maximum([right_first, 1 - wrong_first], TINY))
    sides = np.array([votes[right], votes[wrong]], np.float64)
    return sides if kind == "reward" else np.log(np.maximum(sides, TINY))


def _shown_first(votes, first: int, second: int) -> Float[np.ndarray, " K"]:
    """Probabilities that `first` wins against `second` where it is shown first."""
    by_other = np.reshape(np.asarray(votes[first], np.float64), (len(votes) - 1, -1))
    return by_other[second - (second > first)]


def verdicts(row: dict, kind: str, votes: Sequence[Sequence[float]]) -> list[int | None]:
    """The index of the better one of two responses in each order that was asked; None for a tie."""
    if kind != "label":
        return [_better(row["score"][0] - row["score"][1])]
    first, second = (float(np.mean(each)) - 0.5 for each in votes)
    return [_better(first), _better(-second)]


def _better(difference: float) -> int | None:
    return None if difference == 0 else int(difference < 0)


def for_aggregate(rows: Sequence[dict], kind: str, column: str = "votes") -> list[dict]:
    """The rows as `Benchmark.aggregate` takes them, with the judge's scores or those without a thought."""
    made = []
    for row in rows:
        if column == "no_thought":
            row = row | {"score": row["no_thought"]["score"]}
        votes = row["votes"] if column == "votes" else row["no_thought"]["votes"]
        made.append(row | ({"verdicts": verdicts(row, kind, votes)} if len(row["score"]) == 2 else {}))
    return made


def log_odds(pairs: Sequence[Pair], kind: str, votes: int | None = None) -> Float[np.ndarray, "N R"]:
    """Log-odds of each right response over the wrong one, in nats, by groups of `votes`; None: all votes of a pair.

    With `votes`, each pair has as many groups as the pair with the fewest votes.
    """
    if not pairs:
        return np.zeros((0, 1))
    if votes is None:
        by_size: dict[int, list[int]] = {}
        for index, pair in enumerate(pairs):
            by_size.setdefault(pair.log_scores.shape[1], []).append(index)
        made = np.zeros((len(pairs), 1))
        for size, places in by_size.items():
            made[places] = metrics.log_odds(np.stack([pairs[i].log_scores for i in places]), size, kind == "label")
        return made
    return metrics.log_odds(stacked(pairs), votes, kind == "label")


def stacked(pairs: Sequence[Pair]) -> Float[np.ndarray, "N 2 K"]:
    """The log scores of all pairs, with as many votes as the pair with the fewest."""
    fewest = min(pair.log_scores.shape[1] for pair in pairs)
    return np.stack([pair.log_scores[:, :fewest] for pair in pairs])


def stability(pairs: Sequence[Pair], kind: str) -> float:
    """The mean share of the more frequent verdict among the single votes of a pair. A tie is half of each."""
    each = metrics.wins(log_odds(pairs, kind, 1)).mean(1)
    return float(np.maximum(each, 1 - each).mean())
