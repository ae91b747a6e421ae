"""Responses with ranks: a list of responses and their ranks, or responses that each have a rank, as in Nectar.

The lowest rank is the best, equal ranks are ties. A rank says nothing about the size of a difference.
"""

from dwrl_jax.data.formats import Format
from dwrl_jax.data.formats.parts.conversation import number
from dwrl_jax.data.formats.parts.several import has_list, pairs_by, used_by_several, values_of

COLUMNS = ("ranks", "rank", "ranking")


def owns(row) -> bool:
    """Whether the row has several responses and a rank for each."""
    return values_of(row, COLUMNS, ("rank",)) is not None


def pairs(row):
    """A pair for each two responses with different ranks. Raises Malformed."""
    ranks = [number(value) for value in values_of(row, COLUMNS, ("rank",))]
    return pairs_by(row, [None if rank is None else -rank for rank in ranks])


FORMAT = Format(
    columns="prompt, responses, ranks",
    has=has_list,
    pairs=pairs,
    owns=owns,
    uses=lambda columns: {*used_by_several(columns), *COLUMNS},
)
