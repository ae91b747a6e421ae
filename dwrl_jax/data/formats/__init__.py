"""The contract of a format: the form of its rows, and the pairs in a row.

A format is a file of this folder that ends in `FORMAT = Format(...)`. Its name is the file's name, and no other file
lists it. `parts/` has the code that several formats share.
"""

import functools
import importlib
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from dwrl_jax.core.errors import UserError


class Malformed(Exception):
    """The reason why a row cannot be used, in a few words. Rows with the same reason are counted together."""


@dataclass(frozen=True)
class Format:
    """The reader of a format's rows."""

    columns: str  # the required columns, for messages
    owns: Callable[[dict], bool]  # whether a row has this format, malformed or not; at most one format owns a row
    pairs: Callable[[dict], Iterable[Any]]  # the row's `Pair`s, without `where`; raises Malformed


@functools.cache
def load() -> dict[str, Format]:
    """{name: format} of all files in this folder."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.ispkg)
    return {name: importlib.import_module(f"{__name__}.{name}").FORMAT for name in names}


def columns() -> str:
    """The columns of all formats, for messages."""
    return "; or ".join(kind.columns for kind in load().values())


def pairs_of(row: dict | None) -> list:
    """The pairs of a row. Raises Malformed if it cannot be used, and UserError if two formats own it."""
    if row is None:
        raise Malformed("not json")
    owners = [name for name, kind in load().items() if kind.owns(row)]
    if len(owners) > 1:
        raise UserError(f"a row with columns {', '.join(row)} is of two formats, {' and '.join(owners)}: change `owns`")
    if not owners:
        raise Malformed("unknown format")
    return list(load()[owners[0]].pairs(row))
