"""The prompt of a row, under the names that data sets give it."""

import re

NAMES = ("prompt", "question", "query", "context", "messages", "conversation", "conversations", "history", "input")
ALPACA = frozenset(("instruction", "input", "history"))
ROLES = {"Human": "user", "Assistant": "assistant"}


def prompt_of(row):
    """The first of `NAMES` that is not empty, or an instruction with its input below it; None without any of them.

    Earlier exchanges in `history`, as pairs of question and answer, go before an instruction. A raw dialogue becomes
    messages.
    """
    if row.get("instruction"):
        return _instruction(row)
    name = _name(row)
    value = None if name is None else row[name]
    return raw_turns(value) if is_raw(value) else value


def used(columns) -> frozenset[str]:
    """The columns that `prompt_of` reads in a row with these columns."""
    if "instruction" in columns:
        return ALPACA
    return frozenset([name for name in NAMES if name in columns][:1])


def is_raw(value) -> bool:
    """Whether a column is a raw dialogue of HH-RLHF, "\\n\\nHuman: ...\\n\\nAssistant: ...".

    The blank lines in front may be missing, or the answer behind them.
    """
    if not isinstance(value, str) or not value.lstrip().startswith("Human:"):
        return False
    text = unix(value)
    return text.startswith("\n\n") or "\n\nAssistant:" in text


def raw_turns(text: str) -> list[dict[str, str]]:
    """The turns of a raw dialogue."""
    parts = re.split(r"\n\n(Human|Assistant):", "\n\n" + unix(text).lstrip())[1:]
    return [{"role": ROLES[name], "content": said.strip()} for name, said in zip(parts[::2], parts[1::2])]


def unix(text: str) -> str:
    return text.replace("\r\n", "\n") if "\r" in text else text


def _name(row) -> str | None:
    return next((name for name in NAMES if row.get(name) not in (None, "", [])), None)


def _instruction(row):
    parts = [row[name] for name in ("instruction", "input") if row.get(name)]
    if len(parts) == 1 and not row.get("history"):
        return parts[0]
    turns = [
        {"role": role, "content": text}
        for exchange in row.get("history") or ()
        for role, text in zip(("user", "assistant"), exchange, strict=True)
    ]
    return [*turns, {"role": "user", "content": "\n\n".join(parts)}]
