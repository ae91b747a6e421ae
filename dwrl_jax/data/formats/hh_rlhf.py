"""Raw HH-RLHF: chosen and rejected are whole dialogues in a string, "\\n\\nHuman: ...\\n\\nAssistant: ...".

Source: Bai et al. 2022, https://github.com/anthropics/hh-rlhf. In other files only the prompt has this form, and the
answers are plain strings.
"""

import re

from dwrl_jax.data.formats import Format
from dwrl_jax.data.formats.parts.conversation import make_pair

KEYS = ("prompt", "chosen", "rejected")
ROLES = {"Human": "user", "Assistant": "assistant"}


def owns(row) -> bool:
    """Whether the row has a chosen or a rejected response, and at least one of the three columns is a raw dialogue."""
    return ("chosen" in row or "rejected" in row) and any(_is_raw(row.get(key)) for key in KEYS)


def pairs(row):
    """The row's single pair. Its columns are raw dialogues, strings or message lists. Raises Malformed."""
    values = {key: row.get(key) for key in KEYS}
    yield make_pair(row, **{key: _turns(value) if _is_raw(value) else value for key, value in values.items()})


def _is_raw(value) -> bool:
    return isinstance(value, str) and value.startswith("\n\nHuman:")


def _turns(text) -> list[dict[str, str]]:
    parts = re.split(r"\n\n(Human|Assistant):", text)[1:]
    return [{"role": ROLES[name], "content": said.strip()} for name, said in zip(parts[::2], parts[1::2])]


FORMAT = Format(columns="chosen, rejected", owns=owns, pairs=pairs)
