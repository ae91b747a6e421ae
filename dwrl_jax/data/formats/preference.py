"""Preference rows: a prompt, and chosen and rejected responses, each of them a string or a message list.

These are TRL's explicit and implicit layouts, ShareGPT's turns with `from` and `value`, Alpaca's instruction and input,
and the binarised UltraFeedback with its scores. `parts/prompt.py` has the names of the prompt.
"""

from dwrl_jax.data.formats import Format
from dwrl_jax.data.formats.parts.conversation import make_pair
from dwrl_jax.data.formats.parts.prompt import prompt_of, used


def pairs(row):
    """The row's single pair. Without a prompt, chosen and rejected are whole conversations. Raises Malformed."""
    yield make_pair(row, prompt=prompt_of(row), chosen=row.get("chosen"), rejected=row.get("rejected"))


FORMAT = Format(
    columns="prompt, chosen, rejected",
    has=lambda columns: "chosen" in columns or "rejected" in columns,
    pairs=pairs,
    uses=lambda columns: {"chosen", "rejected", *used(columns)},
    general=True,
)
