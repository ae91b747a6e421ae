"""Exact: votes, ties, intervals and calibration against their definitions."""

import jax.numpy as jnp
import numpy as np
import pytest

from dwrl_jax.core.types import PreferenceBatch
from dwrl_jax.evaluation import metrics
from dwrl_jax.evaluation.held_out import vote_scores


def test_votes_are_means_of_disjoint_groups():
    scores = np.array([[[0.2, 0.4, 0.6, 0.8], [0.1, 0.1, 0.9, 0.9]]])
    margin = metrics.log_odds(np.log(scores), 2)
    np.testing.assert_allclose(margin, [[np.log(0.3 / 0.1), np.log(0.7 / 0.9)]])
    np.testing.assert_allclose(metrics.log_odds(np.log(scores), 3), [[np.log(0.4 / (1.1 / 3))]])


def test_a_tie_counts_one_half():
    found = metrics.summary(np.array([[1.0], [0.0], [-1.0], [2.0]]))
    assert (found["accuracy"], found["ties"], found["pairs"]) == (0.625, 0.25, 4)
    probability = 1 / (1 + np.exp(-np.array([1.0, 0.0, -1.0, 2.0])))
    assert found["nll"] == pytest.approx(-np.log(probability).mean())
    assert found["brier"] == pytest.approx(((1 - probability) ** 2).mean())


def test_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        low, high = metrics.interval((rng.random(100) < 0.7).astype(float))
        covered += low <= 0.7 <= high
    assert 0.9 <= covered / 200 <= 0.99


def test_interval_of_the_gain_is_paired():
    """Both models are right on the same pairs but for eight, so the difference varies as those eight do, by 0.08 * 0.92
    a pair. Two samples of pairs, one for each model, would vary by 0.2496 + 0.24."""
    before, after = (np.where(np.arange(100) < right, 1.0, -1.0)[:, None] for right in (52, 60))
    found = metrics.gain(before, after)
    low, high = found["interval"]
    assert found["accuracy"] == pytest.approx(0.08) and low > 0
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.08 * 0.92 / 100), rel=0.15)
    assert metrics.gain(before, before)["interval"] == [0, 0]


def test_calibration_error_by_hand():
    confidence = np.array([0.51, 0.53, 0.93, 0.97])
    correct = np.array([1.0, 0.0, 1.0, 1.0])
    by_hand = (2 * abs(0.5 - 0.52) + abs(1 - 0.93) + abs(1 - 0.97)) / 4
    assert metrics.calibration_error(confidence, correct) == pytest.approx(by_hand)


def test_scores_come_back_in_the_order_of_pairs():
    """Batches in any order, rows that fill up left out."""

    def batch(ids, valid):
        n = len(ids)
        return PreferenceBatch(
            np.zeros((n, 2, 1), int), np.ones((n, 2), int), np.ones((n, 2), int), np.array(valid), np.array(ids)
        )

    def scores_of(batch):
        return jnp.broadcast_to(jnp.asarray(batch.pair_id)[:, None, None] * 2.0, (len(batch.pair_id), 2, 3))

    batches = [batch([7, 2], [True, True]), batch([5, 5], [True, False])]
    ids, scores = vote_scores(scores_of, batches)
    assert ids.tolist() == [2, 5, 7] and scores.shape == (3, 2, 3)
    assert scores[:, 0, 0].tolist() == [4, 10, 14]
