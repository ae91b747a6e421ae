"""HelpSteer2's preferences and HelpSteer3: two responses and a signed strength from -3 to 3.

A negative strength says that the first response is better, its size says by how much; 0 is a tie. Source: the cards of
nvidia/HelpSteer2 (preference_strength) and nvidia/HelpSteer3 (overall_preference).
"""

from dwrl_jax.data.formats import Format, Malformed
from dwrl_jax.data.formats.parts.conversation import number
from dwrl_jax.data.formats.parts.two import compared, two, used_by_two

STRENGTHS = ("overall_preference", "preference_strength")


def pairs(row):
    """The row's single pair. Its margin is the size of the strength. Raises Malformed."""
    strength = next((number(row[name]) for name in STRENGTHS if row.get(name) is not None), None)
    if strength is None:
        raise Malformed("no label")
    better = None if strength == 0 else int(strength > 0)
    return compared(row, better, margin=abs(strength), source=row.get("domain"))


FORMAT = Format(
    columns="context, response1, response2, overall_preference",
    has=lambda columns: any(name in columns for name in STRENGTHS) and two(columns) is not None,
    pairs=pairs,
    uses=lambda columns: {*used_by_two(columns), *STRENGTHS, "domain"},
)
