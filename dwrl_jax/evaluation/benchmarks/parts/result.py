"""The number that a benchmark reports, as a weighted sum of means, from which its interval follows."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

RESAMPLES = 2000


@dataclass(frozen=True)
class Part:
    """The rows of a benchmark that are averaged together: a value for each row's id, and the weight of their mean."""

    weight: float
    values: Mapping[str, float]

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.values.values())))


@dataclass(frozen=True)
class Result:
    """The numbers of a benchmark. `overall` = sum of weight x mean over `parts`.

    `subsets` has the number of each subset, and `averages` has other averages that published tables use, by name.
    `curves` has lists of numbers that belong together, by name.
    """

    parts: Mapping[str, Part]
    subsets: Mapping[str, float]
    averages: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def overall(self) -> float:
        return sum(part.weight * part.mean for part in self.parts.values())


def interval(parts: Iterable[tuple[float, Sequence[float]]]) -> list[float]:
    """95 % percentile bootstrap interval of a weighted sum of means. The rows of each part are drawn anew."""
    rng = np.random.default_rng(0)
    drawn = sum(weight * _means(rng, np.asarray(values, np.float64)) for weight, values in parts)
    return [float(end) for end in np.percentile(drawn, (2.5, 97.5))]


def _means(rng: np.random.Generator, values: Float[np.ndarray, " N"]) -> Float[np.ndarray, " R"]:
    """Means of N rows drawn anew. A drawn row counts as often as a multinomial says, once for each distinct value."""
    distinct, counts = np.unique(values, return_counts=True)
    drawn = rng.multinomial(len(values), counts / len(values), size=RESAMPLES)
    return drawn @ distinct / len(values)


def interval_of(result: Result) -> list[float]:
    """The interval of `overall`."""
    return interval((part.weight, list(part.values.values())) for part in result.parts.values())


def difference(after: Result, before: Result) -> dict:
    """`overall` of one judge less that of another, paired by the rows that both have: {"overall", "interval", "n"}.

    A part of which the two have no common row is left out, and the weights of the others are scaled up.
    """
    common = {}
    for name, part in after.parts.items():
        other = before.parts[name].values if name in before.parts else {}
        values = [value - other[row] for row, value in part.values.items() if row in other]
        if values:
            common[name] = (part.weight, values)
    whole = sum(part.weight for part in after.parts.values())
    scale = whole / sum(weight for weight, _ in common.values()) if common else 0.0
    parts = [(weight * scale, values) for weight, values in common.values()]
    return {
        "overall": float(sum(weight * np.mean(values) for weight, values in parts)),
        "interval": interval(parts) if parts else [0.0, 0.0],
        "n": sum(len(values) for _, values in parts),
    }


def means(values: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The mean of the values of each subset."""
    return {name: float(np.mean(list(each.values()))) for name, each in values.items()}


def by_subset(rows: Iterable[dict], value_of) -> dict[str, dict[str, float]]:
    """{subset: {row id: value}}, in the order of the rows."""
    values: dict[str, dict[str, float]] = {}
    for row in rows:
        values.setdefault(row["subset"], {})[row["id"]] = float(value_of(row))
    return values


def pooled(values: Mapping[str, Mapping[str, float]]) -> dict[str, Part]:
    """A single part with the rows of all subsets: `overall` is the mean over rows."""
    return {"all": Part(1.0, {row: value for each in values.values() for row, value in each.items()})}


def apart(values: Mapping[str, Mapping[str, float]]) -> dict[str, Part]:
    """A part for each subset, with equal weights: `overall` is the mean over subsets."""
    return {name: Part(1 / len(values), each) for name, each in values.items()}
