"""Full batches from the questions of many rows, and rows back in their order."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from dwrl_jax.judge import votes as voting
from dwrl_jax.judge.columns import Answer
from dwrl_jax.judge.rows import Question
from dwrl_jax.judge.votes import Adaptive

AHEAD = 4  # most batches of rows that wait behind the oldest row
Answers = dict[tuple[int, ...], Answer]  # by the responses that a question is about


@dataclass
class OpenRow:
    """A row that waits for answers. `questions` have their padded lengths; `missing` counts those of this round."""

    questions: Sequence[tuple[int, Question]]
    answers: Answers = field(default_factory=dict)
    round: int = 0
    missing: int = 0


def answered(
    asked: Iterable[Sequence[tuple[int, Question]]],
    ask: Callable,
    batch_size: int,
    rounds: tuple[int, ...],
    rule: Adaptive | None,
) -> Iterator[Answers]:
    """The answers to the questions of each row, in the order of the rows.

    `ask(questions, length, votes=, first=)` answers at most `batch_size` questions. Questions of one padded length and
    one round wait until they fill a batch, or until the oldest row has waited for `AHEAD` batches of rows. A row has a
    further round as long as `rule` has not settled it; without a rule it has one round.
    """
    rows: dict[int, OpenRow] = {}
    waiting: dict[tuple[int, int], list[tuple[int, Question]]] = {}

    def queue(index: int) -> None:
        row = rows[index]
        row.missing = len(row.questions)
        for length, question in row.questions:
            waiting.setdefault((row.round, length), []).append((index, question))

    def fire(key: tuple[int, int]) -> None:
        batch, rest = waiting[key][:batch_size], waiting.pop(key)[batch_size:]
        if rest:
            waiting[key] = rest
        number, length = key
        told = ask([question for _, question in batch], length, votes=rounds[number], first=sum(rounds[:number]))
        for (index, question), answer in zip(batch, told):
            row = rows[index]
            row.answers[question.responses] = joined(row.answers.get(question.responses), answer)
            row.missing -= 1
            if not row.missing and rule and row.round + 1 < len(rounds) and not _is_settled(rule, row):
                row.round += 1
                queue(index)

    def finished() -> Iterator[Answers]:
        while rows and not rows[oldest := next(iter(rows))].missing:
            yield rows.pop(oldest).answers

    for index, questions in enumerate(asked):
        rows[index] = OpenRow(questions)
        queue(index)
        while full := next((key for key, queued in waiting.items() if len(queued) >= batch_size), None):
            fire(full)
        while len(rows) > AHEAD * batch_size and rows[next(iter(rows))].missing:
            fire(_of_oldest(rows, waiting))
        yield from finished()
    while rows:
        if rows[next(iter(rows))].missing:
            fire(_of_oldest(rows, waiting))
        yield from finished()


def _of_oldest(rows: dict[int, OpenRow], waiting: dict) -> tuple[int, int]:
    """The key of a batch with a question of the oldest row."""
    oldest = next(iter(rows))
    return next(key for key, queued in waiting.items() if any(index == oldest for index, _ in queued))


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
