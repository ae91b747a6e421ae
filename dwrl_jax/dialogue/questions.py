"""The four kinds of question as plain texts, and the turns of the conversations that ask them.

    verdict, score   user: x   assistant: y   user: judge_question   ->  assistant: thought, closed by one end token
                                              user: answer_question  ->  assistant: answer, one token
    label            user: judge_question, with the conversation and two responses in it  ->  assistant: thought
                                              user: answer_question  ->  assistant: answer, one token
    bare             user: x   assistant: y

This is the layout "two_turns". In the layout "one_turn" a user turn asks both questions, and the assistant's turn has
the thought in its <think> block and the answer behind the block. There "</think>" is the end token of the thought.

A verdict says whether a response is good. A score says how good it is. A label says which of two responses is better.
A bare dialogue ends with the response, and a value head reads it there.
"""

import string
from dataclasses import dataclass, field

from dwrl_jax.core.errors import UserError

# kind -> keys of the first question, the second question and the answers in the config's section `dialogue`
KEYS = {
    "verdict": ("judge_question", "answer_question", "answers"),
    "label": ("pair_question", "label_question", "labels"),
    "score": ("judge_question", "score_question", "scores"),
    "bare": ("judge_question", "answer_question", "answers"),
}
LAYOUTS = ("two_turns", "one_turn")
CONTROLS = ("skip", "escape")  # what becomes of a text with a control token in it
SHOWN = {"conversation", "first", "second"}  # the fields of a label's first question


@dataclass(frozen=True)
class Texts:
    """All texts of a dialogue. `make_dialogue(tokenizer, texts)` makes the dialogue.

    `Texts(**json.loads(json.dumps(dataclasses.asdict(texts))))` equals `texts`. UserError for an unknown kind,
    layout or control.
    """

    judge_question: str  # asks for the thought; kind "label": with the fields {conversation}, {first}, {second}
    answer_question: str  # asks for the answer
    answers: tuple[str, ...]  # (good, bad); labels: (first is better, second is better); scores: lowest first
    system: str | None = None  # system message for conversations without one
    date: str = "26 Jul 2024"  # for templates that print today's date
    turn: str | None = None  # kind "label": format of a turn in the shown conversation, with {role} and {content}
    kind: str = "verdict"
    layout: str = "two_turns"
    template_arguments: dict = field(default_factory=dict)  # for the chat template, such as {"enable_thinking": False}
    control: str = "skip"

    def __post_init__(self):
        object.__setattr__(self, "answers", tuple(self.answers))  # JSON has only lists
        object.__setattr__(self, "system", self.system or None)
        if self.kind not in KEYS:
            raise UserError(f"kind of question {self.kind!r}: choose one of {', '.join(KEYS)}")
        if self.layout not in LAYOUTS:
            raise UserError(f"dialogue.layout={self.layout!r}: choose one of {', '.join(LAYOUTS)}")
        if self.control not in CONTROLS:
            raise UserError(f"dialogue.control={self.control!r}: choose one of {', '.join(CONTROLS)}")


def key_of(texts: Texts, name: str) -> str:
    """The key of the text `name` in the config."""
    names = dict(zip(KEYS["verdict"], KEYS[texts.kind]))
    return f"dialogue.{names.get(name, name)}"


def check_fields(texts: Texts) -> None:
    """UserError if a text with fields lacks a field or has an unknown field."""
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
    """{name of a text: its words without the fields}. These words appear in every conversation."""
    words = {name: getattr(texts, name) or "" for name in ("judge_question", "answer_question", "system")}
    if texts.kind == "label":
        for name in ("judge_question", "turn"):
            words[name] = " ".join(literal for literal, *_ in string.Formatter().parse(getattr(texts, name)))
    return words


def sides(dialogue, chosen, rejected) -> tuple[tuple, tuple[int, int]]:
    """The judged response or responses on each side of a pair, and for each side the index of its target answer.

    For kind "label" the sides are the two orders, first (chosen, rejected), and the target is the label of the chosen
    response. For other kinds the sides are the two responses, and the target is answer 0, "good", on both.
    """
    if dialogue.kind != "label":
        return (chosen, rejected), (0, 0)
    return ((chosen, rejected), (rejected, chosen)), (0, 1)


def message(role, content) -> dict[str, str]:
    return {"role": role, "content": content}


def before_thought(texts: Texts, messages, response) -> list[dict[str, str]]:
    """The conversation up to the thought: it ends with the question. For kind "bare" it ends with the response."""
    system, said = _opened(texts, messages)
    if texts.kind == "bare":
        return [*system, *said, message("assistant", response)]
    if texts.kind != "label":
        return [*system, *said, message("assistant", response), message("user", _asked(texts, texts.judge_question))]
    conversation = "\n\n".join(texts.turn.format(**turn) for turn in said)
    first, second = response
    question = texts.judge_question.format(conversation=conversation, first=first, second=second)
    return [*system, message("user", _asked(texts, question))]


def _asked(texts, question) -> str:
    """The turn that asks for the thought. In the layout "one_turn" it asks for the answer too."""
    return question if texts.layout == "two_turns" else f"{question}\n\n{texts.answer_question}"


def _opened(texts, messages):
    """The system message, as a list with at most one turn, and the other turns.

    The conversation's own system message goes before that of the texts.
    """
    if messages[0]["role"] == "system":
        return messages[:1], messages[1:]
    return [] if texts.system is None else [message("system", texts.system)], messages
