"""Two responses and a label that names the better one, such as response_a, response_b and winner "a".

A label is the end of the response's column, the whole column, model_a or model_b, first or second; numbers where the
columns are numbered from 0. "tie" and the like are ties. `parts/two.py` has the names of the columns.
"""

from dwrl_jax.data.formats import Format, Malformed, columns_of
from dwrl_jax.data.formats.parts.two import TIES, compared, has_label, label_of, two, used_by_two, whole_number


def owns(row) -> bool:
    """Whether the label is no bare number, or the responses are numbered from 0."""
    return two(columns_of(row)).suffixes == ("0", "1") or whole_number(label_of(row)) is None


def pairs(row):
    """The row's single pair. Raises Malformed."""
    kind, label = two(columns_of(row)), label_of(row)
    number = whole_number(label)
    said = str(label if number is None else number).strip().lower()
    if label is None or not said:
        raise Malformed("no label")
    if said.startswith(TIES):
        return compared(row, None)
    for index, (suffix, column) in enumerate(zip(kind.suffixes, kind.columns)):
        if said in (suffix.lower(), column.lower(), f"model_{suffix.lower()}", ("first", "second")[index]):
            return compared(row, index)
    raise Malformed(f"label {said[:20]!r} names no response")


FORMAT = Format(
    columns="prompt, response_a, response_b, label", has=has_label, pairs=pairs, uses=used_by_two, owns=owns
)
