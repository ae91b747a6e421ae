"""Batches are full, rows come back in their order, and none waits for long."""

import numpy as np
import pytest

from dwrl_jax.judge import batching
from dwrl_jax.judge.batching import answered
from dwrl_jax.judge.columns import Answer
from dwrl_jax.judge.rows import Question
from dwrl_jax.judge.votes import Adaptive


def rows_of(lengths):
    """Rows with a question for each of their lengths."""
    return [
        [(length, Question((i,), np.array([row, i], np.int32))) for i, length in enumerate(each)]
        for row, each in enumerate(lengths)
    ]


@pytest.fixture
def ask():
    """A judge whose votes are the row's number plus the vote's; it keeps what it was asked."""
    asked = []

    def answer(questions, length, *, votes, first):
        asked.append((length, votes, first, len(questions)))
        return [Answer(question.prefix[0] + np.arange(first, first + votes) / 100) for question in questions]

    answer.asked = asked
    return answer


def test_rows_come_back_in_their_order(ask):
    lengths = [[8, 16], [8], [], [16, 16, 8], [32], [8, 8]]
    told = list(answered(rows_of(lengths), ask, 2, (3,), None))
    assert [sorted(answers) for answers in told] == [[(i,) for i in range(len(each))] for each in lengths]
    for row, answers in enumerate(told):
        for answer in answers.values():
            np.testing.assert_allclose(answer.values, row + np.array([0, 0.01, 0.02]))
    assert all(votes == 3 and first == 0 for _, votes, first, _ in ask.asked)
    assert sorted((length, size) for length, *_, size in ask.asked) == [
        (8, 1),
        (8, 2),
        (8, 2),
        (16, 1),
        (16, 2),
        (32, 1),
    ]


def test_batches_are_full_but_for_the_last_of_each_length(ask):
    lengths = np.random.default_rng(0).choice([8, 16], (100, 2))
    list(answered(rows_of(lengths), ask, 4, (1,), None))
    assert sum(size < 4 for *_, size in ask.asked) <= 2


def test_no_row_waits_for_long(ask):
    """The first row has a length that no other row has."""
    rows = iter(rows_of([[64], *[[8]] * 99]))
    told = answered(rows, ask, 4, (1,), None)
    next(told)
    assert len(list(rows)) >= 99 - 4 * batching.AHEAD - 1


def test_rows_are_finished_while_others_are_read(ask):
    rows = iter(rows_of([[8]] * 50))
    next(answered(rows, ask, 2, (1,), None))
    assert len(list(rows)) == 48


def test_later_rounds_wait_for_full_batches_too(ask, monkeypatch):
    """Rows with an even number are settled at once; the others have all three rounds."""
    monkeypatch.setattr(batching.voting, "settled", lambda rule, scores: scores[0,][0] % 2 == 0)
    told = list(answered(rows_of([[8]] * 16), ask, 4, (1, 2, 3), Adaptive()))
    sizes = [len(answers[0,].values) for answers in told]
    assert sizes == [1, 6] * 8
    np.testing.assert_allclose(told[1][0,].values, 1 + np.arange(6) / 100)
    assert sorted(ask.asked) == sorted([(8, 1, 0, 4)] * 4 + [(8, 2, 1, 4)] * 2 + [(8, 3, 3, 4)] * 2)
