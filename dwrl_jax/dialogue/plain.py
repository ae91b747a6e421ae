"""Text stays text: no text in a conversation becomes a control token, and the template leaves no text out.

A skeleton is the template's rendering of a conversation with a name in the place of each text. Blanks apart, the
rendering of the texts must be the skeleton with the texts in it, and its control tokens must be those of the skeleton.
So nothing depends on how a text could make a control token: alone, together with the text beside it, or in another
Unicode form that the tokenizer normalises.

Where a text fails, or has the name of a control token in it, `dialogue.control` decides. "skip" refuses the
conversation. "escape" puts the texts into the skeleton, so that the template does not see them, and gives the control
tokens of the skeleton other names, which a copy of the tokenizer knows in the place of the real ones.
"""

import json
import re
import secrets
from dataclasses import dataclass

from tokenizers import AddedToken, Tokenizer

from dwrl_jax.core.errors import UserError
from dwrl_jax.dialogue.rendering import as_text, encode, up_to_thought, whole

CONTROL = "control token in text"
CHANGED = "the chat template leaves out or changes a text"
NONCE = f"x{secrets.token_hex(8)}"  # no text can have it in it; it does not show in any ids
_NAMES = re.compile(rf"{NONCE}t(\d+)t")
_MOST = 256  # skeletons that are kept: one for each sequence of roles


@dataclass(frozen=True)
class Skeleton:
    """The literal parts of a rendering without their blanks, the indices of the texts between them, the control ids."""

    literals: tuple[str, ...]
    order: tuple[int, ...]
    control: list[int]

    def filled(self, texts: list[str]) -> str:
        """The rendering of these texts without blanks."""
        between = [*("".join(texts[index].split()) for index in self.order), ""]
        return "".join(part for both in zip(self.literals, between) for part in both)


@dataclass(frozen=True)
class PlainTokenizer:
    """A tokenizer that knows control tokens only by other names. `ids` has the real id of each added token."""

    core: Tokenizer
    names: dict[str, str]
    ids: dict[int, int]


def encoded(dialogue, rows) -> list[list[int]]:
    """Ids of rows, each (conversation,) or (conversation, thought, answer): up to the thought, or whole.

    UserError, CONTROL or CHANGED, for a row whose texts cannot stay as they are.
    """
    texts = _write(dialogue, rows)
    return [
        ids if _is_faithful(dialogue, row, text, ids) else _escaped(dialogue, row)
        for row, text, ids in zip(rows, texts, encode(dialogue, texts))
    ]


def _write(dialogue, rows) -> list[str]:
    if len(rows[0]) > 1:
        return whole(dialogue, rows)
    conversations = [row[0] for row in rows]
    return (
        as_text(dialogue, conversations, False) if dialogue.kind == "bare" else up_to_thought(dialogue, conversations)
    )


def _texts(row) -> list[str]:
    """The texts of a row that somebody else may have written. Its answer is ours."""
    return [*(turn["content"] for turn in row[0]), *row[1:2]]


def _is_faithful(dialogue, row, text, ids) -> bool:
    """Whether these texts and ids of a row are plain text in the skeleton. UserError if the row is to be left out."""
    texts = _texts(row)
    named = any(map(dialogue.control_pattern.search, texts))
    if not named:
        skeleton = _skeleton(dialogue, row)
        marks = dialogue.control_ids
        same = [token for token in ids if token in marks] == skeleton.control
        if same and "".join(text.split()) == skeleton.filled(texts):
            return True
    if dialogue.texts.control == "skip":
        raise UserError(CONTROL if named or not same else CHANGED)
    return False


def _skeleton(dialogue, row) -> Skeleton:
    """The skeleton of a row. It depends only on the roles, the answer, and which texts are empty."""
    key = (
        tuple((turn["role"], not turn["content"].strip()) for turn in row[0]),
        row[1:2] and not row[1].strip(),
        row[2:],
    )
    kept = dialogue.skeletons
    if key not in kept:
        if len(kept) >= _MOST:
            kept.clear()
        parts = _parts(dialogue, _with_names(row, blanks=False))
        harmless = dialogue.texts.answers[0]  # a word that every tokenizer knows
        shown = "".join(harmless if i % 2 else part for i, part in enumerate(parts))
        (ids,) = encode(dialogue, [shown])
        kept[key] = Skeleton(
            literals=tuple("".join(part.split()) for part in parts[::2]),
            order=tuple(map(int, parts[1::2])),
            control=[token for token in ids if token in dialogue.control_ids],
        )
    return kept[key]


def _with_names(row, blanks: bool) -> tuple:
    """The row with a name in the place of each text that is not empty, between its own outer blanks or without them."""
    names = []
    for index, text in enumerate(_texts(row)):
        core = text.strip()
        before, _, after = text.partition(core) if core and blanks else ("", "", "")
        names.append(f"{before}{NONCE}t{index}t{after}" if core else text)
    turns = [turn | {"content": name} for turn, name in zip(row[0], names)]
    return (turns, *names[len(turns) :], *row[2:])


def _parts(dialogue, named) -> list[str]:
    """The rendering of a row with names: a literal part, the index of a text, a literal part, and so on."""
    (text,) = _write(dialogue, [named])
    parts = _NAMES.split(text)
    if len(set(parts[1::2])) < sum(_NAMES.search(text) is not None for text in _texts(named)):
        raise UserError(CHANGED)
    return parts


def _escaped(dialogue, row) -> list[int]:
    """Ids of a row in which all texts are plain text. UserError where the tokenizer has no such ids."""
    plain, texts = dialogue.plain, _texts(row)
    parts = _parts(dialogue, _with_names(row, blanks=True))
    parts[1::2] = (texts[int(index)].strip() for index in parts[1::2])
    parts[::2] = (dialogue.control_pattern.sub(lambda found: plain.names[found[0]], part) for part in parts[::2])
    ids = plain.core.encode("".join(parts), add_special_tokens=False).ids
    ids = [*dialogue.begin_ids, *(plain.ids.get(token, token) for token in ids)]
    if [token for token in ids if token in dialogue.control_ids] != _skeleton(dialogue, row).control:
        raise UserError(CONTROL)  # a word of the vocabulary is a control token
    return ids


def plain_tokenizer(dialogue) -> PlainTokenizer:
    """The copy of a dialogue's tokenizer for `_escaped`. Its words and its other added tokens are the same."""
    state = json.loads(dialogue.tokenizer.backend_tokenizer.to_str())
    added = state["added_tokens"]
    state |= {"added_tokens": [], "truncation": None, "padding": None, "post_processor": None}
    core = Tokenizer.from_str(json.dumps(state))
    names = {content: f"{NONCE}c{i}c" for i, content in enumerate(dialogue.control)}
    for token in added:
        flags = {flag: token[flag] for flag in ("single_word", "lstrip", "rstrip", "normalized")}
        if token["content"] in names:  # a name is found everywhere, and before the text is normalised
            flags |= {"single_word": False, "normalized": False}
        core.add_tokens([AddedToken(names.get(token["content"], token["content"]), **flags)])
    ids = {core.token_to_id(names.get(token["content"], token["content"])): token["id"] for token in added}
    return PlainTokenizer(core, names, ids)
