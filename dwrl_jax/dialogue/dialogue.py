"""A dialogue in tokens: prefixes, thoughts and whole conversations, all from the tokenizer's own chat template.

`apply_chat_template(tokenize=False)` makes a text, and `tokenizer(text, add_special_tokens=False)` makes its ids. A
conversation is cut into three parts: a prefix, up to the place where the thought begins; the thought, with its end
token; and `question_ids`, from the same end token to the place where the answer begins. Joined with that end token
only once, the parts equal the template's rendering of the whole conversation, token for token. So `question_ids` have
all that the template inserts before the answer, such as an empty <think> block.
"""

import dataclasses
import functools
import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any

from dwrl_jax.core.errors import UserError
from dwrl_jax.dialogue.plain import PlainTokenizer, Skeleton, encoded, plain_tokenizer
from dwrl_jax.dialogue.questions import Texts, before_thought, message
from dwrl_jax.dialogue.rendering import encode, up_to_thought, whole
from dwrl_jax.dialogue.tokenizers import unknown_id

MOVED = "it moves a system message behind the thought"
_SHORT, _MOST = 64, 1 << 16  # characters of a thought whose ids are kept, and the number of those


@dataclass(frozen=True)
class Dialogue:
    """The two questions and their tokens. `making.make_dialogue` makes a dialogue.

    `answer_ids` has the token of each of `texts.answers`, in the same order. `question_ids[0]` is `end_id`, the token
    that closes a thought. So after a thought with its end token append `question_ids[1:]`. A thought may also stop by
    one of `stop_ids`, the other end tokens of the model. `form`, `cut`, `opening` and `closing` are those of
    `rendering`; `closing` is the text behind the answer.
    """

    tokenizer: Any
    texts: Texts
    template: str
    begin_ids: tuple[int, ...] = ()  # the begin token, if the tokenizer adds it and the template does not
    question_ids: tuple[int, ...] = ()
    end_id: int = -1
    stop_ids: tuple[int, ...] = ()
    answer_ids: tuple[int, ...] = (-1, -1)
    pad_id: int = -1
    control: dict[str, int] = field(default_factory=dict)  # the control tokens, the longest first, and their ids
    words: frozenset[str] | None = None  # all words that a tokenizer of whole words knows
    form: str = "turns"
    cut: str = ""
    opening: str = ""
    closing: str = ""
    moves_system: bool = False  # the template puts a system message into the last turn, behind the thought

    @property
    def kind(self) -> str:
        return self.texts.kind

    @functools.cached_property
    def control_pattern(self) -> re.Pattern:
        return re.compile("|".join(map(re.escape, self.control)) or "(?!)")

    @functools.cached_property
    def control_ids(self) -> frozenset[int]:
        """The ids of control tokens, without the id of what the tokenizer does not know: any text may have that."""
        return frozenset(self.control.values()) - {unknown_id(self.tokenizer)}

    @functools.cached_property
    def skeletons(self) -> dict[tuple, Skeleton]:
        return {}

    @functools.cached_property
    def thoughts(self) -> dict[str, list[int]]:
        """The ids of short thoughts that `encode_thoughts` has met."""
        return {}

    @functools.cached_property
    def plain(self) -> PlainTokenizer:
        return plain_tokenizer(self)


def prefix_ids(dialogue, messages, response) -> list[int]:
    """Ids of the conversation up to the place where the thought begins. For kind "bare" they end with the response."""
    return prefix_ids_batch(dialogue, [(messages, response)])[0]


def prefix_ids_batch(dialogue, rows) -> list[list[int]]:
    """`prefix_ids` of many (messages, response), in a single call of the tokenizer.

    UserError for an unknown word, and for a text that cannot stay text.
    """
    if not rows:
        return []
    for messages, response in rows:
        responses = (response,) if isinstance(response, str) else response
        for text in (*(turn["content"] for turn in messages), *responses):
            _check_words(dialogue, text)
    conversations = [before_thought(dialogue.texts, *row) for row in rows]
    if dialogue.moves_system and any(turns[0]["role"] == "system" for turns in conversations):
        raise UserError(f"the chat template refuses a conversation: {MOVED}")
    return encoded(dialogue, [(turns,) for turns in conversations])


def render(dialogue, messages, response, thought, answer) -> list[int]:
    """Ids of the whole conversation including the answer, from a single rendering by the template."""
    row = (before_thought(dialogue.texts, messages, response), thought, answer)
    if is_refused(dialogue, thought):  # a policy may write any token; the other texts are checked as a prefix
        return encode(dialogue, whole(dialogue, [row]))[0]
    return encoded(dialogue, [row])[0]


def encode_thought(dialogue, text) -> list[int]:
    """Ids of a written thought in a conversation, including its end token."""
    return encode_thoughts(dialogue, [text])[0]


def encode_thoughts(dialogue, texts) -> list[list[int]]:
    """`encode_thought` of many texts, in a single call of the tokenizer.

    Short ones are kept: the built-in world has the same thoughts again and again. UserError if a thought has a control
    token that is not to be escaped, or an unknown word, or if the tokenizer merges its leading blanks with the prompt
    before it.
    """
    kept = dialogue.thoughts
    found = {text: kept.get(text) for text in texts}
    new = [text for text, ids in found.items() if ids is None]
    found |= zip(new, _encode_new(dialogue, new))
    if len(kept) > _MOST:
        kept.clear()
    kept.update((text, found[text]) for text in new if len(text) <= _SHORT)
    return [list(found[text]) for text in texts]


def _encode_new(dialogue, texts) -> list[list[int]]:
    if not texts:
        return []
    for text in texts:
        if is_refused(dialogue, text):
            raise _no_fit(text)
    asked = [message("user", dialogue.texts.judge_question)]
    before = encode(dialogue, up_to_thought(dialogue, [asked]))[0]
    written = encoded(dialogue, [(asked, text, dialogue.texts.answers[0]) for text in texts])
    thoughts = []
    for text, ids in zip(texts, written):
        if ids[: len(before)] != before:
            raise _no_fit(text)
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
    return dialogue.control_pattern.search(text) is not None


def is_refused(dialogue, text) -> bool:
    """Whether a conversation with this text is left out because of a control token in it."""
    return dialogue.texts.control == "skip" and has_control_token(dialogue, text)


def _no_fit(text) -> UserError:
    return UserError(f"the thought {text[:40]!r} does not fit in: take out control tokens and outer blanks")


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
    """Prefix ids of each response, with at most `max_length` tokens, and behind them the number of dropped turns.

    A conversation that is too long loses its oldest exchanges, each a user turn and an assistant turn. All responses
    lose the same exchanges, as few as possible. A system message, the last user turn and the response stay. None if
    that is still too long.
    """
    keep = 1 if messages[0]["role"] == "system" else 0
    drops, best = range(0, len(messages) - keep, 2), None
    # From the shortest form on, doubled steps and then halved ones: a long conversation is not rendered again and again
    too_long, fitting, step = -1, len(drops), 1
    while fitting - too_long > 1:
        at = max(fitting - step, (too_long + fitting) // 2)
        shorter = (*messages[:keep], *messages[keep + drops[at] :])
        prefixes = prefix_ids_batch(dialogue, [(shorter, response) for response in responses])
        if max(map(len, prefixes)) <= max_length:
            best, fitting, step = (*prefixes, drops[at]), at, 2 * step
        else:
            too_long = at
    return best


def _check_words(dialogue, text) -> None:
    word = unknown_word(dialogue, text)
    if word is not None:
        raise no_such_word(f"the text {text[:40]!r}", word)
