"""Preference pairs of a file or data set. A malformed row is left out, counted and listed."""

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from dwrl_jax.core.errors import UserError
from dwrl_jax.data import containers, formats


@dataclass(frozen=True)
class Pair:
    """A comparison: `chosen` and `rejected` are the assistant's answers to the conversation `prompt`."""

    prompt: tuple[dict[str, str], ...]  # {"role", "content"}: [system,] user, assistant, ..., user
    chosen: str
    rejected: str
    margin: float | None = None
    source: str = ""
    where: str = ""  # "file:line", counted from 1
    thoughts: tuple[str, str] | None = None  # written thoughts about (chosen, rejected)
    verdicts: tuple[int, int] | None = None  # right answers about (chosen, rejected): 0 is good, 1 is bad


@dataclass(frozen=True)
class Skipped:
    """Rows that were left out, as (where, reason), and the number of rows that were not drawn."""

    rows: list[tuple[str, str]] = field(default_factory=list)
    undrawn: int = 0

    @property
    def counts(self) -> Counter:
        return Counter(reason for _, reason in self.rows)

    def summary(self) -> str:
        reasons = ", ".join(f"{reason} {n}" for reason, n in self.counts.most_common())
        undrawn = f"{self.undrawn} not drawn, " if self.undrawn else ""
        return undrawn + (f"{len(self.rows)} left out ({reasons})" if self.rows else "0 left out")


def read_pairs(name, *, split="train", strict=False, count=0, seed=0) -> tuple[list[Pair], Skipped]:
    """Pairs of a .jsonl, .jsonl.gz or .parquet file, or of a `datasets` name or folder (its `split`).

    The files in `formats/` describe the possible rows. With `count`, at most `count` rows are drawn at random before
    any row is read. The draw depends only on the seed and the number of rows, and a malformed row in it is not
    replaced. A malformed row is left out and listed; with `strict` it is a UserError. It is always a UserError if the
    file cannot be read or has no usable row.
    """
    table = containers.open_table(str(name), split)
    total = len(table) if count else 0
    indices = drawn(total, count, seed) if total > count else None
    pairs, skipped = [], Skipped(undrawn=max(total - count, 0))
    default = Path(str(name)).name.split(".")[0]
    for where, row in table.rows(indices):
        try:
            read = formats.pairs_of(row)
        except formats.Malformed as reason:
            skip(skipped, where, str(reason), strict)
        else:
            pairs += [replace(pair, where=where, source=pair.source or default) for pair in read]
    if not pairs:
        raise UserError(f"{name}: no usable row, {skipped.summary()}; give columns {formats.columns()}")
    if count and len(pairs) > count:  # a row can have several pairs
        skipped = replace(skipped, undrawn=skipped.undrawn + len(pairs) - count)
        pairs = [pairs[index] for index in drawn(len(pairs), count, seed)]
    return pairs, skipped


def drawn(total: int, count: int, seed: int) -> list[int]:
    """At most `count` random indices below `total`, in ascending order.

    They are random because files are often sorted, so their first rows are not a fair sample.
    """
    return sorted(np.random.default_rng(seed).permutation(total)[:count].tolist())


def skip(skipped, where, reason, strict) -> None:
    if strict:
        raise UserError(f"{where}: {reason}; correct the row, or set strict to false to leave it out")
    skipped.rows.append((where, reason))
