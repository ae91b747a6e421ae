"""Does a judge look at the length and the dress of a response? Splits by length, and a logistic regression.

The regression says how likely the judge's verdict is the human's: its features are differences between the response
that the judge prefers and the other one. A negative coefficient of the length says that the judge is wrong more often
where it prefers the longer response. Source of the features: the style control of Chatbot Arena,
https://lmsys.org/blog/2024-08-28-style-control/.
"""

import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize
from scipy.special import expit

MARKS = {
    "headers": re.compile(r"^#{1,6} ", re.M),
    "lists": re.compile(r"^\s*(?:[-*+]|\d+[.)]) ", re.M),
    "bold": re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__"),
}
FEATURES = ("log-odds", "length", *MARKS)
RIDGE = 1e-2  # weight of the squared coefficients, so that separable pairs have finite ones
EDGES = (-0.5, -0.1, 0.1, 0.5)  # of log(length of the right response / length of the wrong one)


def lengths(right: Sequence[str], wrong: Sequence[str], won: Float[np.ndarray, " N"]) -> dict:
    """How often the longer response wins, by which of the two is right; accuracy by the ratio of the lengths.

    Lengths are in characters. `won` is 1 where the right response won, 1/2 for a tie, else 0.
    """
    ratio = np.log([(len(a) + 1) / (len(b) + 1) for a, b in zip(right, wrong)])
    longer_wins = {
        "longer is right": _share(won[ratio > 0]),
        "shorter is right": _share(1 - won[ratio < 0]),
    }
    place = np.digitize(ratio, EDGES)
    names = ("much shorter", "shorter", "as long", "longer", "much longer")
    return {"longer wins": longer_wins, "accuracy": {name: _share(won[place == i]) for i, name in enumerate(names)}}


def _share(values: Float[np.ndarray, " N"]) -> dict:
    return {"share": float(values.mean()) if len(values) else None, "n": len(values)}


def regression(right: Sequence[str], wrong: Sequence[str], log_odds: Float[np.ndarray, " N"]) -> dict | None:
    """Coefficients with standard errors, and the accuracy at matched style. None with too few pairs of a kind.

    log-odds of "the verdict is the human's" = c0 + sum_f c_f x_f. `log-odds` is the absolute value of the judge's,
    over its standard deviation; `length` is tanh(difference of characters / its standard deviation); the others are
    (a - b) / (a + b) of their counts. Differences are preferred less other, and ties are left out. The accuracy at
    matched style is the mean of the prediction where all differences of style are 0.
    """
    told = log_odds != 0
    verdict = log_odds[told] > 0
    if min(verdict.sum(), (~verdict).sum()) < len(FEATURES):
        return None
    sign = np.where(verdict, 1.0, -1.0)
    texts = [(a, b) for a, b, kept in zip(right, wrong, told) if kept]
    length = np.array([len(a) - len(b) for a, b in texts], float)
    columns = [np.abs(log_odds[told]) / _scale(log_odds[told]), np.tanh(length / _scale(length)) * sign]
    for mark in MARKS.values():
        counts = np.array([[len(mark.findall(text)) for text in pair] for pair in texts], float)
        columns.append((counts[:, 0] - counts[:, 1]) / np.maximum(counts.sum(1), 1) * sign)
    design = np.column_stack([np.ones(len(sign)), *columns])
    weights, errors = logistic(design, verdict.astype(float))
    matched = design.copy()
    matched[:, 2:] = 0
    used = {name: bool(design[:, i].any()) for i, name in enumerate(FEATURES, 1)}
    return {
        "coefficients": {name: float(weights[i]) for i, name in enumerate(FEATURES, 1) if used[name]},
        "errors": {name: float(errors[i]) for i, name in enumerate(FEATURES, 1) if used[name]},
        "accuracy": float(verdict.mean()),
        "accuracy at matched style": float(expit(matched @ weights).mean()),
        "pairs": int(told.sum()),
    }


def _scale(values: Float[np.ndarray, " N"]) -> float:
    return float(values.std()) or 1.0


def logistic(
    design: Float[np.ndarray, "N F"], outcome: Float[np.ndarray, " N"]
) -> tuple[Float[np.ndarray, " F"], Float[np.ndarray, " F"]]:
    """Coefficients of a logistic regression with a small ridge, and their standard errors."""
    ridge = RIDGE * np.r_[0.0, np.ones(design.shape[1] - 1)]

    def loss(weights):
        score = design @ weights
        value = np.logaddexp(0, score).sum() - outcome @ score + (ridge * weights**2).sum() / 2
        return value, design.T @ (expit(score) - outcome) + ridge * weights

    weights = minimize(loss, np.zeros(design.shape[1]), jac=True, method="BFGS").x
    p = expit(design @ weights)
    hessian = (design * (p * (1 - p))[:, None]).T @ design + np.diag(ridge + 1e-9)
    return weights, np.sqrt(np.diag(np.linalg.inv(hessian)))
