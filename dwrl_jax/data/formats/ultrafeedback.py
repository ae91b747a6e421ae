"""UltraFeedback as it was published: an instruction and completions, each with an overall score.

Source: the card of openbmb/UltraFeedback. The binarised one is of the format `preference`.
"""

from dwrl_jax.data.formats import Format
from dwrl_jax.data.formats.parts.conversation import number
from dwrl_jax.data.formats.parts.several import has_list, pairs_by, used_by_several, values_of

KEYS = ("overall_score", "fine-grained_score")


def owns(row) -> bool:
    """Whether the row has a list of responses, each with one of `KEYS`."""
    return values_of(row, (), KEYS) is not None


def pairs(row):
    """A pair for each two completions with different scores; the difference is the margin. Raises Malformed."""
    return pairs_by(row, [number(value) for value in values_of(row, (), KEYS)], margins=True)


FORMAT = Format(
    columns="instruction, completions with overall_score", has=has_list, pairs=pairs, owns=owns, uses=used_by_several
)
