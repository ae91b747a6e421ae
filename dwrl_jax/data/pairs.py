"""Preference pairs of a file or data set; a malformed row is left out, counted and listed."""

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from dwrl_jax.core.errors import UserError
from dwrl_jax.data import containers, formats


@dataclass(frozen=True)
class Pair:
    """One comparison: `chosen` and `rejected` are the assistant's answers to the conversation `prompt`."""

    prompt: tuple[dict[str, str], ...]  # {"role", "content"}: [system,] user, assistant, ..., user
    chosen: str
    rejected: str
    margin: float | None = None
    source: str = ""
    where: str = ""  # "file:line", counted from 1
    thoughts: tuple[str, str] | None = None  # written thoughts about (chosen, rejected)
    verdicts: tuple[int, int] | None = None  # right answers about (chosen, rejected): 0 good, 1 bad


@dataclass(frozen=True)
class Skipped:
    """Rows that were left out, as (where, reason)."""

    rows: list[tuple[str, str]] = field(default_factory=list)

    @property
    def counts(self) -> Counter:
        return Counter(reason for _, reason in self.rows)

    def summary(self) -> str:
        reasons = ", ".join(f"{reason} {n}" for reason, n in self.counts.most_common())
        return f"{len(self.rows)} left out ({reasons})" if self.rows else "0 left out"


def read_pairs(name, *, split="train", strict=False) -> tuple[list[Pair], Skipped]:
    """Pairs of a .jsonl, .jsonl.gz or .parquet file, or of a `datasets` name or folder (its `split`).

    The files in `formats/` say which rows they read. A malformed row is left out and listed; with `strict` it is a
    UserError. A file that cannot be read, and one without a usable row, are always a UserError.
    """
    pairs, skipped = [], Skipped()
    default = Path(str(name)).name.split(".")[0]
    for where, row in containers.rows(str(name), split):
        try:
            read = formats.pairs_of(row)
        except formats.Malformed as reason:
            skip(skipped, where, str(reason), strict)
        else:
            pairs += [replace(pair, where=where, source=pair.source or default) for pair in read]
    if not pairs:
        raise UserError(f"{name}: no usable row, {skipped.summary()}; give columns {formats.columns()}")
    return pairs, skipped


def skip(skipped, where, reason, strict) -> None:
    if strict:
        raise UserError(f"{where}: {reason}; mend the row, or leave it out by turning strict off")
    skipped.rows.append((where, reason))
