"""Raw HH-RLHF: whole dialogues in one string, "\\n\\nHuman: ...\\n\\nAssistant: ...", in chosen and rejected.

Source: Bai et al. 2022, https://github.com/anthropics/hh-rlhf. Other files write only the prompt like this, beside
answers that are strings.
"""

import re

from dwrl_jax.data.formats import Format
from dwrl_jax.data.formats.parts.conversation import make_pair

KEYS = ("prompt", "chosen", "rejected")
ROLES = {"Human": "user", "Assistant": "assistant"}


def owns(row) -> bool:
    """Whether there is a chosen or a rejected response, and one of the three columns is a raw dialogue."""
    return ("chosen" in row or "rejected" in row) and any(_is_raw(row.get(key)) for key in KEYS)


def pairs(row):
    """One pair, of columns that are raw dialogues, strings or message lists."""
    values = {key: row.get(key) for key in KEYS}
    yield make_pair(row, **{key: _turns(value) if _is_raw(value) else value for key, value in values.items()})


def _is_raw(value) -> bool:
    return isinstance(value, str) and value.startswith("\n\nHuman:")


def _turns(text) -> list[dict[str, str]]:
    parts = re.split(r"\n\n(Human|Assistant):", text)[1:]
    return [{"role": ROLES[name], "content": said.strip()} for name, said in zip(parts[::2], parts[1::2])]


FORMAT = Format(columns="chosen, rejected", owns=owns, pairs=pairs)
