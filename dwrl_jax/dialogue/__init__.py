"""What is asked of the judge: questions, answer tokens, text -> ids. No other file knows a chat format.

    user: x   assistant: y   user: judge_question    ->  assistant: thought, closed by one end token
                             user: answer_question   ->  assistant: answer, one token

A pairwise dialogue shows both responses in one user turn and asks which is the better one:

    user: pair_question, with the conversation and two responses in it  ->  assistant: thought
                             user: label_question                       ->  assistant: label, one token

Every id comes from the tokenizer's own chat template: `apply_chat_template(tokenize=False)`, then
`tokenizer(text, add_special_tokens=False)`. A conversation is cut into a prefix (up to the place where the
thought begins), the thought (through its end token) and `question_ids` (from that same end token through the
prompt for the answer). Put together they are, token for token, the template's rendering of the whole;
`make_dialogue` checks on probe conversations that the template allows this before anything else runs.
"""

import dataclasses
import json
import re
import string
from dataclasses import dataclass
from typing import Any

from dwrl_jax.core.errors import UserError
from dwrl_jax.dialogue.tokenizers import begin_ids, control_pattern, one_line, unusable, with_template

SHOWN = {"conversation", "first", "second"}  # what a pair_question has in it

_PROBES = (  # (messages, response, thought)
    (({"role": "user", "content": "Say hello."},), "Hello.", "It is polite."),
    (
        (
            {"role": "user", "content": "What is 2 + 2?"},
            {"role": "assistant", "content": "4"},
            {"role": "user", "content": "and 3?\n"},
        ),
        "7, of course",
        "2 + 2 + 3 = 7:\n\n1. right\n2. short",
    ),
)


@dataclass(frozen=True)
class Dialogue:
    """The two questions, and what they are in tokens; made by `make_dialogue`.

    `answers` are the good and the bad one, `answer_ids` the token of each in its place. `question_ids[0]` is
    `end_id`, the token that closes a thought: append `question_ids[1:]` after a thought that has its end.
    In a pairwise dialogue, one with a `turn`, the two questions are `pair_question` and `label_question`, the
    answers are the labels of the first and of the second response, and a response is a pair of them. In an `ordinal`
    one they are scores, the lowest first.
    """

    tokenizer: Any
    judge_question: str
    answer_question: str
    answers: tuple[str, ...]
    system: str | None  # put first where a conversation has no system message of its own
    date: str  # for templates that print today's date
    turn: str | None  # how a turn is written where the conversation is shown: with {role} and {content}
    template: str
    begin_ids: tuple[int, ...] = ()  # a begin token that the tokenizer adds but the template does not print
    question_ids: tuple[int, ...] = ()
    end_id: int = -1
    answer_ids: tuple[int, ...] = (-1, -1)
    pad_id: int = -1
    control: re.Pattern = re.compile("(?!)")
    ordinal: bool = False  # the answers are scores
    bare: bool = False  # prefixes end with the response, without a question: for a value head


def make_dialogue(
    tokenizer, *, judge_question, answer_question, answers, system=None, date="26 Jul 2024", turn=None, ordinal=False
) -> Dialogue:
    """Resolve both questions and both answers (good, bad) to tokens, and check that the template allows it.

    With `turn` the dialogue is pairwise and `judge_question` shows {conversation}, {first} and {second}. Where it is
    `ordinal` the answers are scores.
    UserError when the text before a turn changes with the turn, when a thought is not closed by exactly one
    end token, when an answer is not one token in its place, when there is more than one begin token, or when a
    text that is to be filled in lacks a field or has one that does not exist.
    """
    try:
        template = with_template(tokenizer).get_chat_template()
    except ValueError as error:
        raise unusable(one_line(error)) from error
    if "strftime_now" in template:
        # apply_chat_template turns a function among its arguments into a string, so a macro freezes the clock
        frozen = f"{{% macro strftime_now(format) %}}{{{{ {json.dumps(date)} }}}}{{% endmacro %}}\n"
        template = frozen + template
    dialogue = Dialogue(
        tokenizer=tokenizer,
        judge_question=judge_question,
        answer_question=answer_question,
        answers=tuple(answers),
        system=system or None,
        date=date,
        turn=turn,
        ordinal=ordinal,
        template=template,
        pad_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
    )
    if turn is not None:
        _check_fields("turn", turn, {"role", "content"}, needed={"content"})
        _check_fields("pair_question", judge_question, SHOWN, needed=SHOWN)
    resolved, again = (_resolve(dialogue, *probe) for probe in _PROBES)
    if resolved != again:
        raise unusable("what follows a thought depends on what came before it")
    control = control_pattern(tokenizer, resolved["question_ids"])
    dialogue = dataclasses.replace(dialogue, **resolved, control=control)
    if len(set(dialogue.answer_ids)) < len(answers):
        key = _key(dialogue, "answers")
        raise UserError(f"{key}: {dialogue.answers} are the same token; choose some that differ")
    for name in ("judge_question", "answer_question", "system", "turn"):
        if has_control_token(dialogue, getattr(dialogue, name) or ""):
            raise UserError(f"{_key(dialogue, name)} contains a control token of the tokenizer: take it out")
    return dialogue


def sides(dialogue, chosen, rejected) -> tuple[tuple, tuple[int, int]]:
    """What is judged on the two sides of a pair, and the right answer of each as an index of `answers`.

    The two responses, each to be found good; in a pairwise dialogue the two orders, (chosen, rejected) first.
    """
    if dialogue.turn is None:
        return (chosen, rejected), (0, 0)
    return ((chosen, rejected), (rejected, chosen)), (0, 1)


def prefix_ids(dialogue, messages, response) -> list[int]:
    """Ids of the conversation up to the place where the thought begins; through the response where `bare`."""
    return prefix_ids_batch(dialogue, [(messages, response)])[0]


def prefix_ids_batch(dialogue, rows) -> list[list[int]]:
    """`prefix_ids` of many (messages, response), by one call of the tokenizer."""
    if not rows:
        return []
    turns = _answered if dialogue.bare else _judged
    conversations = [turns(dialogue, messages, response) for messages, response in rows]
    return _encode(dialogue, _texts(dialogue, conversations, prompt=not dialogue.bare))


def render(dialogue, messages, response, thought, answer) -> list[int]:
    """Ids of the whole conversation, answer turn included, by the template in one go."""
    asked = _judged(dialogue, messages, response) + _asked(dialogue, thought)
    return _encode(dialogue, _texts(dialogue, [asked + [_turn("assistant", answer)]], prompt=False))[0]


def encode_thought(dialogue, text) -> list[int]:
    """Ids of a written thought as they stand in a conversation, through the end token."""
    return encode_thoughts(dialogue, [text])[0]


def encode_thoughts(dialogue, texts) -> list[list[int]]:
    """`encode_thought` of many, by one call of the tokenizer.

    UserError when a thought has a control token, or begins with blanks that melt into the prompt before it.
    """
    if not texts:
        return []
    opening = [_turn("user", dialogue.judge_question)]
    before = _encode(dialogue, _texts(dialogue, [opening], prompt=True))[0]
    whole = _encode(dialogue, _texts(dialogue, [opening + _asked(dialogue, t) for t in texts], prompt=False))
    thoughts = []
    for text, ids in zip(texts, whole):
        if has_control_token(dialogue, text) or ids[: len(before)] != before:
            raise UserError(f"the thought {text[:40]!r} does not fit in: take out control tokens and outer blanks")
        thoughts.append(ids[len(before) : ids.index(dialogue.end_id, len(before)) + 1])
    return thoughts


def has_control_token(dialogue, text) -> bool:
    """Whether `text` would become one of the tokens that give a conversation its structure."""
    return dialogue.control.search(text) is not None


def fit_prefixes(dialogue, messages, responses, max_length) -> tuple[list[int], list[int], int] | None:
    """Prefix ids of (chosen, rejected) in at most `max_length` tokens, and how many turns that cost.

    Too long a conversation loses its oldest exchanges (a user and an assistant turn), the same for both
    sides; a system message, the last user turn and the response stay. None when even that is too long.
    """
    keep = 1 if messages[0]["role"] == "system" else 0
    for dropped in range(0, len(messages) - keep, 2):
        shorter = (*messages[:keep], *messages[keep + dropped :])
        chosen, rejected = prefix_ids_batch(dialogue, [(shorter, response) for response in responses])
        if max(len(chosen), len(rejected)) <= max_length:
            return chosen, rejected, dropped
    return None


def _turn(role, content):
    return {"role": role, "content": content}


def _opened(dialogue, messages):
    """The system message, where there is one or we have one to put first, and the turns behind it."""
    if messages[0]["role"] == "system":
        return messages[:1], messages[1:]
    return [] if dialogue.system is None else [_turn("system", dialogue.system)], messages


def _answered(dialogue, messages, response):
    """The conversation through the response."""
    system, said = _opened(dialogue, messages)
    return [*system, *said, _turn("assistant", response)]


def _judged(dialogue, messages, response):
    """The conversation through the first question."""
    if dialogue.turn is None:
        return [*_answered(dialogue, messages, response), _turn("user", dialogue.judge_question)]
    system, said = _opened(dialogue, messages)
    conversation = "\n\n".join(dialogue.turn.format(**turn) for turn in said)
    first, second = response
    question = dialogue.judge_question.format(conversation=conversation, first=first, second=second)
    return [*system, _turn("user", question)]


def _key(dialogue, name) -> str:
    """The config's name of one of the texts."""
    names = {}
    if dialogue.turn is not None:
        names = {"judge_question": "pair_question", "answer_question": "label_question", "answers": "labels"}
    elif dialogue.ordinal:
        names = {"answer_question": "score_question", "answers": "scores"}
    return f"dialogue.{names.get(name, name)}"


def _check_fields(name, text, known, needed) -> None:
    try:
        found = {field for _, field, _, _ in string.Formatter().parse(text) if field is not None}
    except ValueError as error:
        raise UserError(f"dialogue.{name}: {text!r} cannot be filled in ({error}); write {{{{ for a brace") from error
    wrong = needed - found or found - known
    if wrong:
        braced = ", ".join(f"{{{field}}}" for field in sorted(needed))
        raise UserError(f"dialogue.{name}: {text!r} must have {braced}; {min(wrong)!r} is missing or does not exist")


def _asked(dialogue, thought):
    """The thought and the second question."""
    return [_turn("assistant", thought), _turn("user", dialogue.answer_question)]


def _texts(dialogue, conversations, prompt) -> list[str]:
    """Rendered conversations; with `prompt`, up to the place where the assistant speaks next."""
    try:
        return dialogue.tokenizer.apply_chat_template(
            conversations,
            chat_template=dialogue.template,
            add_generation_prompt=prompt,
            tokenize=False,
            date_string=dialogue.date,
        )
    except Exception as error:  # a template is a program from elsewhere: it may raise anything
        raise UserError(f"the chat template refuses a conversation: {one_line(error)}") from error


def _encode(dialogue, texts) -> list[list[int]]:
    # verbose=False: lengths are judged by data.buckets, not by the tokenizer's model_max_length
    batch = dialogue.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
    begin = list(dialogue.begin_ids)
    return [begin + ids for ids in batch["input_ids"]] if begin else batch["input_ids"]


def _resolve(dialogue, messages, response, thought) -> dict:
    """The token fields of a Dialogue, read off one probe conversation."""
    judged = _judged(dialogue, messages, sides(dialogue, response, response)[0][0])
    asked = judged + _asked(dialogue, thought)
    before, through = _texts(dialogue, [judged, asked], prompt=True)
    answered = _texts(dialogue, [asked + [_turn("assistant", a)] for a in dialogue.answers], prompt=False)
    if not through.startswith(before) or not all(text.startswith(through) for text in answered):
        raise unusable(
            "the generation prompt is not how the assistant's next turn begins "
            "(templates that insert or strip <think> blocks do this)"
        )
    before_ids, ids = _encode(dialogue, [before, through])
    tail = through[len(before) :].partition(thought.strip())[2]
    end_id = (_encode(dialogue, [tail])[0] or [-1])[0]
    if end_id not in dialogue.tokenizer.added_tokens_decoder:
        raise unusable(f"no end token right after an assistant turn, but {tail[:20]!r}")
    if ids[: len(before_ids)] != before_ids:
        raise unusable("the tokens of the generation prompt change with the text that follows")
    question_ids = tuple(ids[ids.index(end_id, len(before_ids)) :])
    if question_ids[1] == end_id:
        raise unusable("two end tokens close an assistant turn")
    return {
        "begin_ids": begin_ids(dialogue.tokenizer, ids, end_id),
        "question_ids": question_ids,
        "end_id": end_id,
        "answer_ids": tuple(
            _answer_id(dialogue, answer, ids, full, end_id)
            for answer, full in zip(dialogue.answers, _encode(dialogue, answered))
        ),
    }


def _answer_id(dialogue, answer, asked_ids, full_ids, end_id) -> int:
    """The one token that is new in `full_ids` before the turn ends."""
    pairs = enumerate(zip(asked_ids, full_ids))
    start = next((i for i, (old, new) in pairs if old != new), len(asked_ids))
    new = full_ids[start:]
    new = new[: new.index(end_id)] if end_id in new else new
    if start != len(asked_ids) or len(new) != 1:
        tokens = dialogue.tokenizer.convert_ids_to_tokens(new)
        raise UserError(
            f"{_key(dialogue, 'answers')}: {answer!r} must be one token where the answer stands, but it is {tokens}; "
            "choose a shorter answer"
        )
    return new[0]
