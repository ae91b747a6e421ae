"""Make a pair from messages or strings, with the checks for pairs of every format."""

import math

from dwrl_jax.data.formats import Malformed
from dwrl_jax.data.pairs import Pair


def make_pair(row, *, prompt, chosen, rejected) -> Pair:
    """The pair of these three values, each a string or a message list, with the row's optional columns.

    `chosen` and `rejected` are either answers to `prompt`, or whole conversations that differ only in the last turn.
    For whole conversations `prompt` may be None. The optional columns are margin, source, thoughts and verdicts. Raises
    Malformed.
    """
    for key, value in (("chosen", chosen), ("rejected", rejected)):
        if value is None:
            raise Malformed(f"missing column: {key}")
    prompt = None if prompt is None else messages(prompt, "user")
    if prompt and len(prompt) > 1 and prompt[-1]["role"] == "assistant" and not prompt[-1]["content"].strip():
        prompt = prompt[:-1]  # an empty last turn only opens the answer
    sides = [messages(value, "assistant") for value in (chosen, rejected)]
    chosen, rejected = (_conversation(turns, prompt) for turns in sides)
    _check_sides(chosen, rejected)
    source = row.get("source")
    thoughts = _two(row, "thoughts", lambda text: isinstance(text, str) and text.strip())
    return Pair(
        prompt=tuple(chosen[:-1]),
        chosen=chosen[-1]["content"],
        rejected=rejected[-1]["content"],
        margin=_margin(row.get("margin")),
        source=source if isinstance(source, str) else "",
        # the tokenizer could merge outer blanks with the last token of the prompt
        thoughts=thoughts and (thoughts[0].strip(), thoughts[1].strip()),
        verdicts=_two(row, "verdicts", lambda answer: type(answer) is int and answer in (0, 1)),
    )


def messages(value, role) -> list[dict[str, str]]:
    """The messages of a column. A string is a single turn of `role`. Raises Malformed."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, list) or not value or not all(isinstance(turn, dict) for turn in value):
        raise Malformed("not a string or message list")
    if not all(isinstance(turn.get(key), str) for turn in value for key in ("role", "content")):
        raise Malformed("not a string or message list")
    return [{"role": turn["role"], "content": turn["content"]} for turn in value]


def _conversation(turns, prompt) -> list[dict[str, str]]:
    """The whole conversation of a side. Its column has either the whole conversation or only the answer."""
    if turns[0]["role"] == "assistant":
        if prompt is None:
            raise Malformed("missing column: prompt")
        return prompt + turns
    # In some data sets `prompt` is only the last question, and whole conversations open with a system turn.
    if prompt is not None and turns[:-1][-len(prompt) :] != prompt:
        raise Malformed("prompts differ")
    return turns


def _check_sides(chosen, rejected) -> None:
    if not chosen[-1]["role"] == rejected[-1]["role"] == "assistant":
        raise Malformed("last turn not assistant")
    if not (chosen[-1]["content"].strip() and rejected[-1]["content"].strip()):
        raise Malformed("empty final turn")
    if chosen[:-1] != rejected[:-1]:
        raise Malformed("prompts differ")
    check_roles(chosen)
    if chosen[-1]["content"].strip() == rejected[-1]["content"].strip():
        raise Malformed("chosen equals rejected")


def check_roles(conversation) -> None:
    """Malformed unless the turns are [system,] user, assistant, ..., user, assistant, and no turn is empty.

    Every chat template accepts such a conversation.
    """
    if not all(turn["content"].strip() for turn in conversation):
        raise Malformed("empty prompt turn")
    roles = [turn["role"] for turn in conversation]
    if unknown := set(roles) - {"system", "user", "assistant"}:
        raise Malformed(f"unknown role: {min(unknown)[:20]}")
    if any(a == b for a, b in zip(roles, roles[1:])):
        raise Malformed("consecutive same role")
    body = roles[1:] if roles[0] == "system" else roles
    if "system" in body:
        raise Malformed("system turn not first")
    if body[0] != "user":
        raise Malformed("first turn not user")


def _margin(value) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Malformed("bad margin")
    return float(value)


def _two(row, key, fits) -> tuple | None:
    """An optional column with a value for each side. None without the column; Malformed unless `fits` both values."""
    value = row.get(key)
    if value is not None and not (isinstance(value, list) and len(value) == 2 and all(map(fits, value))):
        raise Malformed(f"bad {key}")
    return None if value is None else tuple(value)
