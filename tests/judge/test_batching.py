"""Batches are full, rows come back in their order, and the batches of a window follow from its rows."""

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
        return lambda: [Answer(question.prefix[0] + np.arange(first, first + votes) / 100) for question in questions]

    answer.asked = asked
    return answer


def test_rows_come_back_in_their_order(ask):
    lengths = [[8, 16], [8], [], [16, 16, 8], [32], [8, 8]]
    told = list(answered(rows_of(lengths), ask, 2, (3,), None))
    assert [sorted(answers) for answers in told] == [[(i,) for i in range(len(each))] for each in lengths]
    for row, answers in enumerate(told):
        for answer in answers.values():
            np.testing.assert_allclose(answer.values, row + np.array([0, 0.01, 0.02]))
    assert ask.asked == [(32, 3, 0, 2), (8, 3, 0, 2), (16, 3, 0, 2), (8, 3, 0, 2), (8, 3, 0, 1)]


def test_batches_are_full_but_for_the_last_of_a_window(ask):
    lengths = np.random.default_rng(0).choice([8, 16, 32, 64], (96 + 3, 2), p=[0.5, 0.4, 0.08, 0.02])
    list(answered(rows_of(lengths), ask, 4, (1,), None))
    assert batching.window_size(4) == 32 and sorted(size for *_, size in ask.asked) == [2] + [4] * 49
    assert sum(length for length, *_ in ask.asked) < 1.25 * lengths.sum() / 4, "lengths are mixed"


def test_left_over_questions_ride_with_the_longest_of_them(ask):
    list(answered(rows_of([[8, 64], [32, 16], [16]]), ask, 4, (1,), None))
    assert ask.asked == [(64, 1, 0, 4), (8, 1, 0, 1)]


def test_batches_follow_from_the_window_alone(ask):
    """The rows of later windows change nothing, and neither do rows that are known already."""
    lengths = np.random.default_rng(0).choice([8, 16, 32], (20, 2))
    list(answered(rows_of(lengths), ask, 2, (1,), None))
    whole, ask.asked[:] = list(ask.asked), []
    list(answered(rows_of(lengths[:16]), ask, 2, (1,), None))
    assert whole[: len(ask.asked)] == ask.asked
    ask.asked[:] = []
    told = list(answered(rows_of(lengths), ask, 2, (1,), None, done=18))
    assert whole[-len(ask.asked) :] == ask.asked and len(ask.asked) <= 4, "rows that are known are asked about again"
    assert len(told) == 20 and sorted(told[18]) == sorted(told[19]) == [(0,), (1,)]


def test_a_window_with_known_rows_alone_is_not_asked(ask):
    list(answered(rows_of([[8, 8]] * 5), ask, 2, (4, 4), Adaptive(rounds=(4, 4)), done=5))
    assert not ask.asked
    list(answered(rows_of([[8, 8]] * 5), ask, 2, (4, 4), Adaptive(rounds=(4, 4)), done=4))
    assert len(ask.asked) >= 5, "later rounds depend on all rows"


def test_the_next_batch_begins_before_the_last_one_is_waited_for():
    events = []

    def ask(questions, length, *, votes, first):
        events.append("begun")

        def told():
            events.append("told")
            return [Answer(np.zeros(1)) for _ in questions]

        return told

    list(answered(rows_of([[8]] * 6), ask, 2, (1,), None))
    assert events == ["begun", "begun", "told", "begun", "told", "told"]


def test_no_row_waits_for_long(ask):
    """The first row has a length that no other row has."""
    rows = iter(rows_of([[64], *[[8]] * 99]))
    told = answered(rows, ask, 4, (1,), None)
    next(told)
    assert len(list(rows)) >= 99 - 4 * batching.AHEAD - 1


def test_the_next_window_is_read_while_the_last_batch_is_asked(ask):
    rows = iter(rows_of([[8]] * 50))
    told = answered(rows, ask, 2, (1,), None)
    for _ in range(14):
        next(told)
    assert rows.__length_hint__() == 34
    next(told)
    assert rows.__length_hint__() == 18


def test_later_rounds_have_full_batches_too(ask, monkeypatch):
    """Rows with an even number are settled at once; the others have all three rounds."""
    monkeypatch.setattr(batching.voting, "settled", lambda rule, scores: scores[0,][0] % 2 == 0)
    told = list(answered(rows_of([[8]] * 16), ask, 4, (1, 2, 3), Adaptive()))
    sizes = [len(answers[0,].values) for answers in told]
    assert sizes == [1, 6] * 8
    np.testing.assert_allclose(told[1][0,].values, 1 + np.arange(6) / 100)
    assert sorted(ask.asked) == sorted([(8, 1, 0, 4)] * 4 + [(8, 2, 1, 4)] * 2 + [(8, 3, 3, 4)] * 2)
