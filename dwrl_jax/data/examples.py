"""Tokenise pairs, on the host: an example has both prefixes, the target answers and the written thoughts."""

from dataclasses import dataclass, replace

import numpy as np

from dwrl_jax.core import hosts
from dwrl_jax.core.errors import UserError
from dwrl_jax.data.pairs import Pair, Skipped, skip
from dwrl_jax.dialogue import (
    encode_thoughts,
    fit_prefixes,
    has_control_token,
    no_such_word,
    prefix_ids_batch,
    sides,
    unknown_word,
)

_CHUNK = 512  # number of pairs that a single call renders and tokenises


@dataclass(frozen=True)
class Example:
    """A tokenised pair. Its sides are (chosen, rejected); for kind "label" this is the response that is shown first."""

    pair_id: int
    prefix: tuple[np.ndarray, np.ndarray]  # int32 ids up to the place where the thought begins
    answer: tuple[int, int]  # target tokens of the second turn
    thoughts: tuple[list[int], list[int]] | None = None  # written thoughts with their end token
    pair: Pair | None = None


@dataclass(frozen=True)
class Examples:
    """A finite source of examples. A source without an end has the same method `examples`, but no length."""

    rows: tuple[Example, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def examples(self, start, stop) -> list[Example]:
        return list(self.rows[start:stop])


@dataclass(frozen=True)
class FitReport:
    """The number of pairs that tokenising kept, shortened and left out."""

    kept: int
    shortened: int  # number of kept pairs that lost turns
    turns_dropped: int  # number of turns that these pairs lost together
    skipped: Skipped  # pairs with control tokens, and pairs that are too long even in the shortest form

    def summary(self) -> str:
        lost = f"{self.shortened} of them without their oldest turns, {self.turns_dropped} in all"
        return f"{self.kept} pairs kept ({lost}), {self.skipped.summary()}"


def tokenise(pairs, dialogue, max_length, *, strict=False, together=False) -> tuple[Examples, FitReport]:
    """Examples with prefixes of at most `max_length` tokens, and a report. `pair_id` is the index in `pairs`.

    The targets are the pair's verdicts, or else the right answers of the dialogue's `sides`. A pair that does not fit
    is left out; with `strict` it is a UserError. It is always a UserError if no pair is left or if the tokenizer does
    not know a word. With `together` all processes must call this with the same pairs. Each process then tokenises a
    share, and all processes get all examples.
    """
    chunks = [range(start, min(start + _CHUNK, len(pairs))) for start in range(0, len(pairs), _CHUNK)]

    def encode(chunks):
        return [_encode(pairs, ids, dialogue, max_length, strict) for ids in chunks]

    encoded = hosts.share(encode, chunks) if together else encode(chunks)
    rows = tuple(replace(row, pair=pairs[row.pair_id]) for chunk, _, _ in encoded for row in chunk)
    drops = [count for _, chunk, _ in encoded for count in chunk]
    skipped = Skipped([row for _, _, chunk in encoded for row in chunk.rows])
    if not rows:
        raise UserError(f"no pair is left, {skipped.summary()}; perhaps raise data.buckets ({max_length} tokens)")
    return Examples(rows), FitReport(len(rows), sum(d > 0 for d in drops), sum(drops), skipped)


def _encode(pairs, ids, dialogue, max_length, strict) -> tuple[list[Example], list[int], Skipped]:
    """The examples of the pairs with these ids, without texts; the number of turns that each lost; the skipped rows."""
    rows, drops, skipped, clean = [], [], Skipped(), []
    for pair_id in ids:
        if any(has_control_token(dialogue, text) for text in _contents(pairs[pair_id])):
            skip(skipped, pairs[pair_id].where, "control token in text", strict)
        else:
            _check_words(pairs[pair_id], dialogue)
            clean.append((pair_id, pairs[pair_id]))
    judged = [sides(dialogue, p.chosen, p.rejected) for _, p in clean]
    flat = prefix_ids_batch(dialogue, [(p.prompt, y) for (_, p), (both, _) in zip(clean, judged) for y in both])
    written = iter(encode_thoughts(dialogue, [t for _, p in clean for t in p.thoughts or ()]))
    for (pair_id, pair), (both, right), *prefixes in zip(clean, judged, flat[::2], flat[1::2]):
        thoughts = (next(written), next(written)) if pair.thoughts else None
        fitted = (*prefixes, 0)
        if max(map(len, prefixes)) > max_length:
            fitted = fit_prefixes(dialogue, pair.prompt, both, max_length)
        if fitted is None:
            skip(skipped, pair.where, "too long", strict)
            continue
        prefix = tuple(np.asarray(ids, np.int32) for ids in fitted[:2])
        answer = tuple(dialogue.answer_ids[verdict] for verdict in pair.verdicts or right)
        rows.append(Example(pair_id, prefix, answer, thoughts))
        drops.append(fitted[2])
    return rows, drops, skipped


def _check_words(pair, dialogue) -> None:
    for text in _contents(pair):
        word = unknown_word(dialogue, text)
        if word is not None:
            raise no_such_word(pair.where or "a pair", word)


def _contents(pair) -> list[str]:
    return [*(turn["content"] for turn in pair.prompt), pair.chosen, pair.rejected, *(pair.thoughts or ())]
