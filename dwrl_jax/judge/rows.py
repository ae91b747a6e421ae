"""Rows to score, and their questions: a question for each response, or for each ordered pair of responses."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from dwrl_jax.data import formats
from dwrl_jax.data.formats import Malformed
from dwrl_jax.data.formats.parts.conversation import check_roles, opened
from dwrl_jax.data.formats.parts.messages import messages
from dwrl_jax.data.formats.parts.prompt import prompt_of
from dwrl_jax.dialogue import CONTROL, Dialogue, fit_prefixes, is_refused, prefix_ids_batch, unknown_word
from dwrl_jax.judge.card import JudgeCard

COMPARING = ("label", "embedding")  # these judges compare a response with the other responses of its row


@dataclass(frozen=True)
class Row:
    """A conversation and the responses to it. `single` is True if the row had a single response and no list."""

    prompt: tuple[dict[str, str], ...]
    responses: tuple[str, ...]
    single: bool


@dataclass(frozen=True)
class Question:
    """A question about a row, as prefix tokens. `responses` are the indices of its response or of its two responses."""

    responses: tuple[int, ...]
    prefix: Int[np.ndarray, " L"]


def read_row(row: dict | str | None, kind: str) -> Row:
    """The row's `prompt` (a string or messages) and its `response` or `responses`. A preference pair has two responses.

    Raises Malformed if a judge of this kind cannot score the row.
    """
    if not isinstance(row, dict):
        raise Malformed(row or "not json")
    single = row.get("response") is not None and row.get("responses") is None
    if not single and row.get("responses") is None:
        pairs = formats.pairs_of(row)
        if len(pairs) != 1 or isinstance(pairs[0], Malformed):
            raise Malformed(f"{len(pairs)} pairs in one row")
        return Row(pairs[0].prompt, (pairs[0].chosen, pairs[0].rejected), False)
    prompt = prompt_of(row)
    if prompt is None:
        raise Malformed("missing column: prompt")
    prompt = opened(row, messages(prompt, "user"))
    given = [row["response"]] if single else row["responses"]
    if not isinstance(given, list) or not given:
        raise Malformed("responses: not a list, or an empty one")
    responses = tuple(_response(value) for value in given)
    check_roles([*prompt, {"role": "assistant", "content": responses[0]}])
    if kind in COMPARING and len(responses) < 2:
        raise Malformed("one response, but this judge compares responses")
    return Row(tuple(prompt), responses, single)


def _response(value) -> str:
    turns = messages(value, "assistant")
    if len(turns) != 1 or turns[0]["role"] != "assistant":
        raise Malformed("response: not a string or one assistant message")
    if not turns[0]["content"].strip():
        raise Malformed("empty response")
    return turns[0]["content"]


def questions_of(row: Row, kind: str, dialogue: Dialogue, limit: int) -> tuple[list[Question], int]:
    """The questions about a row, and the number of turns that were dropped so that each fits in `limit` tokens.

    A pairwise judge is asked about every ordered pair of responses. Too long a conversation loses its oldest exchanges,
    the same for all responses, as in training; a system message, the last user turn and the response stay. Raises
    Malformed.
    """
    texts = [*(turn["content"] for turn in row.prompt), *row.responses]
    if any(is_refused(dialogue, text) for text in texts):
        raise Malformed(CONTROL)
    unknown = next((word for word in (unknown_word(dialogue, text) for text in texts) if word is not None), None)
    if unknown is not None:
        raise Malformed(f"unknown word: {unknown}")
    count = range(len(row.responses))
    if kind == "label":
        about = [(i, j) for i in count for j in count if i != j]
        judged = [(row.responses[i], row.responses[j]) for i, j in about]
    else:
        about, judged = [(i,) for i in count], list(row.responses)
    ids, dropped = prefix_ids_batch(dialogue, [(row.prompt, responses) for responses in judged]), 0
    if max(map(len, ids)) > limit:
        fitted = fit_prefixes(dialogue, row.prompt, judged, limit)
        if fitted is None:
            raise Malformed(f"too long: {_shortest(dialogue, row, judged)} tokens, at most {limit}")
        *ids, dropped = fitted
    return [Question(which, np.asarray(prefix, np.int32)) for which, prefix in zip(about, ids)], dropped


def _shortest(dialogue: Dialogue, row: Row, judged) -> int:
    """The number of tokens of a row's longest question when it has only the system message and the last turn."""
    prompt = [turn for turn in row.prompt[:-1] if turn["role"] == "system"] + [row.prompt[-1]]
    return max(map(len, prefix_ids_batch(dialogue, [(prompt, responses) for responses in judged])))


def bucket_of(length: int, card: JudgeCard, limit: int) -> int:
    """The padded length of a prefix of at most `limit` tokens. It depends only on the row.

    It is the card's smallest bucket that holds the prefix. If none does, the largest bucket is doubled as often as
    needed, up to `limit`.
    """
    size = next((bucket for bucket in card.buckets if bucket >= length), card.buckets[-1])
    while size < length:
        size *= 2
    return min(size, limit)
