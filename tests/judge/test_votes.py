"""Adaptive votes. Exact: capital and interval by hand; simulation: how often equal responses are told apart."""

import json
from dataclasses import replace

import numpy as np
import pytest

from dwrl_jax import score as command
from dwrl_jax.judge import score, votes
from dwrl_jax.judge.votes import Adaptive
from tests.judge.test_score import ROWS, loaded

ENDS = np.cumsum(Adaptive().rounds)


def test_the_capital_by_hand():
    """d = .4, .2, -.4: payoffs 1, 1/2 and -1 / sqrt(.5 (1 + 1/4)); stakes .9, then won / (squares + 1/4)."""
    third = -min(0.4 / np.sqrt((0.4**2 + 0.2**2) / 2), 1)
    up = 1.9 * (1 + 0.8 * 0.5) * (1 + 0.99 * third)  # (1 + .5) / (1.25 + .25) = 1, cut at .99
    down = 0.1 * 1 * 1
    assert votes.log_capital(np.array([0.4, 0.2, -0.4])) == pytest.approx(np.log((up + down) / 2))
    plain = (1 + 0.5 * 0.4) * (1 + 0.5 * 0.2)  # .4 / (.16 + .25) is cut at 1/2
    assert votes.log_capital(np.array([0.4, 0.2]), False, 0.5) == pytest.approx(np.log((plain + 0.8) / 2))
    assert votes.log_capital(np.zeros(32)) == 0


def test_the_capital_knows_no_side():
    d = np.random.default_rng(0).normal(0.1, 0.3, (5, 32)).clip(-1, 1)
    np.testing.assert_allclose(votes.log_capital(d), votes.log_capital(-d))
    np.testing.assert_allclose(votes.log_capital(d), votes.log_capital(d / 7), err_msg="the payoff has no scale")


@pytest.mark.parametrize(
    "rule, asked",
    [
        (Adaptive(), (8, 8, 16)),  # four votes have a capital of at most 6.3, and eight of at most 91
        (Adaptive(delta=0.01), (16, 16)),
        (Adaptive(delta=0.2), (4, 4, 8, 16)),
        (Adaptive(width=0.64), (4, 4, 8, 16)),  # a single response's interval is .63 wide after four votes
        (Adaptive(delta=1e-12), (32,)),
        (Adaptive(rounds=(2,)), (2,)),
    ],
)
def test_no_round_ends_where_no_row_can_be_settled(rule, asked):
    assert rule.asked == asked and sum(rule.asked) == sum(rule.rounds)


DISTRIBUTIONS = {
    "sure": lambda rng, shape: rng.beta(0.3, 0.3, shape),
    "flat": lambda rng, shape: rng.random(shape),
    "words": lambda rng, shape: (rng.random(shape) < 0.3) * 1.0,
    "skewed": lambda rng, shape: rng.random(shape) ** 8,
    "rare": lambda rng, shape: np.where(rng.random(shape) < 0.05, 0.9, 0.01),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_equal_responses_are_told_apart_at_most_delta_of_the_time(name):
    """At any time: the highest capital after any vote, in 4,000 rows."""
    rng = np.random.default_rng(0)
    d = np.diff([DISTRIBUTIONS[name](rng, (4000, 32)) for _ in range(2)], axis=0)[0]
    highest = np.max([votes.log_capital(d[:, :t]) for t in range(1, 33)], 0)
    for delta in (0.05, 0.01):
        false = (highest >= -np.log(delta)).mean()
        assert false <= delta + 2 * np.sqrt(delta / 4000), (delta, false)


@pytest.mark.parametrize("name", ["rare", "words"])
def test_without_scale_only_the_means_must_be_equal(name):
    """One response has the same mean and no spread."""
    rng = np.random.default_rng(1)
    scores = DISTRIBUTIONS[name](rng, (4000, 32))
    d = scores - (0.3 if name == "words" else 0.05 * 0.9 + 0.95 * 0.01)
    highest = np.max([votes.log_capital(d[:, :t], False, 0.5) for t in range(1, 33)], 0)
    assert (highest >= -np.log(0.05)).mean() <= 0.05 + 2 * np.sqrt(0.05 / 4000)


def test_different_responses_are_settled_soon():
    rng = np.random.default_rng(0)
    d = 0.02 + rng.normal(0, 0.005, (200, 32))  # steady, however small
    assert (votes.log_capital(d[:, :8]) >= -np.log(0.05)).mean() > 0.95
    assert (votes.log_capital(d, False) >= -np.log(0.05)).mean() < 0.05, "what small differences cost without scale"


def test_rows_are_settled_by_each_two_responses():
    rule = Adaptive(delta=0.05)
    apart, close = np.log(np.full(8, 0.9)), np.log(np.tile([0.2, 0.21], 4))
    assert votes.settled(rule, {(0,): apart, (1,): close})
    assert not votes.settled(rule, {(0,): apart, (1,): close, (2,): close[::-1]})
    assert votes.settled(rule, {(0, 1): apart, (1, 0): close}), "a pairwise judge: i wins, in both orders"
    assert not votes.settled(rule, {(0, 1): apart, (1, 0): apart}), "the first one wins in both orders"


def test_the_interval_of_a_mean():
    """It covers the mean at all times together, and it narrows."""
    rng = np.random.default_rng(0)
    missed = 0
    for row in rng.beta(2, 5, (300, 32)):
        ends = [votes.mean_interval(row[:t], 0.1) for t in ENDS]
        missed += not all(low <= 2 / 7 <= high for low, high in ends)
    assert missed / 300 <= 0.1
    widths = [np.subtract(*votes.mean_interval(np.full(t, 0.1), 0.05)[::-1]) for t in (4, 8, 16, 32)]
    assert widths == sorted(widths, reverse=True) and widths[-1] < 0.15
    assert votes.settled(Adaptive(), {(0,): np.log(np.full(32, 0.1))})
    assert not votes.settled(Adaptive(), {(0,): np.log(np.full(4, 0.1))})


@pytest.fixture(scope="module")
def judge():
    return loaded()


def test_rounds_are_the_first_votes_of_all(judge, monkeypatch):
    """A row that is never settled has the votes that --votes=4 gives; a settled one has the first of them."""
    rule = Adaptive(delta=0.6, rounds=(2, 2))  # which two votes can settle
    (whole,) = score(judge, [ROWS[2]], votes=4, batch_size=4)
    asked = []

    def settled(rule, log_scores):
        asked.append(len(log_scores[0,]))
        return len(asked) > 1  # the first row never, the second row after its first round

    monkeypatch.setattr(votes, "settled", settled)
    (row,) = score(judge, [ROWS[2]], rule, batch_size=4)
    assert asked == [2] and row["thoughts"] == whole["thoughts"]
    np.testing.assert_allclose(row["votes"], whole["votes"], rtol=1e-4)
    (soon,) = score(judge, [ROWS[2]], rule, batch_size=4)
    assert np.shape(soon["votes"]) == (2, 2) and soon["thoughts"] == [each[:2] for each in whole["thoughts"]]


def test_the_command_scores_with_as_many_votes_as_rows_need(judge, tmp_path, monkeypatch, capsys):
    """A single response stops by its interval; and other rules begin anew."""
    source, output = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in (ROWS[1], ROWS[2])))
    monkeypatch.setattr(command, "load", lambda *_, **__: judge)
    monkeypatch.setattr(command, "number_of", lambda *given: replace(votes.number_of(*given), rounds=(2, 2)))
    monkeypatch.setattr(votes, "settled", lambda rule, log_scores: rule.width == 0.5 and len(log_scores) == 1)
    flags = ["--model=random", f"--input={source}", "--votes=auto", "--delta=0.6", "--width=0.5", "--batch_size=4"]
    command.main([*flags, f"--output={output}"])
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [np.shape(row["votes"]) for row in rows] == [(2,), (2, 4)]
    with pytest.raises(SystemExit):
        command.main([*flags, "--delta=1", f"--output={tmp_path / 'other'}"])
    assert "--delta=1.0: must be above 0 and below 1" in capsys.readouterr().err
