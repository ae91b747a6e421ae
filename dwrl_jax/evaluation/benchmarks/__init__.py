"""The contract of a benchmark: the rows of its files, and the numbers that its definition makes of a judge's scores.

A benchmark is a file of this folder that ends in `BENCHMARK = Benchmark(...)`. Its name is the file's name, and no
other file lists it. `parts/` has the code that several benchmarks share.
"""

import functools
import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from dwrl_jax.core.errors import UserError
from dwrl_jax.evaluation.benchmarks.parts.result import Result


@dataclass(frozen=True)
class Benchmark:
    """A benchmark. `rows(data, split)` reads a file, a folder or a hub name; `split` "" means `splits`.

    A row has `id`, `where` ("file:number"), `subset`, `prompt`, `responses` and `right`, a truth value for each
    response. A row that cannot be used has `id`, `where` and `error`, the reason.

    `aggregate(rows)` is pure. Its rows have `score` too, a number for each response, and if there are two responses
    `verdicts`: the index of the better one in each order that was asked, or None for a tie. A pointwise judge has a
    single verdict, a pairwise judge two.
    """

    title: str
    columns: str  # the required columns, for messages
    rows: Callable[[str, str], Iterator[dict]]
    aggregate: Callable[[Sequence[dict]], Result]
    hub: str = ""  # the data where none are given
    pairs: Callable[[dict], Iterable[tuple[int, int]]] | None = None  # (right, wrong) of a row; None for all


@functools.cache
def names() -> list[str]:
    """The names of all benchmarks."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.ispkg)


def load(name: str) -> Benchmark:
    """The benchmark of this name. UserError if there is none."""
    if name not in names():
        raise UserError(f"--benchmark={name}: choose from {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}").BENCHMARK


def read(name: str, data: str, split: str = "") -> list[dict]:
    """All rows of a benchmark. UserError if not one of them can be used, which a wrong file is the usual reason for."""
    benchmark = load(name)
    data = data or benchmark.hub
    if not data:
        raise UserError(f"--benchmark={name}: give its --data, a file, a folder or a hub name")
    rows = list(benchmark.rows(data, split))
    if all("error" in row for row in rows):
        reason = f"{rows[0]['where']}: {rows[0]['error']}" if rows else "there are no rows"
        raise UserError(f"{data}: no row of {benchmark.title} ({reason}); its columns are {benchmark.columns}")
    return rows


def pairs_of(benchmark: Benchmark, row: dict) -> list[tuple[int, int]]:
    """(index of a right response, index of a wrong one) of the row, as the benchmark compares them."""
    if benchmark.pairs:
        return list(benchmark.pairs(row))
    right = [i for i, good in enumerate(row["right"]) if good]
    wrong = [i for i, good in enumerate(row["right"]) if not good]
    return [(i, j) for i in right for j in wrong]
