"""Preference rows: prompt, chosen and rejected, each of them a string or a message list."""

from dwrl_jax.data.formats import Format, hh_rlhf
from dwrl_jax.data.formats.parts.conversation import make_pair


def owns(row) -> bool:
    """Whether the row has a chosen or a rejected response, and no raw dialogue of HH-RLHF."""
    return ("chosen" in row or "rejected" in row) and not hh_rlhf.owns(row)


def pairs(row):
    """The row's single pair. Without a prompt, chosen and rejected are whole conversations. Raises Malformed."""
    yield make_pair(row, **{key: row.get(key) for key in hh_rlhf.KEYS})


FORMAT = Format(columns="prompt, chosen, rejected", owns=owns, pairs=pairs)
