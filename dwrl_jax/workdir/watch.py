"""Faults of training that show in the metrics of a run while it goes, each with what to try.

A fault holds at a step by means over the last WINDOW steps, some of them against those of the LOOK steps before, or
against the held-out accuracy of this step. It is told where it begins: not again before it has been away for QUIET
steps. All this follows from the last KEPT steps, so a run that goes on tells what an undisturbed one tells. The bounds
are (ours): the sound runs of the built-in worlds stay inside them, and docs/findings.md has runs that do not. Many
sound judges end with thoughts of little variety, so uniform weights and low entropy are faults only beside a low
accuracy.
"""

import collections
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.lib.stride_tricks import sliding_window_view

from dwrl_jax.workdir.records import Series

WINDOW, LOOK, QUIET = 25, 100, 50  # steps
KEPT = WINDOW + LOOK + QUIET
LOW = 0.62  # accuracy: above chance by less than the noise of a window of small batches
NAMES = ("pair_accuracy", "effective_thoughts", "entropy", "cut_off", "answer_mass", "ties")
LEVELS = ("log_preference_score_chosen", "log_preference_score_rejected")

HELD_OUT = "eval/accuracy"
KEYS = [*(f"train/{name}" for name in (*NAMES, *LEVELS)), HELD_OUT]

Steps = Int[np.ndarray, " N"]
Values = Float[np.ndarray, "N K"]  # a column for each of KEYS; NaN where a step lacks it
Means = dict[str, Float[np.ndarray, " N"]]


class Fault(NamedTuple):
    """A fault that begins at a step: what it is, and what to try."""

    step: int
    name: str
    what: str
    advice: str


def begun(series: Series, group_size: int) -> list[Fault]:
    """The faults of a run in the order in which they begin. `group_size` is the number of thoughts per response."""
    told, _ = _look(*_table(series), group_size)
    return told


class Watch:
    """The same for a run that goes on, step by step. `rows` are its last KEPT rows of metrics.jsonl."""

    def __init__(self, rows: Iterable[dict], group_size: int):
        self._group_size, self._kept = group_size, collections.deque(maxlen=KEPT)
        for row in rows:
            self._keep(row)

    def __call__(self, row: dict) -> tuple[list[Fault], int]:
        """The faults that begin with the next row, and the number of those that hold now."""
        self._keep(row)
        kept = np.array(self._kept)
        steps, values = kept[:, 0].astype(int), kept[:, 1:]
        watched = np.isfinite(values[:, :-1]).any(-1)
        told, number = _look(steps[watched], values[watched], self._group_size)
        return [fault for fault in told if fault.step == row["step"]], number

    def _keep(self, row: dict) -> None:
        values = map(row.get, KEYS)
        self._kept.append((row["step"], *(x if isinstance(x, int | float) else np.nan for x in values)))


def _table(series: Series) -> tuple[Steps, Values]:
    """All steps that have a watched metric of training, and what they have."""
    there = [series[key][0] for key in KEYS[:-1] if key in series]
    steps = np.unique(np.concatenate(there)) if there else np.zeros(0, int)
    values = np.full((len(steps), len(KEYS)), np.nan)
    for column, key in enumerate(KEYS):
        at, found = series.get(key, (np.zeros(0, int), np.zeros(0)))
        known = np.isin(at, steps)
        values[np.searchsorted(steps, at[known]), column] = found[known]
    return steps, values


def _look(steps: Steps, values: Values, group_size: int) -> tuple[list[Fault], int]:
    """The faults in the order in which they begin, and the number of those that hold at the last step."""
    if not len(steps):
        return [], 0
    means, errors = _means(values)
    told, number = [], 0
    for name, (holds, what, advice) in _faults(means, errors, group_size).items():
        number += int(holds[-1])
        for at in np.flatnonzero(holds):
            if not holds[max(0, at - QUIET) : at].any():
                figures = {key: float(mean[at]) for key, mean in means.items()}
                told.append(Fault(int(steps[at]), name, what.format(n=group_size, **figures), advice))
    return sorted(told), number


def _means(values: Values) -> tuple[Means, Float[np.ndarray, " N"]]:
    """The means of the watched metrics over the window that ends at each step, and the accuracy's standard error.

    A mean is NaN where less than half of the window has the metric. Held-out accuracy is that of the step itself.
    """
    missing = np.full((WINDOW - 1, values.shape[1] - 1), np.nan)
    windows = sliding_window_view(np.concatenate([missing, values[:, :-1]]), WINDOW, axis=0)
    known = np.isfinite(windows)
    count = known.sum(-1)
    count = np.where(count > WINDOW // 2, count, np.nan)
    means = np.where(known, windows, 0.0).sum(-1) / count
    accuracy = NAMES.index("pair_accuracy")
    squares = np.where(known[:, accuracy], windows[:, accuracy] - means[:, accuracy, None], 0.0) ** 2
    errors = np.sqrt(squares.sum(-1)) / count[:, accuracy]
    means[: WINDOW - 1] = np.nan
    return dict(zip((*NAMES, *LEVELS, "held_out"), (*means.T, values[:, -1]), strict=True)), errors


def _faults(
    means: Means, error: Float[np.ndarray, " N"], group_size: int
) -> dict[str, tuple[Bool[np.ndarray, " N"], str, str]]:
    """{name: (where it holds, what it is, what to try)}. A comparison with NaN is false."""
    accuracy, cut_off, mass = means["pair_accuracy"], means["cut_off"], means["answer_mass"]
    chosen, rejected = (means[name] for name in LEVELS)
    scored = np.isfinite(mass) & (chosen <= 0) & (rejected <= 0)  # rewards have no level
    best, noise = _before(accuracy, np.fmax), 5 * np.sqrt(2) * error
    return {
        "uniform_thoughts": (
            (group_size > 1) & (means["effective_thoughts"] > 0.97 * group_size) & (accuracy < LOW),
            "the weights of the thoughts are uniform ({effective_thoughts:.2f} of {n} count) and pair accuracy is "
            "{pair_accuracy:.2f}: thoughts have no gradient",
            "lower optim.learning_rate, or raise sampler.group_size or sampler.temperature",
        ),
        "low_entropy": (
            (means["entropy"] < 0.15) & (accuracy < LOW),
            "thoughts have lost their variety ({entropy:.3f} nats per token) and pair accuracy is {pair_accuracy:.2f}",
            "lower optim.learning_rate, or raise objective.kl",
        ),
        "cut_off": (
            cut_off - _before(cut_off, np.fmin) > 0.1,
            "more and more thoughts are cut off at their longest length ({cut_off:.2f} of them)",
            "raise sampler.max_thought, or lower optim.learning_rate",
        ),
        "answer_mass": (
            np.isfinite(accuracy) & (_before(mass, np.fmax) > np.fmax(0.5, mass + 0.1)) & (mass < 0.9),
            "probability leaks from the answers to other words (the answers keep {answer_mass:.2f})",
            "set score.readout=choices, or lower optim.learning_rate",
        ),
        "accuracy_falls": (
            best - accuracy > np.fmax(0.12, noise),
            "pair accuracy falls (now {pair_accuracy:.2f})",
            "lower optim.learning_rate, or export an earlier state with --checkpoint=best",
        ),
        "held_out": (
            accuracy - means["held_out"] > 0.18,
            "held-out pairs are judged much worse than training pairs ({held_out:.2f}, not {pair_accuracy:.2f}): read "
            "the thoughts, which may no longer say what matters",
            "lower optim.learning_rate, raise objective.kl, or train on more pairs",
        ),
        "scores_sink": (
            scored & (np.fmax(chosen, rejected) < -4) & (_before(chosen, np.fmax) - chosen > 1),
            "the scores of both responses sink (log p+ {log_preference_score_chosen:.2f}, log p- "
            "{log_preference_score_rejected:.2f})",
            "lower optim.learning_rate, or raise objective.kl",
        ),
        "scores_rise": (
            scored & (np.fmin(chosen, rejected) > -0.2),
            "the scores of both responses rise to 1 (log p+ {log_preference_score_chosen:.2f}, log p- "
            "{log_preference_score_rejected:.2f}): they no longer differ",
            "lower optim.learning_rate, or begin with a model that calls fewer responses good",
        ),
        "ties": (
            means["ties"] > 0.05,
            "{ties:.2f} of the pairs are ties",
            "compute in float32 (model.dtype), or set score.readout=vocab",
        ),
    }  # fmt: skip


def _before(mean: Float[np.ndarray, " N"], extreme) -> Float[np.ndarray, " N"]:
    """The largest or smallest mean of the last LOOK windows, by np.fmax or np.fmin."""
    whole = np.concatenate([np.full(LOOK - 1, np.nan), mean])
    return extreme.reduce(sliding_window_view(whole, LOOK), axis=-1)
