"""Exact: one temperature is found, and it is fitted on other pairs than those that it is used on."""

import numpy as np
import pytest

from dwrl_jax.evaluation import calibration, metrics


def draws(count, truth=1.0):
    """Log-odds of right orders [count, 1], drawn so that log-odds / truth are calibrated."""
    rng = np.random.default_rng(0)
    odds = rng.normal(0, 2, count)
    right = rng.random(count) < 1 / (1 + np.exp(-odds))
    return (truth * np.where(right, odds, -odds))[:, None]


def test_the_temperature_is_found():
    assert calibration.temperature(draws(20000)) == pytest.approx(1, abs=0.05)
    assert calibration.temperature(draws(20000, 3.0)) == pytest.approx(3, abs=0.15)
    assert calibration.temperature(draws(19, 3.0)) == 1, "too few pairs say nothing"


def test_a_temperature_mends_what_a_temperature_spoils():
    odds = draws(4000)
    spoiled = metrics.losses(4 * odds).mean()
    assert spoiled > metrics.losses(odds).mean() + 0.2
    assert calibration.tempered_losses(4 * odds).mean() == pytest.approx(metrics.losses(odds).mean(), abs=0.003)


def test_each_half_has_the_temperature_of_the_other():
    """Pairs 0, 2, ... are too sure by 5, the others by 1: each half gets the wrong one."""
    odds = draws(8000)
    odds[::2] *= 5
    even, odd = calibration.temperatures(odds)
    assert even == pytest.approx(1, abs=0.1) and odd == pytest.approx(5, abs=0.5)
    np.testing.assert_allclose(calibration.tempered(odds)[::2], odds[::2] / even)
    np.testing.assert_allclose(calibration.tempered(odds)[1::2], odds[1::2] / odd)


def test_the_confident_half_by_hand():
    odds = np.array([[0.1], [-3.0], [2.0], [-0.2], [5.0]])
    assert calibration.confident_half(odds) == pytest.approx(2 / 3)  # of -3, 2 and 5
    assert calibration.confident_half(np.array([[0.0], [0.0]])) == 0.5
