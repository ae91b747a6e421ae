"""The four kinds of question as plain texts, and the turns of a conversation that asks them.

    verdict, score   user: x   assistant: y   user: judge_question   ->  assistant: thought, closed by one end token
                                              user: answer_question  ->  assistant: answer, one token
    label            user: judge_question, with the conversation and two responses in it  ->  assistant: thought
                                              user: answer_question  ->  assistant: answer, one token
    bare             user: x   assistant: y

A verdict says whether one response is good, a score how good it is, a label which of two responses is better. A bare
dialogue ends with the response: a value head reads it there.
"""

import string
from dataclasses import dataclass

from dwrl_jax.core.errors import UserError

# kind -> the config's keys, in the section `dialogue`, of the first question, the second question and the answers
KEYS = {
    "verdict": ("judge_question", "answer_question", "answers"),
    "label": ("pair_question", "label_question", "labels"),
    "score": ("judge_question", "score_question", "scores"),
    "bare": ("judge_question", "answer_question", "answers"),
}
SHOWN = {"conversation", "first", "second"}  # the fields of a label's first question


@dataclass(frozen=True)
class Texts:
    """All texts of a dialogue. With a tokenizer they make it: `make_dialogue(tokenizer, texts)`.

    `Texts(**json.loads(json.dumps(dataclasses.asdict(texts))))` equals `texts`. UserError for an unknown kind.
    """

    judge_question: str  # asks for the thought; of kind "label" it has the fields {conversation}, {first}, {second}
    answer_question: str  # asks for the answer
    answers: tuple[str, ...]  # (good, bad); labels (first, second is better); scores, the lowest first
    system: str | None = None  # put first where a conversation has no system message of its own
    date: str = "26 Jul 2024"  # for templates that print today's date
    turn: str | None = None  # kind "label": how a turn of the shown conversation is written: {role}, {content}
    kind: str = "verdict"

    def __post_init__(self):
        object.__setattr__(self, "answers", tuple(self.answers))  # JSON has lists alone
        object.__setattr__(self, "system", self.system or None)
        if self.kind not in KEYS:
            raise UserError(f"kind of question {self.kind!r}: choose one of {', '.join(KEYS)}")


def key_of(texts: Texts, name: str) -> str:
    """The config's key of one of the texts."""
    names = dict(zip(KEYS["verdict"], KEYS[texts.kind]))
    return f"dialogue.{names.get(name, name)}"


def check_fields(texts: Texts) -> None:
    """UserError where a text that is to be filled in lacks a field or has an unknown one."""
    if texts.kind != "label":
        return
    for name, known, needed in (("turn", {"role", "content"}, {"content"}), ("judge_question", SHOWN, SHOWN)):
        text, key = getattr(texts, name) or "", key_of(texts, name)
        try:
            fields = {field for _, field, _, _ in string.Formatter().parse(text) if field is not None}
        except ValueError as error:
            raise UserError(f"{key}: {text!r} cannot be filled in ({error}); write {{{{ for a brace") from error
        wrong = needed - fields or fields - known
        if wrong:
            braced = ", ".join(f"{{{field}}}" for field in sorted(needed))
            raise UserError(f"{key}: {text!r} must have {braced}; {min(wrong)!r} is missing or does not exist")


def written(texts: Texts) -> dict[str, str]:
    """name of a text -> its words that stand in every conversation, without the fields that are filled in."""
    words = {name: getattr(texts, name) or "" for name in ("judge_question", "answer_question", "system")}
    if texts.kind == "label":
        for name in ("judge_question", "turn"):
            words[name] = " ".join(literal for literal, *_ in string.Formatter().parse(getattr(texts, name)))
    return words


def sides(dialogue, chosen, rejected) -> tuple[tuple, tuple[int, int]]:
    """The judged responses on the two sides of a pair, and the index in `answers` of the right answer to each.

    The two responses, each to be called good; of kind "label" the two orders, (chosen, rejected) first.
    """
    if dialogue.kind != "label":
        return (chosen, rejected), (0, 0)
    return ((chosen, rejected), (rejected, chosen)), (0, 1)


def message(role, content) -> dict[str, str]:
    return {"role": role, "content": content}


def before_thought(texts: Texts, messages, response) -> list[dict[str, str]]:
    """The conversation through the first question; through the response where the kind is "bare"."""
    system, said = _opened(texts, messages)
    if texts.kind == "bare":
        return [*system, *said, message("assistant", response)]
    if texts.kind != "label":
        return [*system, *said, message("assistant", response), message("user", texts.judge_question)]
    conversation = "\n\n".join(texts.turn.format(**turn) for turn in said)
    first, second = response
    question = texts.judge_question.format(conversation=conversation, first=first, second=second)
    return [*system, message("user", question)]


def after_prefix(texts: Texts, thought) -> list[dict[str, str]]:
    """The thought and the second question."""
    return [message("assistant", thought), message("user", texts.answer_question)]


def _opened(texts, messages):
    """The system message, the conversation's or else the one of the texts, and the turns behind it."""
    if messages[0]["role"] == "system":
        return messages[:1], messages[1:]
    return [] if texts.system is None else [message("system", texts.system)], messages
