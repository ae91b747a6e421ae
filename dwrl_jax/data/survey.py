"""A look at a file of pairs before training: what would be read, what would be lost, and how long it is."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from dwrl_jax.core.errors import UserError
from dwrl_jax.data.containers import open_table
from dwrl_jax.data.examples import Example, Examples, FitReport, tokenise
from dwrl_jax.data.pairs import TIE, Pair, Reading, Repeats, Skipped, drawn, look_for_pairs, repeats
from dwrl_jax.dialogue import Dialogue

SHOWN_ROWS = 2  # number of examples of each reason
SHOWN_DIALOGUES = (0.1, 0.5, 0.9)  # quantiles of the length
THOUGHT = "(the thought)"

Piece = tuple[str, bool]  # a text, and whether it is a control token


@dataclass(frozen=True)
class Loss:
    """Rows that are left out for the same reason."""

    reason: str
    count: int
    examples: list[tuple[str, str]]  # (where, the row or its texts)


@dataclass(frozen=True)
class Shown:
    """A dialogue as the model reads it, with the chosen response, and the rejected response."""

    where: str
    tokens: int
    pieces: list[Piece]
    rejected: str


@dataclass(frozen=True)
class Survey:
    """What a run would meet in a file. Shares are from 0 to 1."""

    name: str
    split: str
    buckets: tuple[int, ...]
    reading: Reading
    pairs: int
    repeats: Repeats
    sources: Counter
    margins: int  # number of pairs that say how much better the chosen response is
    longer_chosen: (
        float | None
    )  # share of the pairs with unequal lengths in which the chosen response has more characters
    losses: list[Loss]  # while reading
    sample: int = 0  # number of pairs that were tokenised, drawn at random
    fit: FitReport | None = None  # about the sample
    misfits: list[Loss] = field(default_factory=list)  # of the sample, while tokenising
    shown: list[Shown] = field(default_factory=list)
    failure: str = ""  # why no pair could be tokenised

    @property
    def ties(self) -> int:
        return sum(count for reason, count in self.reading.counts.items() if reason.startswith(TIE))

    @property
    def lost(self) -> float:
        """The share of the rows that a run leaves out."""
        read = len(self.reading.rows) / max(len(self.reading.rows) + self.pairs, 1)
        unfit = len(self.fit.skipped.rows) / self.sample if self.fit else float(bool(self.failure))
        return 1 - (1 - read) * (1 - unfit)

    def in_buckets(self) -> list[tuple[int, float]]:
        """(bucket, share of the sample whose longer side fits in it and in no smaller one), with all turns."""
        lengths, last = np.array(self.fit.lengths), 0
        shares = []
        for bucket in self.buckets:
            shares.append((bucket, float(np.mean((lengths > last) & (lengths <= bucket)))))
            last = bucket
        return shares


def survey(
    name: str,
    dialogue: Dialogue,
    buckets: tuple[int, ...],
    *,
    split: str = "train",
    format: str = "",
    rows: int = 0,
    sample: int = 0,
    watch: Callable = lambda items, what: items,
) -> Survey:
    """Read a file, at most `rows` of its rows, and tokenise at most `sample` of its pairs; 0 for all.

    Both are drawn at random. `watch(items, what)` is put around what takes time, to show progress. UserError if the
    file cannot be read, or can have several formats.
    """
    pairs, reading = look_for_pairs(
        name, split=split, format=format, count=rows, watch=lambda items: watch(items, "rows")
    )
    chosen_longer = [len(p.chosen) > len(p.rejected) for p in pairs if len(p.chosen) != len(p.rejected)]
    read = Survey(
        name=name,
        split=split,
        buckets=buckets,
        reading=reading,
        pairs=len(pairs),
        repeats=repeats(pairs),
        sources=Counter(pair.source for pair in pairs),
        margins=sum(pair.margin is not None for pair in pairs),
        longer_chosen=float(np.mean(chosen_longer)) if chosen_longer else None,
        losses=_losses(reading, _rows_at(name, split, reading)),
    )
    if not pairs:
        return read
    part = [pairs[i] for i in drawn(len(pairs), sample, 0)] if sample else pairs
    try:
        examples, fit = tokenise(part, dialogue, buckets[-1], watch=lambda items: watch(items, "tokens"))
    except UserError as error:
        return _with(read, sample=len(part), failure=str(error))
    texts = {pair.where: f"{pair.prompt[-1]['content']} | {pair.chosen} | {pair.rejected}" for pair in part}
    return _with(read, sample=len(part), fit=fit, misfits=_losses(fit.skipped, texts), shown=_shown(dialogue, examples))


def _with(read: Survey, **fields) -> Survey:
    return Survey(**vars(read) | fields)


def _wanted(skipped: Skipped) -> dict[str, list[str]]:
    """{reason: the places of its first rows}."""
    wanted: dict[str, list[str]] = {}
    for where, reason in skipped.rows:
        places = wanted.setdefault(reason, [])
        if len(places) < SHOWN_ROWS and where not in places:
            places.append(where)
    return wanted


def _losses(skipped: Skipped, texts: dict[str, str]) -> list[Loss]:
    wanted = _wanted(skipped)
    return [
        Loss(reason, count, [(where, texts.get(where, "")) for where in wanted[reason]])
        for reason, count in skipped.counts.most_common()
    ]


def _rows_at(name: str, split: str, reading: Reading) -> dict[str, str]:
    """{place: text of the row} of the first rows of each reason. The file is read again, up to the last of them."""
    places = {where for each in _wanted(reading).values() for where in each}
    texts: dict[str, str] = {}
    rows: Iterator = open_table(name, split).rows() if places else iter(())
    for where, row in rows:
        if where in places:
            texts[where] = str(row)
            if len(texts) == len(places):
                break
    return texts


def _shown(dialogue: Dialogue, examples: Examples) -> list[Shown]:
    """Dialogues of different lengths."""
    rows = sorted(examples.rows, key=lambda row: max(map(len, row.prefix)))
    picked = dict.fromkeys(int(share * (len(rows) - 1)) for share in SHOWN_DIALOGUES)
    return [_dialogue(dialogue, rows[i], rows[i].pair) for i in picked]


def _dialogue(dialogue: Dialogue, example: Example, pair: Pair) -> Shown:
    behind = [*dialogue.question_ids, example.answer[0]]
    ids = pieces(dialogue, example.prefix[0].tolist()), pieces(dialogue, behind)
    return Shown(pair.where, len(example.prefix[0]), [*ids[0], (THOUGHT, False), *ids[1]], pair.rejected)


def pieces(dialogue: Dialogue, ids: list[int]) -> list[Piece]:
    """The text of tokens, cut at its control tokens."""
    control, cut = dialogue.tokenizer.added_tokens_decoder, []
    for token in ids:
        if token in control or not cut or cut[-1][1]:
            cut.append(([token], token in control))
        else:
            cut[-1][0].append(token)
    return [(dialogue.tokenizer.decode(part, skip_special_tokens=False), is_control) for part, is_control in cut]
