"""Make a pair from messages or strings, with the checks for pairs of every format."""

import math

from dwrl_jax.data.formats import Malformed, printable
from dwrl_jax.data.formats.parts.messages import messages
from dwrl_jax.data.pairs import Pair

UNSEEN = ("tools", "images", "image", "audio", "videos", "video")  # columns that the judge would not see
SYSTEM = ("system", "system_prompt", "system_message")
SOURCES = ("source", "subset")
# the scores of the two responses, under the names that data sets give them
SCORES = tuple(
    (join(word, "chosen"), join(word, "rejected"))
    for word in ("score", "rating", "reward")
    for join in ("{}_{}".format, lambda a, b: f"{b}_{a}", lambda a, b: f"{b}-{a}")
)
COMMON = frozenset(
    {"margin", "thoughts", "verdicts", *UNSEEN, *SYSTEM, *SOURCES, *(name for both in SCORES for name in both)}
)  # the columns that `make_pair` reads


def make_pair(row, *, prompt, chosen, rejected, margin=None, source=None) -> Pair:
    """The pair of these three values, each a string or a message list, with the row's optional columns.

    `chosen` and `rejected` are either answers to `prompt`, or whole conversations that differ only in the last turn.
    For whole conversations `prompt` may be None, or a part of them. The optional columns are `COMMON`; `margin` and
    `source` stand in for columns of that name. A margin, thoughts or verdicts that cannot be read are as if they were
    not there. Raises Malformed.
    """
    for key, value in (("chosen", chosen), ("rejected", rejected)):
        if value is None:
            raise Malformed(f"missing column: {key}")
    prompt = None if prompt is None else messages(prompt, "user")
    if prompt and len(prompt) > 1 and prompt[-1]["role"] == "assistant" and not prompt[-1]["content"].strip():
        prompt = prompt[:-1]  # an empty last turn only opens the answer
    sides = [messages(value, "assistant") for value in (chosen, rejected)]
    chosen, rejected = (opened(row, _conversation(turns, prompt)) for turns in sides)
    _check_sides(chosen, rejected)
    thoughts, verdicts = _written(row)
    return Pair(
        prompt=tuple(chosen[:-1]),
        chosen=chosen[-1]["content"],
        rejected=rejected[-1]["content"],
        margin=_strength(row, margin),
        source=_source(row, source),
        thoughts=thoughts,
        verdicts=verdicts,
    )


def _conversation(turns, prompt) -> list[dict[str, str]]:
    """The whole conversation of a side. Its column has either the whole conversation or only the answer."""
    if not turns:
        raise Malformed("not a string or message list")
    if turns[0]["role"] == "assistant":
        if not prompt:
            raise Malformed("missing column: prompt")
        return prompt + turns
    # In some data sets `prompt` is only the first or the last question of a whole conversation.
    if prompt and not _part_of(prompt, turns[:-1]):
        raise Malformed("prompts differ")
    return turns


def _part_of(prompt, turns) -> bool:
    """Whether `turns` ends or begins with `prompt`, apart from outer blanks and from a system turn in front."""
    size = len(prompt)
    first = 1 if turns and turns[0]["role"] == "system" and prompt[0]["role"] != "system" else 0
    return size <= len(turns) and any(
        _alike(turns[start : start + size], prompt) == size for start in (len(turns) - size, first)
    )


def _alike(turns, others) -> int:
    """The number of turns in front that are the same, apart from outer blanks."""
    count = 0
    for a, b in zip(turns, others):
        if a is not b and (a["role"] != b["role"] or a["content"].strip() != b["content"].strip()):
            break
        count += 1
    return count


def opened(row, conversation) -> list[dict[str, str]]:
    """The conversation with the text of the row's system column in front. Malformed for a row with tools or images."""
    for name in UNSEEN:
        if name in row and row[name] not in (None, [], {}, "", "[]"):
            raise Malformed(name)
    text = row.get("system") or row.get("system_prompt") or row.get("system_message")
    if not isinstance(text, str) or not text.strip():
        return conversation
    if conversation[0]["role"] != "system":
        return [{"role": "system", "content": text}, *conversation]
    if conversation[0]["content"].strip() != text.strip():
        raise Malformed("two system texts")
    return conversation


def _check_sides(chosen, rejected) -> None:
    if not chosen[-1]["role"] == rejected[-1]["role"] == "assistant":
        raise Malformed("last turn not assistant")
    if not (chosen[-1]["content"].strip() and rejected[-1]["content"].strip()):
        raise Malformed("empty final turn")
    common = _alike(chosen[:-1], rejected[:-1])
    if not common:
        raise Malformed("prompts differ")
    if max(len(chosen), len(rejected)) - 1 > common:
        raise Malformed("conversations part before the last turn")
    check_roles(chosen)
    if chosen[-1]["content"].strip() == rejected[-1]["content"].strip():
        raise Malformed("chosen equals rejected")
    if not all(_is_unicode(turn["content"]) for turn in (*chosen, rejected[-1])):
        raise Malformed("text is not Unicode (a lone surrogate)")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


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


def number(value) -> float | None:
    """A finite number, also one that is written as text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        value = float(value)
    except (ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None


def _strength(row, margin) -> float | None:
    """How much better the chosen response is: `margin`, or the row's margin, or the difference of its scores.

    Raises Malformed if the row's scores are equal, or the other way round.
    """
    for better, worse in SCORES:
        if better in row and worse in row:
            high, low = number(row[better]), number(row[worse])
            if high is None or low is None:
                continue
            if high == low:
                raise Malformed(f"tie: {better} equals {worse}")
            if high < low:
                raise Malformed(f"{better} is below {worse}")
            margin = high - low if margin is None else margin
            break
    given = number(row.get("margin"))
    return margin if given is None else given


def _source(row, source) -> str:
    return printable(next((text for text in (*map(row.get, SOURCES), source) if isinstance(text, str) and text), ""))


def _written(row) -> tuple[tuple[str, str] | None, tuple[int, int] | None]:
    """The written thoughts and the verdicts about both sides. If one of the two cannot be read, neither is used."""
    thoughts, verdicts = row.get("thoughts"), row.get("verdicts")
    if not all(value is None or (isinstance(value, list) and len(value) == 2) for value in (thoughts, verdicts)):
        return None, None
    if thoughts and not all(isinstance(text, str) and text.strip() and _is_unicode(text) for text in thoughts):
        return None, None
    if verdicts and not all(type(answer) is int and answer in (0, 1) for answer in verdicts):
        return None, None
    # the tokenizer could merge outer blanks with the last token of the prompt
    return thoughts and (thoughts[0].strip(), thoughts[1].strip()), verdicts and tuple(verdicts)
