"""Two responses and a number: 1 says that the first one is better, 2 the second one, 0 that they are equal.

LLMBar and PandaLM are of this kind. For columns that end in 1 and 2 a label 2 in the file is a certain sign.
"""

from dwrl_jax.data.formats import Format, Malformed, columns_of
from dwrl_jax.data.formats.parts.two import compared, has_label, label_of, two, used_by_two, whole_number

BETTER = {1: 0, 2: 1, 0: None}


def owns(row) -> bool:
    """Whether the label is a number, and the responses are not numbered from 0."""
    return two(columns_of(row)).suffixes != ("0", "1") and whole_number(label_of(row)) is not None


def pairs(row):
    """The row's single pair. Raises Malformed."""
    label = whole_number(label_of(row))
    if label not in BETTER:
        raise Malformed(f"label {label} names no response")
    return compared(row, BETTER[label])


FORMAT = Format(
    columns="prompt, response_1, response_2, label", has=has_label, pairs=pairs, uses=used_by_two, owns=owns
)
