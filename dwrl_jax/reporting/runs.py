"""The finished runs of a suite, from which its table and its figures are made.

They are read from the workdir of a suite, or from a small folder that has just enough: `results.jsonl` with the line
of each run, and `scores.npz` with every vote on every held-out pair and five curves of the training.
"""

import dataclasses
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from dwrl_jax.core import files
from dwrl_jax.core.errors import UserError
from dwrl_jax.workdir import records

ROWS, SCORES = "results.jsonl", "scores.npz"
CURVES = (
    "eval/accuracy",
    "sample/tokens",
    "time/step_seconds",
    "train/misalignment_weight",
    "train/effective_thoughts",
)


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """A finished run.

    `row` is its line of results.jsonl, and its `known` has the metrics of the reference readers of the built-in world.
    `log_scores` are those of the trained judge. `curves` are metrics by step and name, NaN where a step lacks one.
    """

    row: dict
    ids: Int[np.ndarray, " N"]
    log_scores: Float[np.ndarray, "N S K"]
    curves: Float[np.ndarray, "steps names"]

    def curve(self, name: str) -> Float[np.ndarray, " steps"]:
        return self.curves[:, CURVES.index(name)]


def read_rows(workdir: Path) -> list[dict]:
    """The lines of a suite's results.jsonl, the first finished run first. Empty without a file."""
    path = workdir / ROWS
    return list(files.read_lines(path, needs="workdir")) if path.exists() else []


def read_runs(workdir: Path, rows: list[dict]) -> list[FinishedRun]:
    """The runs of these rows, from their folders in the workdir of a suite."""
    return [_read_run(workdir / row["workdir"], row) for row in rows]


def _read_run(folder: Path, row: dict) -> FinishedRun:
    known = files.read_json(folder / "results.json")["reference"]
    steps = files.read_lines(folder / "metrics.jsonl")
    curves = [[step.get(name, np.nan) for name in CURVES] for step in steps]
    return FinishedRun(
        row | {"known": known}, *records.read_scores(folder / "eval" / "trained.jsonl"), np.array(curves)
    )


def keep(folder: Path, runs: list[FinishedRun]) -> None:
    """Write the small folder. No digit of a score is lost: a judge gives them in float32."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for run in runs:
        scores = run.log_scores.astype(np.float32)
        if not np.array_equal(scores, run.log_scores):
            raise UserError(f"{run.row['workdir']}/eval/trained.jsonl: scores of more digits than float32 has")
        name = run.row["workdir"]
        arrays |= {f"{name}/ids": run.ids, f"{name}/scores": scores, f"{name}/curves": run.curves.astype(np.float32)}
    np.savez_compressed(folder / SCORES, **arrays)
    files.write_lines(folder / ROWS, (run.row for run in runs))


def read_kept(folder: Path) -> list[FinishedRun]:
    """The runs of a folder that `keep` wrote."""
    rows = read_rows(folder)
    if not rows:
        raise UserError(f"{folder / ROWS}: no finished runs are kept here")
    with np.load(folder / SCORES) as arrays:
        parts = [[arrays[f"{row['workdir']}/{name}"] for name in ("ids", "scores", "curves")] for row in rows]
    return [
        FinishedRun(row, ids, scores.astype(np.float64), curves.astype(np.float64))
        for row, (ids, scores, curves) in zip(rows, parts)
    ]
