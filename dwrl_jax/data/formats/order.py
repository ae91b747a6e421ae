"""Responses and their order: the numbers of the responses, counted from 0 or 1, the best one first.

A column `ranking` can have this meaning or that of `ranks`; ties in it are a sign of ranks.
"""

from dwrl_jax.data.formats import Format
from dwrl_jax.data.formats.parts.several import has_list, list_of, pairs_by, used_by_several

COLUMNS = ("order", "ranking")


def owns(row) -> bool:
    """Whether the row has several responses and a permutation of their numbers."""
    name = list_of(row)
    return name is not None and _order(row, len(row[name])) is not None


def pairs(row):
    """A pair for each two responses. Raises Malformed."""
    order = _order(row, len(row[list_of(row)]))
    return pairs_by(row, [-order.index(index) for index in range(len(order))])


def _order(row, count: int) -> list[int] | None:
    """The numbers of the responses from 0, the best one first."""
    given = next((row[name] for name in COLUMNS if isinstance(row.get(name), list)), None)
    if given is None or not all(type(number) is int for number in given):
        return None
    first = min(given, default=0)
    return (
        [number - first for number in given]
        if sorted(given) in (list(range(count)), list(range(1, count + 1)))
        else None
    )


FORMAT = Format(
    columns="prompt, responses, order",
    has=has_list,
    pairs=pairs,
    owns=owns,
    uses=lambda columns: {*used_by_several(columns), *COLUMNS},
)
