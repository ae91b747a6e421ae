"""The contract of a format: what a row of it looks like, and which pairs it stands for.

A format is one file of this folder that ends in `FORMAT = Format(...)`. It is known by its file: nothing else names
it. `parts/` has what several share.
"""

import functools
import importlib
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from dwrl_jax.core.errors import UserError


class Malformed(Exception):
    """The reason why a row cannot be used, in a few words: rows are counted by it."""


@dataclass(frozen=True)
class Format:
    """How the rows of a format are read."""

    columns: str  # the needed columns, for messages
    owns: Callable[[dict], bool]  # whether a row is of this format, malformed or not; true of one format at most
    pairs: Callable[[dict], Iterable[Any]]  # the row's `Pair`s, without `where`; raises Malformed


@functools.cache
def load() -> dict[str, Format]:
    """name -> format, of every file in this folder."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.ispkg)
    return {name: importlib.import_module(f"{__name__}.{name}").FORMAT for name in names}


def columns() -> str:
    """The columns of all formats, for messages."""
    return "; or ".join(kind.columns for kind in load().values())


def pairs_of(row: dict | None) -> list:
    """The pairs of one row. Raises Malformed; UserError when two formats own it."""
    if row is None:
        raise Malformed("not json")
    owners = [name for name, kind in load().items() if kind.owns(row)]
    if len(owners) > 1:
        raise UserError(f"a row with columns {', '.join(row)} is of two formats, {' and '.join(owners)}: mend `owns`")
    if not owners:
        raise Malformed("unknown format")
    return list(load()[owners[0]].pairs(row))
