"""Rows with two responses in two columns, such as response_a and response_b, and a label that names the better one."""

import functools
import itertools
from typing import NamedTuple

from dwrl_jax.data.formats import Malformed, columns_of
from dwrl_jax.data.formats.parts.conversation import make_pair
from dwrl_jax.data.formats.parts.prompt import prompt_of, used

STEMS = ("response", "output", "answer", "completion", "generation", "summary", "text", "candidate")
SUFFIXES = (("a", "b"), ("A", "B"), ("1", "2"), ("0", "1"))
JOINS = ("_", "", "-")
LABELS = (
    "label",
    "preference",
    "preferred",
    "preferred_response",
    "winner",
    "choice",
    "better",
    "better_response",
    "human_preference",
)
TIES = ("tie", "draw", "equal", "same", "both", "neither", "none")


class Two(NamedTuple):
    """The columns of two responses, how their names end, and the column of the label ("" for none)."""

    columns: tuple[str, str]
    suffixes: tuple[str, str]
    label: str


@functools.lru_cache(maxsize=1024)
def two(columns: tuple[str, ...]) -> Two | None:
    """The two responses among the columns of a row, or None. A row with a chosen response has none."""
    if "chosen" in columns or "rejected" in columns:
        return None
    for stem, join, suffixes in itertools.product(STEMS, JOINS, SUFFIXES):
        both = tuple(f"{stem}{join}{suffix}" for suffix in suffixes)
        if set(both) <= set(columns):
            return Two(both, suffixes, next((name for name in LABELS if name in columns), ""))
    return None


def compared(row, better: int | None, **optional):
    """The pair of a row whose response 0 or 1 is better; a tie is Malformed. `optional` is passed to `make_pair`."""
    if better is None:
        raise Malformed("tie")
    columns = two(columns_of(row)).columns
    yield make_pair(
        row, prompt=prompt_of(row), chosen=row[columns[better]], rejected=row[columns[1 - better]], **optional
    )


def used_by_two(columns) -> set[str]:
    """The columns that a pair of `compared` comes from."""
    return {*two(columns).columns, two(columns).label, *used(columns)}


def label_of(row):
    """The label of a row; None if it is missing."""
    return row.get(two(columns_of(row)).label)


def has_label(columns) -> bool:
    """Whether a row with these columns has two responses and a label."""
    return two(columns) is not None and two(columns).label != ""


def whole_number(value) -> int | None:
    """A label that is a whole number, also as text or as 1.0; None for other labels."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        as_float = float(value)
    except (ValueError, OverflowError):
        return None
    return int(as_float) if as_float.is_integer() else None
