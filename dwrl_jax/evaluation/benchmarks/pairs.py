"""Any file of preference pairs, in the formats that training reads. A tie counts one half."""

from dwrl_jax.data import formats
from dwrl_jax.evaluation.benchmarks import Benchmark
from dwrl_jax.evaluation.benchmarks.parts.reading import read, stem
from dwrl_jax.evaluation.benchmarks.parts.result import Result, by_subset, means, pooled


def rows(data, split=""):
    """Pairs of any format; the subset is the column `source`, or else the file's name."""
    return read(data, split, ("test",), _rows_of)


def _rows_of(raw, name):
    for pair in formats.pairs_of(raw):
        row = {
            "subset": pair.source or stem(name),
            "prompt": list(pair.prompt),
            "responses": [pair.chosen, pair.rejected],
            "right": [True, False],
        }
        yield row | ({"id": raw["id"]} if isinstance(raw.get("id"), str | int) else {})


def aggregate(scored):
    """Share of the pairs whose chosen response has the higher score. A tie counts one half."""
    values = by_subset(scored, lambda row: half_for_a_tie(*row["score"]))
    return Result(pooled(values), means(values))


def half_for_a_tie(right: float, wrong: float) -> float:
    return 0.5 if right == wrong else float(right > wrong)


BENCHMARK = Benchmark("preference pairs", "those of a format in dwrl_jax/data/formats", rows, aggregate)
