"""Two responses and a number: 0 says that the first one is better, 1 the second one, 2 that they are equal."""

from dwrl_jax.data.formats import Format, Malformed, columns_of, labelled_from_1
from dwrl_jax.data.formats.parts.two import compared, has_label, label_of, two, used_by_two, whole_number

BETTER = {0: 0, 1: 1, 2: None}


def owns(row) -> bool:
    """Whether the row could also be counted from 1. It could not if its columns end in 1 and 2 and the label is 2."""
    certain = two(columns_of(row)).suffixes == ("1", "2") and whole_number(label_of(row)) == 2
    return labelled_from_1.owns(row) and not certain


def pairs(row):
    """The row's single pair. Raises Malformed."""
    label = whole_number(label_of(row))
    if label not in BETTER:
        raise Malformed(f"label {label} names no response")
    return compared(row, BETTER[label])


FORMAT = Format(
    columns="prompt, response_1, response_2, label", has=has_label, pairs=pairs, uses=used_by_two, owns=owns
)
