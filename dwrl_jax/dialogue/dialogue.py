"""A dialogue in tokens: prefixes, thoughts and whole conversations, all from the tokenizer's own chat template.

`apply_chat_template(tokenize=False)` makes a text, and `tokenizer(text, add_special_tokens=False)` makes its ids. A
conversation is cut into three parts: a prefix, up to the place where the thought begins; the thought, with its end
token; and `question_ids`, from the same end token to the place where the answer begins. Joined with that end token
only once, the parts equal the template's rendering of the whole conversation, token for token.
"""

import bisect
import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

from dwrl_jax.core.errors import UserError
from dwrl_jax.dialogue.questions import Texts, after_prefix, before_thought, message
from dwrl_jax.dialogue.tokenizers import one_line


@dataclass(frozen=True)
class Dialogue:
    """The two questions and their tokens. `making.make_dialogue` makes a dialogue.

    `answer_ids` has the token of each of `texts.answers`, in the same order. `question_ids[0]` is `end_id`, the token
    that closes a thought. So after a thought with its end token append `question_ids[1:]`.
    """

    tokenizer: Any
    texts: Texts
    template: str
    begin_ids: tuple[int, ...] = ()  # the begin token, if the tokenizer adds it and the template does not
    question_ids: tuple[int, ...] = ()
    end_id: int = -1
    answer_ids: tuple[int, ...] = (-1, -1)
    pad_id: int = -1
    control: re.Pattern = re.compile("(?!)")
    words: frozenset[str] | None = None  # all words that a tokenizer of whole words knows

    @property
    def kind(self) -> str:
        return self.texts.kind


def prefix_ids(dialogue, messages, response) -> list[int]:
    """Ids of the conversation up to the place where the thought begins. For kind "bare" they end with the response."""
    return prefix_ids_batch(dialogue, [(messages, response)])[0]


def prefix_ids_batch(dialogue, rows) -> list[list[int]]:
    """`prefix_ids` of many (messages, response), in a single call of the tokenizer. UserError for an unknown word."""
    if not rows:
        return []
    for messages, response in rows:
        responses = (response,) if isinstance(response, str) else response
        for text in (*(turn["content"] for turn in messages), *responses):
            _check_words(dialogue, text)
    conversations = [before_thought(dialogue.texts, *row) for row in rows]
    return encode(dialogue, as_text(dialogue, conversations, prompt=dialogue.kind != "bare"))


def render(dialogue, messages, response, thought, answer) -> list[int]:
    """Ids of the whole conversation including the answer, from a single rendering by the template."""
    asked = before_thought(dialogue.texts, messages, response) + after_prefix(dialogue.texts, thought)
    return encode(dialogue, as_text(dialogue, [asked + [message("assistant", answer)]], prompt=False))[0]


def encode_thought(dialogue, text) -> list[int]:
    """Ids of a written thought in a conversation, including its end token."""
    return encode_thoughts(dialogue, [text])[0]


def encode_thoughts(dialogue, texts) -> list[list[int]]:
    """`encode_thought` of many texts, in a single call of the tokenizer.

    UserError if a thought has a control token or an unknown word, or if the tokenizer merges its leading blanks with
    the prompt before it.
    """
    if not texts:
        return []
    opening = [message("user", dialogue.texts.judge_question)]
    before = encode(dialogue, as_text(dialogue, [opening], prompt=True))[0]
    asked = [opening + after_prefix(dialogue.texts, text) for text in texts]
    thoughts = []
    for text, ids in zip(texts, encode(dialogue, as_text(dialogue, asked, prompt=False))):
        if has_control_token(dialogue, text) or ids[: len(before)] != before:
            raise UserError(f"the thought {text[:40]!r} does not fit in: take out control tokens and outer blanks")
        _check_words(dialogue, text)
        thoughts.append(ids[len(before) : ids.index(dialogue.end_id, len(before)) + 1])
    return thoughts


def fingerprint(dialogue) -> str:
    """A hash of the texts, the template and the tokenizer, which together determine the ids of a conversation."""
    backend = getattr(dialogue.tokenizer, "backend_tokenizer", None)
    tokenizer = dialogue.tokenizer.get_vocab() if backend is None else backend.to_str()
    parts = [dataclasses.asdict(dialogue.texts), dialogue.template, dialogue.begin_ids, tokenizer]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def has_control_token(dialogue, text) -> bool:
    """Whether `text` contains a control token, that is, a token that marks the structure of a conversation."""
    return dialogue.control.search(text) is not None


def unknown_word(dialogue, text) -> str | None:
    """The first word of `text` that a tokenizer of whole words does not know; None if there is none."""
    if dialogue.words is None:
        return None
    return next((word for word in text.split() if word not in dialogue.words), None)


def no_such_word(where, word) -> UserError:
    return UserError(
        f"{where}: the tokenizer has no word {word!r} and would read it as unknown; take another word, or another "
        "model.tokenizer"
    )


def fit_prefixes(dialogue, messages, responses, max_length) -> tuple | None:
    """Prefix ids of each of the responses with at most `max_length` tokens, and the number of dropped turns.

    A conversation that is too long loses its oldest exchanges, each a user turn and an assistant turn. All responses
    lose the same exchanges. A system message, the last user turn and the response stay. None if that is still too long.
    Fewer turns are fewer tokens, so a bisection finds the number of exchanges in few renderings.
    """
    keep = 1 if messages[0]["role"] == "system" else 0
    fitting = {}

    def fits(exchanges):
        shorter = (*messages[:keep], *messages[keep + 2 * exchanges :])
        ids = prefix_ids_batch(dialogue, [(shorter, response) for response in responses])
        fitting[exchanges] = ids
        return max(map(len, ids)) <= max_length

    most = (len(messages) - keep + 1) // 2
    dropped = bisect.bisect_left(range(most), True, key=fits)
    return None if dropped == most else (*fitting[dropped], 2 * dropped)


def as_text(dialogue, conversations, prompt) -> list[str]:
    """The texts of conversations. With `prompt`, each ends where the assistant's next turn begins."""
    try:
        return dialogue.tokenizer.apply_chat_template(
            conversations,
            chat_template=dialogue.template,
            add_generation_prompt=prompt,
            tokenize=False,
            date_string=dialogue.texts.date,
        )
    except Exception as error:  # a template is a program from somebody else and may raise anything
        raise UserError(f"the chat template refuses a conversation: {one_line(error)}") from error


def encode(dialogue, texts) -> list[list[int]]:
    """Ids of rendered conversations, after the begin token if only the tokenizer adds it."""
    # verbose=False: data.buckets limits the lengths, not the tokenizer's model_max_length
    batch = dialogue.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
    begin = list(dialogue.begin_ids)
    return [begin + ids for ids in batch["input_ids"]] if begin else batch["input_ids"]


def _check_words(dialogue, text) -> None:
    word = unknown_word(dialogue, text)
    if word is not None:
        raise no_such_word(f"the text {text[:40]!r}", word)
