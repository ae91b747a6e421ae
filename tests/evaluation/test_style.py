"""Exact: splits by length by hand; the regression finds what was put in."""

import numpy as np
import pytest

from dwrl_jax.evaluation import style


def test_splits_by_length_by_hand():
    right, wrong = ["a" * 20, "a" * 20, "a" * 5, "a" * 10], ["a" * 5, "a" * 18, "a" * 20, "a" * 10]
    found = style.lengths(right, wrong, np.array([1.0, 0.0, 1.0, 0.5]))
    assert found["longer wins"]["longer is right"] == {"share": 0.5, "n": 2}
    assert found["longer wins"]["shorter is right"] == {"share": 0.0, "n": 1}
    counts = {name: (cell["share"], cell["n"]) for name, cell in found["accuracy"].items()}
    assert counts == {
        "much shorter": (1.0, 1),
        "shorter": (None, 0),
        "as long": (0.5, 1),
        "longer": (0.0, 1),
        "much longer": (1.0, 1),
    }


def test_logistic_regression_finds_its_coefficients():
    rng = np.random.default_rng(0)
    design = np.column_stack([np.ones(20000), rng.normal(size=(20000, 2))])
    truth = np.array([0.5, 1.0, -2.0])
    outcome = rng.random(20000) < 1 / (1 + np.exp(-design @ truth))
    weights, errors = style.logistic(design, outcome.astype(float))
    np.testing.assert_allclose(weights, truth, atol=0.1)
    assert (np.abs(weights - truth) < 4 * errors).all() and errors.max() < 0.05


def test_a_judge_that_likes_length_is_told():
    """Its log-odds are the quality's plus the length's; at matched length it is right more often."""
    rng = np.random.default_rng(1)
    lengths = rng.integers(10, 400, (3000, 2))
    texts = [["x" * a, "y" * b] for a, b in lengths]
    difference = (lengths[:, 0] - lengths[:, 1]) / 100
    quality = np.abs(rng.normal(1, 1, 3000))
    biased = style.regression(*zip(*texts), quality + 1.5 * difference)
    fair = style.regression(*zip(*texts), quality + rng.normal(0, 1, 3000))
    assert biased["coefficients"]["length"] < -4 * biased["errors"]["length"]
    assert abs(fair["coefficients"]["length"]) < 4 * fair["errors"]["length"]
    assert biased["accuracy at matched style"] > biased["accuracy"] - 0.02
    assert set(biased["coefficients"]) == {"log-odds", "length"}, "no text has a header, a list or bold words"


def test_marks_are_counted():
    text = "# Title\n- one\n2. two\nnot - a list, nor 3 * 4\n**bold** and __bold__"
    counts = {name: len(mark.findall(text)) for name, mark in style.MARKS.items()}
    assert counts == {"headers": 1, "lists": 2, "bold": 2}


def test_too_few_pairs_have_no_regression():
    assert style.regression(["a"] * 9, ["b"] * 9, np.ones(9)) is None


@pytest.mark.parametrize("constant", [True, False])
def test_equal_lengths_are_no_division_by_zero(constant):
    odds = np.where(np.arange(40) % 3 == 0, -1.0, 1.0) * (1 if constant else np.linspace(0.1, 2, 40))
    found = style.regression(["ab"] * 40, ["cd"] * 40, odds)
    assert np.isfinite(list(found["coefficients"].values())).all()
