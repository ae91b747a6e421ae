"""A list of responses, the best one first. No column says so, so only `data.format` chooses this format."""

from dwrl_jax.data.formats import Format
from dwrl_jax.data.formats.parts.several import has_list, list_of, pairs_by, used_by_several


def owns(row) -> bool:
    """Whether the row has several responses."""
    return list_of(row) is not None


def pairs(row):
    """A pair for each two responses. Raises Malformed."""
    return pairs_by(row, [-index for index in range(len(row[list_of(row)]))])


FORMAT = Format(
    columns="prompt, responses (the best first, with data.format=best_first)",
    has=has_list,
    pairs=pairs,
    owns=owns,
    uses=used_by_several,
    detect=False,
)
