"""Preference pairs of a file or data set. A malformed row is left out, counted and listed."""

import functools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from dwrl_jax.core.errors import UserError
from dwrl_jax.data import containers, formats

NAMED = 20  # reasons and columns that a line names
CUT = 80  # characters of the name of a column
TIE = "tie"  # how the reasons of rows begin that say that both responses are equally good


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
        reasons = ", ".join(f"{reason} {n}" for reason, n in self.counts.most_common(NAMED))
        reasons += f" and {more} more reasons" if (more := len(self.counts) - NAMED) > 0 else ""
        undrawn = f"{self.undrawn} not drawn, " if self.undrawn else ""
        return undrawn + (f"{len(self.rows)} left out ({reasons})" if self.rows else "0 left out")


@dataclass(frozen=True)
class Reading(Skipped):
    """What reading a file met, beside its pairs."""

    count: int = 0  # number of rows
    formats: Counter = field(default_factory=Counter)  # number of rows of each format
    unused: Counter = field(default_factory=Counter)  # number of rows with something in each column that is not read

    def remarks(self) -> str:
        """The formats and the unread columns, in words."""
        kinds = ", ".join(f"{name} {count}" for name, count in self.formats.most_common())
        unread = f"; columns not used: {', '.join(sorted(self.unused)[:NAMED])}" if self.unused else ""
        unread += f" and {more} more" if (more := len(self.unused) - NAMED) > 0 else ""
        return f"format {kinds}{unread}"


def read_pairs(name, **options) -> tuple[list[Pair], Reading]:
    """Pairs of a file, a folder or a data set, and what else was met. UserError if there is no usable row.

    `options` are those of `look_for_pairs`.
    """
    pairs, reading = look_for_pairs(name, **options)
    if not pairs:
        raise UserError(no_usable_row(name, reading))
    return pairs, reading


def no_usable_row(name, reading: Reading) -> str:
    """A message that says why, and what to do."""
    unknown = any(reason.startswith("unknown format") for reason in reading.counts)
    known = f"give columns prompt, chosen, rejected, or those of another format: {', '.join(formats.load())}"
    return f"{name}: no usable row, {reading.summary()}; {known if unknown else 'correct the rows'}"


def look_for_pairs(
    name, *, split="train", strict=False, count=0, seed=0, format="", watch=lambda rows: rows
) -> tuple[list[Pair], Reading]:
    """The same, perhaps no pairs.

    `containers.open_table` describes the files and `split`, and `formats/` the rows. Without `format`, the format of
    each row is detected; where a row could have several, the other rows of the file decide. With `count`, at most
    `count` rows are drawn at random before any row is read. The draw depends only on the seed and the number of rows,
    and a malformed row in it is not replaced. A malformed row is left out and listed; with `strict` it is a UserError.
    It is always a UserError if the file cannot be read or can have several formats. `watch` is put around the rows, to
    show progress.
    """
    table = containers.open_table(str(name), split)
    if format:
        formats.named(format)
    total = len(table) if count else 0
    indices = drawn(total, count, seed) if total > count else None
    choice: dict[tuple[str, ...], str] = {}
    pairs, reading, undecided = _read(watch(table.rows(indices)), strict, format, choice)
    if undecided:
        choice = {names: _decided(names, reading, where) for names, where in undecided.items()}
        pairs, reading, _ = _read(watch(table.rows(indices)), strict, format, choice)
    reading = replace(reading, undrawn=max(total - count, 0))
    if count and len(pairs) > count:  # a row can have several pairs
        reading = replace(reading, undrawn=reading.undrawn + len(pairs) - count)
        pairs = [pairs[index] for index in drawn(len(pairs), count, seed)]
    return pairs, reading


def _read(
    rows: Iterator[tuple[str, dict | str]], strict: bool, format: str, choice: dict[tuple[str, ...], str]
) -> tuple[list[Pair], Reading, dict[tuple[str, ...], str]]:
    """The pairs of the rows, what else was met, and {formats that a row could have: where}, unless `choice` knows them.

    Pairs without a source get the name of their file.
    """
    pairs, reading, undecided = [], Reading(), {}
    count = 0
    for where, row in rows:
        count += 1
        try:
            kinds = (format,) if format else formats.owners(row)
            if len(kinds) > 1 and kinds not in choice:
                undecided.setdefault(kinds, where)
                continue
            kind = choice.get(kinds, kinds[0])
            if not kind:
                raise formats.Malformed(f"can have the formats {' and '.join(kinds)}")
            read = formats.pairs_of(row, format) if format else formats.read_as(row, kind)
        except formats.Malformed as reason:
            skip(reading, where, str(reason), strict)
            continue
        reading.formats[kind] += 1
        for column in formats.unused(row, kind):
            reading.unused[formats.printable(column[:CUT])] += 1
        for pair in read:
            if isinstance(pair, formats.Malformed):
                skip(reading, where, str(pair), strict)
            else:
                pairs.append(replace(pair, where=where, source=pair.source or _file_of(where.rpartition(":")[0])))
    return pairs, replace(reading, count=count), undecided


@functools.lru_cache(maxsize=16)
def _file_of(path: str) -> str:
    return Path(path).name.split(".")[0]


def _decided(names: tuple[str, ...], reading: Reading, where: str) -> str:
    """The only one of these formats that other rows of the file have for certain; "" where most rows have others."""
    certain = [name for name in names if reading.formats[name]]
    if len(certain) == 1:
        return certain[0]
    if 2 * reading.formats.total() > reading.count:
        return ""
    raise formats.undecided(names, where)


def drawn(total: int, count: int, seed: int) -> list[int]:
    """At most `count` random indices below `total`, in ascending order.

    They are random because files are often sorted, so their first rows are not a fair sample.
    """
    return sorted(np.random.default_rng(seed).permutation(total)[:count].tolist())


def skip(skipped: Skipped, where: str, reason: str, strict: bool) -> None:
    """List a row that is left out. With `strict` it is a UserError, unless it is a tie, which is no fault."""
    if strict and not reason.startswith(TIE):
        raise UserError(f"{where}: {reason}; correct the row, or set strict to false to leave it out")
    skipped.rows.append((where, reason))


@dataclass(frozen=True)
class Repeats:
    """Pairs that say what another pair says too."""

    duplicates: int  # number of pairs with the prompt and both responses of an earlier pair
    contradictions: int  # number of comparisons that are in the file both ways round

    def summary(self) -> str:
        return f"{self.duplicates} duplicates, {self.contradictions} contradictions"


def repeats(pairs: Iterable[Pair]) -> Repeats:
    """How many pairs repeat or contradict others. The texts must be equal, apart from outer blanks."""
    seen, duplicates = set(), 0
    for pair in pairs:
        prompt = tuple(turn["content"].strip() for turn in pair.prompt)
        key = (prompt, pair.chosen.strip(), pair.rejected.strip())
        duplicates += key in seen
        seen.add(key)
    turned = sum((prompt, rejected, chosen) in seen for prompt, chosen, rejected in seen)
    return Repeats(duplicates, turned // 2)
