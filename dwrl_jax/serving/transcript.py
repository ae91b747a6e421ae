"""Read a conversation from the text that a chat template made of it. Some callers send nothing else."""

from dataclasses import dataclass

from dwrl_jax.core.errors import UserError
from dwrl_jax.dialogue import Dialogue, has_control_token
from dwrl_jax.dialogue.rendering import as_text

_WORDS = tuple(f"x{i}y{i}z" for i in range(4))  # stand for the turns of a probe


@dataclass(frozen=True)
class Marks:
    """The texts that a template writes around turns. Empty marks: its conversations cannot be read back."""

    begin: str = ""  # begin token, which some callers take away
    opened: str = ""  # before the first turn, a user turn
    system: str = ""  # before a system message
    after_system: str = ""  # from there to the user turn
    answer: str = ""  # from a user turn to the assistant's
    again: str = ""  # from there to the next user turn
    end: str = ""  # behind the last turn, an assistant turn
    prompted: str = ""  # behind a last user turn, where an answer is to begin


def marks_of(dialogue: Dialogue) -> Marks:
    """The marks of the dialogue's template, found with probes."""
    roles = ("user", "assistant") * 2
    turns = [{"role": role, "content": word} for role, word in zip(roles, _WORDS)]
    told = [{"role": "system", "content": _WORDS[3]}, turns[0]]
    try:
        whole, prompted = as_text(dialogue, [turns], False)[0], as_text(dialogue, [turns[:1]], True)[0]
        opened, answer, again, _, end = _split(whole, _WORDS)
        _, prompted = _split(prompted, _WORDS[:1])
    except (UserError, ValueError):
        return Marks()
    try:
        system, after_system, _ = _split(as_text(dialogue, [told], False)[0], (_WORDS[3], _WORDS[0]))
    except (UserError, ValueError):
        system = after_system = ""
    begin = dialogue.tokenizer.bos_token or ""
    return Marks(begin if opened.startswith(begin) else "", opened, system, after_system, answer, again, end, prompted)


def _split(text: str, words: tuple[str, ...]) -> list[str]:
    """The texts around the words. ValueError if a word is missing."""
    pieces = []
    for word in words:
        index = text.index(word)
        pieces.append(text[:index])
        text = text[index + len(word) :]
    return [*pieces, text]


def conversation(marks: Marks, text: str) -> list[dict[str, str]] | None:
    """The turns of a text, up to the last one, which may be the assistant's. None if the template did not write it."""
    if not marks.answer or not marks.again:
        return None
    stripped = text.lstrip()  # verl takes the begin token away and leaves the blank behind it
    for opened, given in ((marks.opened, text), (_later(marks, marks.opened), stripped)):
        if opened and given.startswith(opened):
            return _turns(marks, given[len(opened) :])
    for opened, given in ((marks.system, text), (_later(marks, marks.system), stripped)):
        if opened and given.startswith(opened) and marks.after_system in given:
            system, _, rest = given[len(opened) :].partition(marks.after_system)
            return [{"role": "system", "content": system}, *_turns(marks, rest)]
    return None


def _later(marks: Marks, opened: str) -> str:
    """The mark without the begin token."""
    return opened.removeprefix(marks.begin).lstrip()


def _turns(marks: Marks, rest: str) -> list[dict[str, str]]:
    turns, role = [], "user"
    while True:
        mark = marks.answer if role == "user" else marks.again
        content, between, rest = rest.partition(mark)
        if not between:
            last = without_end(marks, content) if role == "assistant" else content.removesuffix(marks.prompted)
            return [*turns, {"role": role, "content": last}] if last.strip() else turns
        turns.append({"role": role, "content": content})
        role = "assistant" if role == "user" else "user"


def without_end(marks: Marks, text: str) -> str:
    """A response without the mark that closes its turn."""
    end = marks.end.strip()
    return text.rstrip().removesuffix(end).rstrip() if end and text.rstrip().endswith(end) else text


def prompt_of(dialogue: Dialogue, marks: Marks, text: str) -> list[dict[str, str]]:
    """The turns of a prompt: those of the template, or a single user turn of plain text.

    ValueError if the text has control tokens, but the template did not write it.
    """
    turns = conversation(marks, text)
    if turns is not None:
        return turns
    if has_control_token(dialogue, text):
        raise ValueError("not in the chat template of this judge; send messages or plain text")
    return [{"role": "user", "content": text}]
