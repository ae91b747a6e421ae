"""The columns of the study of sampling in few bits, by hand."""

import numpy as np

from studies.sampling_in_few_bits import line


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
