"""Make a dialogue from texts and a tokenizer: questions and answers as tokens, and checks of the chat template.

The template itself says where a thought and an answer stand: a conversation is rendered with two different thoughts and
two different answers, and the texts differ from there on.
"""

import dataclasses
import inspect
import json
import os
import re

from dwrl_jax.core.errors import UserError
from dwrl_jax.dialogue.dialogue import MOVED, Dialogue, has_control_token, no_such_word, unknown_word
from dwrl_jax.dialogue.questions import Texts, before_thought, check_fields, key_of, message, sides, written
from dwrl_jax.dialogue.rendering import FORMS, OPEN, as_text, encode, up_to_thought, whole
from dwrl_jax.dialogue.tokenizers import begin_ids, control_tokens, one_line, unusable, whole_words, with_template

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
_THOUGHTS, _ANSWERS = ("yes, it is", "no, it is not"), ("true", "false")  # each two differ from the first letter on


def make_dialogue(tokenizer, texts: Texts, ends: tuple[int, ...] = ()) -> Dialogue:
    """The dialogue of these texts in the tokens of a tokenizer. `ends` are the model's own end tokens.

    UserError in each of these cases: the text before a turn changes with the turn; a thought is not closed by exactly
    one end token; an answer is not a single token in its place; there are several begin tokens; a text with fields
    lacks a field or has an unknown field; a text has a control token, or a word that a tokenizer of whole words does
    not know; the template has no place for the layout or does not know an argument.
    """
    check_fields(texts)
    if texts.control == "escape" and getattr(tokenizer, "backend_tokenizer", None) is None:
        raise UserError("dialogue.control='escape': it needs a tokenizer with a tokenizer.json; take 'skip'")
    dialogue = Dialogue(
        tokenizer=tokenizer,
        texts=texts,
        template=_template(tokenizer, texts.date),
        pad_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
    )
    _check_arguments(dialogue)
    _check_system(dialogue)
    # a bare dialogue asks nothing; its question and answer tokens are those of the kind "verdict"
    asked = dataclasses.replace(dialogue, texts=_asked(texts))
    resolved, again = (_resolve(asked, *probe) for probe in _PROBES)
    if resolved != again:
        raise unusable("the text after a thought depends on the text before it")
    marks = resolved.pop("marks")
    turn_end = resolved.pop("turn_end")
    known = len(tokenizer)
    stops = {tokenizer.eos_token_id, turn_end, *(i for i in ends if i < known)} - {resolved["end_id"], None}
    dialogue = dataclasses.replace(
        dialogue,
        **resolved,
        stop_ids=tuple(sorted(stops)),
        control=control_tokens(tokenizer, marks, dialogue.template),
        words=whole_words(tokenizer),
        moves_system=texts.kind != "bare" and _moves_system(asked, resolved),
    )
    if dialogue.moves_system and texts.system is not None:
        raise UserError(f"dialogue.system: {MOVED}; leave it empty, and put its words into the question")
    _check_texts(dialogue)
    return dialogue


def _check_texts(dialogue) -> None:
    """UserError if answers are the same token, or if a text has a control token or an unknown word."""
    texts = dialogue.texts
    if len(set(dialogue.answer_ids)) < len(texts.answers):
        key = key_of(texts, "answers")
        raise UserError(f"{key}: {texts.answers} are the same token; choose answers that differ")
    words = written(texts)
    for name, text in words.items():
        if has_control_token(dialogue, text):
            raise UserError(f"{key_of(texts, name)} contains a control token of the tokenizer: remove it")
    for name, text in (words | {"answers": " ".join(texts.answers)}).items():
        word = unknown_word(dialogue, text)
        if word is not None:
            raise no_such_word(key_of(texts, name), word)


def _check_arguments(dialogue) -> None:
    """UserError for a template argument that the template does not read, or that has a meaning of its own."""
    taken = {*inspect.signature(dialogue.tokenizer.apply_chat_template).parameters, "messages", "date_string"}
    for name in dialogue.texts.template_arguments:
        if name in taken:
            raise UserError(f"dialogue.template_arguments: {name!r} is not for you to set; remove it")
        if not re.search(rf"\b{re.escape(name)}\b", dialogue.template):
            raise UserError(f"dialogue.template_arguments: the chat template does not know {name!r}; remove it")


def _check_system(dialogue) -> None:
    """UserError if the template refuses the system message of the texts, but not a conversation without one."""
    if dialogue.texts.system is None:
        return
    turns = [message("user", "Say hello.")]
    as_text(dialogue, [turns], prompt=True)
    try:
        as_text(dialogue, [[message("system", dialogue.texts.system), *turns]], prompt=True)
    except UserError as error:
        raise UserError(
            f"dialogue.system: {error}; leave it empty, and put its words into the question if they are needed"
        ) from error


def _moves_system(dialogue, resolved) -> bool:
    """Whether the text around a thought is another one in a conversation with a system message: Mistral-Nemo's."""
    (turns, response, thought), system = _PROBES[0], message("system", "Be fair.")
    dialogue = dataclasses.replace(dialogue, texts=dataclasses.replace(dialogue.texts, system=None))
    try:
        as_text(dialogue, [[system, *turns]], prompt=True)
    except UserError:
        return False  # it refuses such a conversation by itself
    try:
        return not resolved.items() <= _resolve(dialogue, (system, *turns), response, thought).items()
    except UserError:
        return True


def _asked(texts) -> Texts:
    return dataclasses.replace(texts, kind="verdict") if texts.kind == "bare" else texts


def _template(tokenizer, date) -> str:
    """The tokenizer's chat template, with `date` in the place of today's date."""
    try:
        template = with_template(tokenizer).get_chat_template()
    except ValueError as error:
        raise unusable(one_line(error)) from error
    if "strftime_now" in template:
        # apply_chat_template turns a function argument into a string, so a macro in the template sets the date
        frozen = f"{{% macro strftime_now(format) %}}{{{{ {json.dumps(date)} }}}}{{% endmacro %}}\n"
        template = frozen + template
    return template


def _resolve(dialogue, messages, response, thought) -> dict:
    """The token fields of a Dialogue, taken from a probe conversation; `marks` and `turn_end`, its control tokens."""
    texts = dialogue.texts
    judged = before_thought(texts, messages, sides(dialogue, response, response)[0][0])
    found = _places(dialogue, judged)
    question = found.pop("question")
    dialogue = dataclasses.replace(dialogue, **found)
    (before,) = up_to_thought(dialogue, [judged])
    answered = whole(dialogue, [(judged, thought, answer) for answer in texts.answers])
    through = answered[0].removesuffix(texts.answers[0] + dialogue.closing)
    same = all(text == through + answer + dialogue.closing for text, answer in zip(answered, texts.answers))
    through = through if through.endswith(question) else through.rstrip(" ")
    if not (same and through.startswith(before) and through.endswith(question)):
        raise unusable("the text around a thought and an answer changes with them")
    before_ids, ids, *full = encode(dialogue, [before, through, *answered])
    end_id, turn_end = _first_mark(dialogue, question), _first_mark(dialogue, dialogue.closing)
    if ids[: len(before_ids)] != before_ids:
        raise unusable("the tokens of the generation prompt change with the text that follows")
    question_ids = tuple(ids[ids.index(end_id, len(before_ids)) :])
    if question_ids[1:2] == (end_id,):
        raise unusable("two end tokens close an assistant turn")
    asked = before.rpartition(judged[-1]["content"].strip())[2]
    return found | {
        "begin_ids": begin_ids(dialogue.tokenizer, ids, question_ids),
        "question_ids": question_ids,
        "end_id": end_id,
        "answer_ids": tuple(
            _answer_id(dialogue, answer, ids, full_ids, turn_end) for answer, full_ids in zip(texts.answers, full)
        ),
        "marks": (*question_ids, *encode(dialogue, [asked])[0]),
        "turn_end": turn_end,
    }


def _places(dialogue, judged) -> dict:
    """The first form of the layout that the template can write, the texts around a thought, and the question behind it.

    UserError if there is no such form.
    """
    for form in FORMS[dialogue.texts.layout]:
        tried = dataclasses.replace(
            dialogue, form=form, **(_behind_prompt(dialogue, judged) if form == "prompt" else {})
        )
        found = _around(tried, judged)
        if found is not None and _first_mark(dialogue, found["question"]) is not None:
            return {"form": form} | found
    if dialogue.texts.layout == "one_turn":
        raise UserError(
            "dialogue.layout='one_turn': the chat template has no place for a thought, and the tokenizer has no token "
            "</think>; take 'two_turns'"
        )
    if found is None:
        raise unusable("it does not show all turns of the assistant as they are")
    raise unusable(f"no end token right after an assistant turn, but {found['question'][:20]!r}")


def _behind_prompt(dialogue, judged) -> dict[str, str]:
    """The texts around a thought that stands behind the generation prompt: the prompt's own <think>, or one more."""
    (prompt,) = as_text(dialogue, [judged], prompt=True)
    (turn,) = as_text(dialogue, [[*judged, message("assistant", _ANSWERS[0])]], prompt=False)
    closed = re.search(r"(<think>\s*)?</think>\s*$", prompt)  # where the model is not to think, DeepSeek-V3.1
    return {
        "cut": closed[0] if closed else "",
        "opening": "" if prompt.rstrip().endswith(OPEN.rstrip()) else OPEN,
        "closing": turn.rpartition(_ANSWERS[0])[2],
    }


def _around(dialogue, judged) -> dict[str, str] | None:
    """`cut`, `opening`, `closing` and the question between thought and answer; None if the template drops a thought."""
    (thought, other), (answer, another) = _THOUGHTS, _ANSWERS
    first, second, third = whole(
        dialogue, [(judged, thought, answer), (judged, other, answer), (judged, thought, another)]
    )
    before, through = (os.path.commonprefix(pair) for pair in ((first, second), (first, third)))
    closing = first[len(through) + len(answer) :]
    question = through[len(before) + len(thought) :]
    if second != before + other + question + answer + closing or third != through + another + closing:
        return None
    if dialogue.form == "prompt":
        return {"cut": dialogue.cut, "opening": dialogue.opening, "closing": closing, "question": question}
    if dialogue.form == "content" and before.removesuffix(OPEN).rstrip().endswith(OPEN.rstrip()):
        return None  # the template opens the block itself, Nemotron-Nano-v2
    (prompt,) = as_text(dialogue, [judged], prompt=True)
    shared = len(os.path.commonprefix((prompt, before)))
    opening = before[shared:]
    if not prompt.endswith(" "):  # tokenizers merge a blank before a word with the word
        opening, question = opening.rstrip(" "), question.rstrip(" ")
    return {"cut": prompt[shared:], "opening": opening, "closing": closing, "question": question}


def _first_mark(dialogue, text) -> int | None:
    """The token with which a text begins after blanks, if it is an added token."""
    tokenizer = dialogue.tokenizer
    ids = (
        i for i in encode(dialogue, [text])[0] if i in tokenizer.added_tokens_decoder or tokenizer.decode([i]).strip()
    )
    first = next(ids, None)
    return first if first in tokenizer.added_tokens_decoder else None


def _answer_id(dialogue, answer, asked_ids, full_ids, turn_end) -> int:
    """The single token in `full_ids` that follows `asked_ids` and comes before the end of the turn."""
    pairs = enumerate(zip(asked_ids, full_ids))
    start = next((i for i, (old, new) in pairs if old != new), len(asked_ids))
    new = full_ids[start:]
    new = new[: new.index(turn_end)] if turn_end in new else new
    if start != len(asked_ids) or len(new) != 1:
        tokens = dialogue.tokenizer.convert_ids_to_tokens(new)
        raise UserError(
            f"{key_of(dialogue.texts, 'answers')}: {answer!r} must be one token where the answer stands, but it is "
            f"{tokens}; choose a shorter answer"
        )
    return new[0]
