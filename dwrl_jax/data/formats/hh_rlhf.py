"""Raw HH-RLHF: chosen and rejected are whole dialogues in a string, "\\n\\nHuman: ...\\n\\nAssistant: ...".

Source: Bai et al. 2022, https://github.com/anthropics/hh-rlhf. In other files only the prompt has this form, and the
answers are plain strings.
"""

from dwrl_jax.data.formats import Format
from dwrl_jax.data.formats.parts.conversation import make_pair
from dwrl_jax.data.formats.parts.prompt import is_raw, raw_turns

KEYS = ("prompt", "chosen", "rejected")
NAMES = {"user": "Human", "assistant": "Assistant"}


def owns(row) -> bool:
    """Whether at least one of the three columns is a raw dialogue."""
    return any(is_raw(row.get(key)) for key in KEYS)


def pairs(row):
    """The row's single pair. Its columns are raw dialogues, strings or message lists. Raises Malformed."""
    values = {key: row.get(key) for key in KEYS}
    turns = {key: raw_turns(value) if is_raw(value) else value for key, value in values.items()}
    if is_raw(values["chosen"]) and is_raw(values["rejected"]):
        turns["chosen"], turns["rejected"] = _with_quotes(turns["chosen"], turns["rejected"])
    yield make_pair(row, **turns)


def _with_quotes(chosen, rejected):
    """The turns of both sides. A dialogue that the last turn of one side quotes is text of that turn.

    Both sides are the same up to the last turn. So if all but the last turn of one side are the beginning of the other
    side, the rest of the other side is its last turn too, provided that its roles alternate.
    """
    short, long = sorted((chosen, rejected), key=len)
    start = len(short) - 1
    quoted = long[start:]
    roles = [turn["role"] for turn in quoted]
    if len(quoted) < 2 or short[:start] != long[:start] or not short[-1]["role"] == roles[0] == "assistant":
        return chosen, rejected
    if any(a == b for a, b in zip(roles, roles[1:])):
        return chosen, rejected
    text = "\n\n".join([quoted[0]["content"], *(f"{NAMES[turn['role']]}: {turn['content']}" for turn in quoted[1:])])
    whole = [*long[:start], {"role": "assistant", "content": text}]
    return (chosen, whole) if long is rejected else (whole, rejected)


FORMAT = Format(
    columns="chosen, rejected",
    has=lambda columns: "chosen" in columns or "rejected" in columns,
    pairs=pairs,
    uses=lambda columns: set(KEYS),
    owns=owns,
)
