"""PKU-SafeRLHF: two responses, and which one is better. Which one is safer is another label, and is not used.

Source: the card of PKU-Alignment/PKU-SafeRLHF.
"""

from dwrl_jax.data.formats import Format, Malformed
from dwrl_jax.data.formats.parts.two import compared, two, used_by_two, whole_number


def pairs(row):
    """The row's single pair. Raises Malformed."""
    better = whole_number(row["better_response_id"])
    if better not in (0, 1):
        raise Malformed("tie" if better == -1 else "no label")
    return compared(row, better)


FORMAT = Format(
    columns="prompt, response_0, response_1, better_response_id",
    has=lambda columns: "better_response_id" in columns and two(columns) is not None,
    pairs=pairs,
    uses=lambda columns: {*used_by_two(columns), "better_response_id"},
)
