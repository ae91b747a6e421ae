"""Tokenise pairs, on the host: an example has both prefixes, the target answers and the written thoughts."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from dwrl_jax.core import hosts
from dwrl_jax.core.errors import UserError
from dwrl_jax.data.pairs import Pair, Skipped, skip
from dwrl_jax.dialogue import (
    CONTROL,
    encode_thoughts,
    fit_prefixes,
    is_refused,
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
    skipped: Skipped  # pairs with control tokens, that the template refuses, or too long even in the shortest form
    lengths: list[int] = field(default_factory=list, repr=False)  # tokens of each pair's longer side, with all turns

    def summary(self) -> str:
        lost = f"{self.shortened} of them without their oldest turns, {self.turns_dropped} in all"
        return f"{self.kept} pairs kept ({lost}), {self.skipped.summary()}"


def tokenise(
    pairs, dialogue, max_length, *, strict=False, together=False, watch=lambda chunks: chunks
) -> tuple[Examples, FitReport]:
    """Examples with prefixes of at most `max_length` tokens, and a report. `pair_id` is the index in `pairs`.

    The targets are the pair's verdicts, or else the right answers of the dialogue's `sides`. A pair that does not fit,
    or that the chat template refuses, is left out; with `strict` it is a UserError. It is always a UserError if no pair
    is left or if the tokenizer does not know a word. With `together` all processes must call this with the same pairs.
    Each process then tokenises a share, and all processes get all examples. `watch` is put around the parts of a
    process, to show progress.
    """
    chunks = [range(start, min(start + _CHUNK, len(pairs))) for start in range(0, len(pairs), _CHUNK)]

    def encode(chunks):
        return [_encode(pairs, ids, dialogue, max_length, strict) for ids in watch(chunks)]

    encoded = hosts.share(encode, chunks) if together else encode(chunks)
    kept = (row for chunk, *_ in encoded for row in chunk)
    rows = tuple(Example(row.pair_id, row.prefix, row.answer, row.thoughts, pairs[row.pair_id]) for row in kept)
    drops = [count for _, chunk, *_ in encoded for count in chunk]
    skipped = Skipped([row for _, _, chunk, _ in encoded for row in chunk.rows])
    if not rows:
        raise UserError(f"no pair is left, {skipped.summary()}; perhaps raise data.buckets ({max_length} tokens)")
    lengths = [length for *_, chunk in encoded for length in chunk]
    return Examples(rows), FitReport(len(rows), sum(d > 0 for d in drops), sum(drops), skipped, lengths)


def _encode(pairs, ids, dialogue, max_length, strict) -> tuple[list[Example], list[int], Skipped, list[int]]:
    """The examples of the pairs with these ids, without texts, and the number of turns that each lost.

    Also the skipped rows, and the number of tokens of the longer side of each pair that could be rendered.
    """
    rows, drops, skipped, lengths, clean = [], [], Skipped(), [], []
    for pair_id in ids:
        if any(is_refused(dialogue, text) for text in _contents(pairs[pair_id])):
            skip(skipped, pairs[pair_id].where, CONTROL, strict)
        else:
            _check_words(pairs[pair_id], dialogue)
            clean.append((pair_id, pairs[pair_id]))
    rendered = _each(lambda rows: _prefixes(dialogue, [pair for _, pair in rows]), clean)
    written = _each(lambda rows: _thoughts(dialogue, [pair for _, pair in rows]), clean)
    for (pair_id, pair), prefixes, thoughts in zip(clean, rendered, written):
        fitted = prefixes if isinstance(prefixes, UserError) else (*prefixes, 0)
        if not isinstance(prefixes, UserError):
            lengths.append(max(map(len, prefixes)))
            if lengths[-1] > max_length:
                fitted = _shortened(dialogue, pair, max_length)
        refused = next((each for each in (fitted, thoughts) if isinstance(each, UserError)), None)
        if refused is not None:
            skip(skipped, pair.where, str(refused), strict)
            continue
        prefix = tuple(np.asarray(ids, np.int32) for ids in fitted[:2])
        right = sides(dialogue, pair.chosen, pair.rejected)[1]
        answer = tuple(dialogue.answer_ids[verdict] for verdict in pair.verdicts or right)
        rows.append(Example(pair_id, prefix, answer, thoughts))
        drops.append(fitted[2])
    return rows, drops, skipped, lengths


def _each(work: Callable[[list], list], rows: list) -> list:
    """`work(rows)`, a result for each row, in few calls. A row that `work` refuses has the UserError as its result."""
    if not rows:
        return []
    try:
        return work(rows)
    except UserError as error:
        half = len(rows) // 2
        return _each(work, rows[:half]) + _each(work, rows[half:]) if half else [error]


def _prefixes(dialogue, pairs) -> list[tuple]:
    """The ids of both sides of each pair."""
    flat = [(pair.prompt, y) for pair in pairs for y in sides(dialogue, pair.chosen, pair.rejected)[0]]
    ids = prefix_ids_batch(dialogue, flat)
    return list(zip(ids[::2], ids[1::2]))


def _thoughts(dialogue, pairs) -> list[tuple | None]:
    """The ids of the written thoughts of each pair, if it has some."""
    written = iter(encode_thoughts(dialogue, [text for pair in pairs for text in pair.thoughts or ()]))
    return [(next(written), next(written)) if pair.thoughts else None for pair in pairs]


def _shortened(dialogue, pair, max_length):
    """The ids of both sides without the oldest turns, and their number; a UserError if the pair is still too long."""
    both, _ = sides(dialogue, pair.chosen, pair.rejected)
    try:
        return fit_prefixes(dialogue, pair.prompt, both, max_length) or UserError("too long")
    except UserError as error:
        return error


def _check_words(pair, dialogue) -> None:
    for text in _contents(pair):
        word = unknown_word(dialogue, text)
        if word is not None:
            raise no_such_word(pair.where or "a pair", word)


def _contents(pair) -> list[str]:
    return [*(turn["content"] for turn in pair.prompt), pair.chosen, pair.rejected, *(pair.thoughts or ())]
