"""Full batches from the questions of many rows, and rows back in their order."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from dwrl_jax.judge import votes as voting
from dwrl_jax.judge.columns import Answer
from dwrl_jax.judge.rows import Question
from dwrl_jax.judge.votes import Adaptive

AHEAD = 8  # batches of rows in a window
Answers = dict[tuple[int, ...], Answer]  # by the responses that a question is about


@dataclass(eq=False)
class OpenRow:
    """A row that waits for answers. `questions` have their padded lengths; `missing` counts those of this round."""

    questions: Sequence[tuple[int, Question]]
    finished: bool
    answers: Answers = field(default_factory=dict)
    missing: int = 0


def window_size(batch_size: int) -> int:
    """The number of rows whose questions share batches."""
    return AHEAD * batch_size


def answered(
    asked: Iterable[Sequence[tuple[int, Question]]],
    ask: Callable,
    batch_size: int,
    rounds: tuple[int, ...],
    rule: Adaptive | None,
    done: int = 0,
) -> Iterator[Answers]:
    """The answers to the questions of each row, in the order of the rows.

    `ask(questions, length, votes=, first=)` begins a batch of at most `batch_size` questions. It returns a function
    that waits for their answers, which is called when the next batch has begun. The rows are taken in windows of
    `window_size`, so the batches of a window follow from its rows alone. A row has a further round as long as `rule`
    has not settled it; without a rule it has one round.

    The first `done` rows are not wanted. They have answers only where a batch has later rows too, or with a rule.
    """
    unread = enumerate(asked)
    begun: deque[tuple[list[tuple[OpenRow, Question]], bool, Callable]] = deque()

    def read() -> deque[OpenRow]:
        rows = list(itertools.islice(unread, window_size(batch_size)))
        known = 0 if rule and rows and rows[-1][0] >= done else done  # a later round depends on all rows
        return deque(OpenRow(row, not row or index < known) for index, row in rows)

    def end() -> None:
        batch, last, told = begun.popleft()
        for (row, question), answer in zip(batch, told()):
            row.answers[question.responses] = joined(row.answers.get(question.responses), answer)
            row.missing -= 1
            if not row.missing:
                row.finished = last or _is_settled(rule, row)

    window = read()
    while window:
        for number, votes in enumerate(rounds):
            open_rows = [row for row in window if not number or not row.finished]
            for length, batch in batches(open_rows, batch_size):
                if not all(row.finished for row, _ in batch):
                    told = ask([question for _, question in batch], length, votes=votes, first=sum(rounds[:number]))
                    begun.append((batch, number + 1 == len(rounds), told))
                if len(begun) > 1:
                    end()
                yield from _finished(window)
            if not number:
                following = read()  # while the device works
            while begun:
                end()
            yield from _finished(window)
        window = following


def batches(rows: Sequence[OpenRow], size: int) -> list[tuple[int, list[tuple[OpenRow, Question]]]]:
    """All questions of the rows in batches, each with its padded length, the batch of the earliest row first.

    Batches have questions of like lengths. All but one are full.
    """
    questions = []
    for place, row in enumerate(rows):
        row.missing = len(row.questions)
        questions += [(length, place, row, question) for length, question in row.questions]
    questions.sort(key=lambda each: -each[0])
    parts = [questions[start : start + size] for start in range(0, len(questions), size)]
    parts.sort(key=lambda part: min(place for _, place, *_ in part))
    return [(part[0][0], [(row, question) for *_, row, question in part]) for part in parts]


def _finished(window: deque[OpenRow]) -> Iterator[Answers]:
    while window and window[0].finished:
        yield window.popleft().answers


def _is_settled(rule: Adaptive, row: OpenRow) -> bool:
    return voting.settled(rule, {which: answer.values for which, answer in row.answers.items()})


def joined(earlier: Answer | None, later: Answer) -> Answer:
    """The votes of both, the earlier ones first."""
    if earlier is None:
        return later
    return Answer(
        np.concatenate([earlier.values, later.values]),
        earlier.thoughts + later.thoughts,
        earlier.no_thought,
        earlier.written + later.written,
        earlier.cut + later.cut,
    )
