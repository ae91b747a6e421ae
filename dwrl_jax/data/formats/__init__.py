"""The contract of a format: the form of its rows, and the pairs in a row.

A format is a file of this folder that ends in `FORMAT = Format(...)`. Its name is the file's name, and no other file
lists it. `parts/` has the code that several formats share.
"""

import functools
import importlib
import pkgutil
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass
from typing import Any

from dwrl_jax.core.errors import UserError

_BROKEN = (ArithmeticError, AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError)
_REASON = 200  # characters of a reason


class Malformed(Exception):
    """The reason why a row cannot be used, in a few words. Rows with the same reason are counted together.

    Words of the row in it are cut, and signs that are not to be printed are written out.
    """

    def __init__(self, reason: str):
        super().__init__(printable(reason[:_REASON]))


def printable(text: str) -> str:
    """A text for a line of a list or of a terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


Columns = tuple[str, ...]  # the columns of a row in which something is, in their order


@dataclass(frozen=True)
class Format:
    """The reader of a format's rows.

    If several formats own a row, a `general` one leaves it to the others. If several are left, the other rows of the
    file decide (`pairs.read_pairs`). With `detect` False only `data.format` chooses the format.
    """

    columns: str  # the required columns, for messages
    has: Callable[[Columns], bool]  # whether a row with these columns can have this format
    pairs: Callable[[dict], Iterable[Any]]  # `Pair`s without `where`, and a Malformed for each tie; raises Malformed
    uses: Callable[[Columns], Set[str]]  # the columns that `pairs` reads, apart from `conversation.COMMON`
    owns: Callable[[dict], bool] = lambda row: True  # whether a row that `has` the columns has this format
    general: bool = False
    detect: bool = True


@functools.cache
def load() -> dict[str, Format]:
    """{name: format} of all files in this folder."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.ispkg)
    return {name: importlib.import_module(f"{__name__}.{name}").FORMAT for name in names}


def named(name: str) -> Format:
    """The format of a name. UserError for an unknown one."""
    if name not in load():
        raise UserError(f"data.format={name!r}: no such format; choose one of {', '.join(load())}")
    return load()[name]


def columns_of(row: dict) -> Columns:
    """The columns of a row that are not null."""
    return tuple(row) if None not in row.values() else tuple(name for name, value in row.items() if value is not None)


@functools.lru_cache(maxsize=1024)
def _candidates(names: Columns) -> list[tuple[str, Format]]:
    """The detectable formats that rows with these columns can have, the special ones before the general ones."""
    able = [(name, kind) for name, kind in load().items() if kind.detect and kind.has(names)]
    return sorted(able, key=lambda item: item[1].general)


def owners(row: dict | str) -> tuple[str, ...]:
    """The names of the formats that the row can have. Raises Malformed if there is none; a string is a reason."""
    if isinstance(row, str):
        raise Malformed(row)
    names: list[str] = []
    for name, kind in _candidates(columns_of(row)):
        if not (kind.general and names) and _owns(row, name):
            names.append(name)
    if not names:
        raise Malformed(f"unknown format: {', '.join(name[:40] for name in sorted(row)[:8])}")
    return tuple(names)


def pairs_of(row: dict | str, name: str = "") -> list:
    """The pairs of a row, and a Malformed for each tie, in the format `name` or in the row's own format.

    Raises Malformed if the row cannot be used, and UserError if it can have several formats.
    """
    if not name:
        names = owners(row)
        if len(names) > 1:
            raise undecided(names, f"a row with the columns {', '.join(row)}")
        return read_as(row, names[0])
    kind = named(name)
    if isinstance(row, str):
        raise Malformed(row)
    if not (kind.has(columns_of(row)) and _owns(row, name)):
        raise Malformed(f"not of format {name}, which needs {kind.columns}")
    return read_as(row, name)


def read_as(row: dict, name: str) -> list:
    """`pairs_of` for a row that has this format."""
    try:
        return list(load()[name].pairs(row))
    except _BROKEN as error:  # somebody else's rows may hold anything
        raise _unreadable(name, error) from error


def _owns(row: dict, name: str) -> bool:
    try:
        return load()[name].owns(row)
    except _BROKEN as error:
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: Exception) -> Malformed:
    return Malformed(f"cannot be read as {name} ({type(error).__name__})")


def unused(row: dict, name: str) -> list[str]:
    """The columns of a row, and the keys of its turns, that have something in them and are not read."""
    names = [column for column in _unread(name, columns_of(row)) if row[column] not in ("", [], {})]
    for column, value in row.items():
        if type(value) is list:
            for turn in value:
                if type(turn) is dict and len(turn) > 2:
                    names += [f"{column}[].{key}" for key in _more_keys(turn)]
    return names


@functools.lru_cache(maxsize=1024)
def _unread(name: str, columns: Columns) -> tuple[str, ...]:
    from dwrl_jax.data.formats.parts.conversation import COMMON  # which imports this file

    return tuple(sorted(set(columns) - load()[name].uses(columns) - COMMON))


def _more_keys(turn: dict) -> list[str]:
    """The keys of a turn that have something in them and are not read."""
    from dwrl_jax.data.formats.parts.messages import READ

    return [key for key in turn if key not in READ and turn[key]] if "role" in turn or "from" in turn else []


def undecided(names: tuple[str, ...], what: str) -> UserError:
    flags = " or ".join(f"--config.data.format={name}" for name in names)
    return UserError(f"{what} can have the formats {' and '.join(names)}, which differ in meaning: give {flags}")
