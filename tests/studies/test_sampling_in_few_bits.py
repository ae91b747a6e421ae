"""The columns of the study of sampling in few bits, by hand; and both densities are one where no bits are saved."""

import numpy as np

from studies.asking import batches
from studies.sampling_in_few_bits import compare, line
from tests.judge.test_score import loaded

ROWS = [{"prompt": f"s{i} o1 o2", "response": "s2 warm"} for i in range(3)]


def test_exact_columns():
    """Two thoughts of two tokens and of one: rho is 1/2 and 2, so (2.5)^2 / (2 * 4.25) of them count."""
    found = {
        "q": np.log([[0.5, 0.5], [0.25, 1.0]]),
        "pi": np.log([[0.25, 0.5], [0.5, 1.0]]),
        "length": np.array([2, 1]),
        "read": np.log([0.5, 0.2]),
        "trained": np.log([0.4, 0.2]),
    }
    gap = np.log(2)
    assert line(found) == [f"{2 * gap / 3:.2g}", f"{0:.2g}", f"{gap:.2g}", f"{100 * 2.5**2 / 8.5:.1f}", "5"]


def test_densities_are_one_without_few_bits_and_two_with_them():
    """Three responses in batches of two: the fourth place is filled and does not count."""
    judge = loaded()
    asked = list(batches(judge, [*ROWS, {"prompt": "not a row"}], 2, responses=1))
    assert [(some.prefix.shape, some.rows) for some in asked] == [((2, 1, 16), 2), ((2, 1, 16), 1)]
    exact, few = (compare(judge, asked, 2, cache, "") for cache in ("", "int8"))
    assert exact["q"].shape == (6, 5) and exact["read"].shape == (6,)
    np.testing.assert_allclose(exact["q"], exact["pi"], atol=1e-4)
    np.testing.assert_allclose(exact["read"], exact["trained"], atol=1e-4)
    assert 1e-4 < np.abs(few["q"] - few["pi"]).max() < 0.5
