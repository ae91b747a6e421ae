"""Make a dialogue from texts and a tokenizer: questions and answers as tokens, and checks of the chat template."""

import dataclasses
import json

from dwrl_jax.core.errors import UserError
from dwrl_jax.dialogue.dialogue import Dialogue, as_text, encode, has_control_token, no_such_word, unknown_word
from dwrl_jax.dialogue.questions import (
    Texts,
    after_prefix,
    before_thought,
    check_fields,
    key_of,
    message,
    sides,
    written,
)
from dwrl_jax.dialogue.tokenizers import begin_ids, control_pattern, one_line, unusable, whole_words, with_template

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


def make_dialogue(tokenizer, texts: Texts) -> Dialogue:
    """The dialogue of these texts in the tokens of a tokenizer.

    UserError in each of these cases: the text before a turn changes with the turn; a thought is not closed by exactly
    one end token; an answer is not a single token in its place; there are several begin tokens; a text with fields
    lacks a field or has an unknown field; a text has a control token, or a word that a tokenizer of whole words does
    not know.
    """
    check_fields(texts)
    dialogue = Dialogue(
        tokenizer=tokenizer,
        texts=texts,
        template=_template(tokenizer, texts.date),
        pad_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
    )
    # a bare dialogue asks nothing; its question and answer tokens are those of the kind "verdict"
    asked = dataclasses.replace(dialogue, texts=_asked(texts))
    resolved, again = (_resolve(asked, *probe) for probe in _PROBES)
    if resolved != again:
        raise unusable("the text after a thought depends on the text before it")
    control = control_pattern(tokenizer, resolved["question_ids"])
    dialogue = dataclasses.replace(dialogue, **resolved, control=control, words=whole_words(tokenizer))
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
    return dialogue


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
    """The token fields of a Dialogue, taken from a probe conversation."""
    texts = dialogue.texts
    judged = before_thought(texts, messages, sides(dialogue, response, response)[0][0])
    asked = judged + after_prefix(texts, thought)
    before, through = as_text(dialogue, [judged, asked], prompt=True)
    answered = as_text(dialogue, [asked + [message("assistant", a)] for a in texts.answers], prompt=False)
    if not through.startswith(before) or not all(text.startswith(through) for text in answered):
        raise unusable(
            "the generation prompt is not how the assistant's next turn begins "
            "(templates that insert or strip <think> blocks do this)"
        )
    before_ids, ids = encode(dialogue, [before, through])
    tail = through[len(before) :].partition(thought.strip())[2]
    end_id = (encode(dialogue, [tail])[0] or [-1])[0]
    if end_id not in dialogue.tokenizer.added_tokens_decoder:
        raise unusable(f"no end token right after an assistant turn, but {tail[:20]!r}")
    if ids[: len(before_ids)] != before_ids:
        raise unusable("the tokens of the generation prompt change with the text that follows")
    question_ids = tuple(ids[ids.index(end_id, len(before_ids)) :])
    if question_ids[1] == end_id:
        raise unusable("two end tokens close an assistant turn")
    return {
        "begin_ids": begin_ids(dialogue.tokenizer, ids, question_ids),
        "question_ids": question_ids,
        "end_id": end_id,
        "answer_ids": tuple(
            _answer_id(dialogue, answer, ids, full, end_id)
            for answer, full in zip(texts.answers, encode(dialogue, answered))
        ),
    }


def _answer_id(dialogue, answer, asked_ids, full_ids, end_id) -> int:
    """The single token in `full_ids` that follows `asked_ids` and comes before the end of the turn."""
    pairs = enumerate(zip(asked_ids, full_ids))
    start = next((i for i, (old, new) in pairs if old != new), len(asked_ids))
    new = full_ids[start:]
    new = new[: new.index(end_id)] if end_id in new else new
    if start != len(asked_ids) or len(new) != 1:
        tokens = dialogue.tokenizer.convert_ids_to_tokens(new)
        raise UserError(
            f"{key_of(dialogue.texts, 'answers')}: {answer!r} must be one token where the answer stands, but it is "
            f"{tokens}; choose a shorter answer"
        )
    return new[0]
