"""A run in a notebook: figures and pages that a notebook displays.

All functions read the workdir of an evaluated run. They raise UserError where one of its files is missing.
"""

import dataclasses
import html
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure

from dwrl_jax.core.errors import UserError
from dwrl_jax.evaluation.metrics import log_odds
from dwrl_jax.reporting import page, suite
from dwrl_jax.reporting.curves import smoothed
from dwrl_jax.workdir import records

STYLES = {"base": {"color": "0.5"}, "trained": {"color": "C0"}}


@dataclasses.dataclass(frozen=True)
class Page:
    """A page of HTML in a frame with a height in pixels: its style does not reach the notebook."""

    text: str
    height: int = 640

    def _repr_html_(self) -> str:
        inside = html.escape(self.text.encode("utf-8", "replace").decode(), quote=True)
        frame = f'sandbox width="100%" height="{self.height}" frameborder="0"'  # no script runs in it
        return f'<div><iframe srcdoc="{inside}" {frame}></iframe></div>'


class Minds(NamedTuple):
    """Pair ids, and the log-odds of the right order before and after training: means over groups of votes."""

    pairs: Int[np.ndarray, " N"]
    before: Float[np.ndarray, " N"]
    after: Float[np.ndarray, " N"]


def read_log_scores(workdir: Path, name: str) -> tuple[Int[np.ndarray, " N"], Float[np.ndarray, "N S K"]]:
    """Pair ids, and log scores in nats of the "base" or the "trained" model on the held-out pairs."""
    return records.read_scores(Path(workdir) / "eval" / f"{name}.jsonl")


def is_pairwise(workdir: Path) -> bool:
    """Whether the judge sees both responses of a pair at once, in two orders."""
    return records.read_results(Path(workdir))["judge"] == "label"


def read_minds(workdir: Path) -> Minds:
    """The log-odds of every held-out pair before and after training, with the most votes."""
    results = records.read_results(Path(workdir))
    votes, pairwise = max(int(key[1:]) for key in results["trained"]), results["judge"] == "label"
    (pairs, before), (same, after) = (read_log_scores(workdir, name) for name in ("base", "trained"))
    if not np.array_equal(pairs, same):
        raise UserError(f"{workdir}/eval: base.jsonl and trained.jsonl hold different pairs; run the training again")
    return Minds(pairs, *(log_odds(scores, votes, pairwise).mean(1) for scores in (before, after)))


def shown(workdir: Path) -> list[int]:
    """Ids in ascending order of the `log.thought_pairs` pairs whose thoughts were written down before and after."""
    rows = _moments(workdir)
    return sorted(rows[min(rows)].keys() & rows[max(rows)].keys())


def changed(workdir: Path) -> dict[str, list[int]]:
    """Ids of the pairs of `shown` that became "right" and that became "wrong", the largest change first."""
    minds = read_minds(workdir)
    seen = np.isin(minds.pairs, shown(workdir))
    order = np.argsort(-np.abs(minds.after - minds.before), kind="stable")
    right = (minds.before <= 0) & (minds.after > 0)
    wrong = (minds.before >= 0) & (minds.after < 0)
    changes = {"right": right, "wrong": wrong}
    return {name: [int(minds.pairs[i]) for i in order if seen[i] and which[i]] for name, which in changes.items()}


def thoughts_page(workdir: Path, pairs: list[int]) -> Page:
    """The thoughts about both responses of these pairs, before and after training. Their weight w_i tints them."""
    pairwise, rows = is_pairwise(workdir), _moments(workdir)
    first, last = rows[min(rows)], rows[max(rows)]
    for pair in pairs:
        if pair not in first or pair not in last:
            known = ", ".join(map(str, shown(workdir)))
            raise UserError(
                f"pair {pair}: no thoughts in {workdir}/thoughts.jsonl before and after; there are: {known}"
            )
    examples = [
        {
            "pair": pair,
            "moments": [
                page.moment("before", min(rows), first[pair], pairwise),
                page.moment("after", max(rows), last[pair], pairwise),
            ],
        }
        for pair in pairs
    ]
    return Page(page.render("look.html.jinja", examples=examples, pairwise=pairwise), height=900)


def _moments(workdir: Path) -> dict[int, dict[int, dict]]:
    """The rows of thoughts by pair, of the first and the last logged step."""
    rows = records.read_thoughts(Path(workdir))
    if len(rows) < 2:
        raise UserError(f"{workdir}/thoughts.jsonl: no thoughts of two moments; an objective without thoughts has none")
    return rows


def report_page(workdir: Path) -> Page:
    """The run's report."""
    path = Path(workdir) / "report.html"
    if not path.exists():
        raise UserError(f"{path} does not exist: python -m dwrl_jax.report --workdir={workdir} writes it")
    return Page(path.read_text(encoding="utf-8"))


def minds_figure(workdir: Path) -> Figure:
    """Log-odds after training against those before. In two of the four quarters the judge changed its mind."""
    minds = read_minds(workdir)
    figure = Figure(figsize=(5.5, 5), layout="constrained")
    axes = figure.subplots()
    changes = np.sign(minds.before) != np.sign(minds.after)
    axes.plot(minds.before[~changes], minds.after[~changes], ".", color="0.7", label="same side")
    for name, which, color in (("now right", minds.after > 0, "C0"), ("now wrong", minds.after < 0, "C1")):
        these = changes & which
        axes.plot(minds.before[these], minds.after[these], ".", color=color, label=f"{name}: {these.sum()}")
    axes.axhline(0, color="0.4", linewidth=1)
    axes.axvline(0, color="0.4", linewidth=1)
    axes.set(xlabel="log-odds of the preferred response, before", ylabel="after training")
    axes.legend()
    return figure


def quality_figure(workdir: Path) -> Figure:
    """Accuracy against the votes k, and calibration with all votes, before and after training."""
    minds, pairwise = read_minds(workdir), is_pairwise(workdir)
    figure = Figure(figsize=(10, 4), layout="constrained")
    votes_axes, said_axes = figure.subplots(1, 2)
    for name, odds in (("base", minds.before), ("trained", minds.after)):
        votes, accuracy = suite.votes_curve(read_log_scores(workdir, name)[1], pairwise)
        votes_axes.plot(votes, accuracy, marker=".", label=name, **STYLES[name])
        points = suite.calibration(odds, least=max(len(odds) // 50, 1))
        said_axes.plot(*np.array(points).T, marker=".", label=name, **STYLES[name])
    said_axes.plot([0.5, 1], [0.5, 1], color="0.8", linewidth=1)
    votes_axes.set_xscale("log", base=2)
    votes_axes.xaxis.set_major_formatter("{x:.0f}")
    votes_axes.set(xlabel="votes k", ylabel="held-out accuracy")
    said_axes.set(xlabel="said probability", ylabel="share that is right")
    votes_axes.legend()
    return figure


def weights_figure(workdir: Path) -> Figure:
    """The two weights during training: w_mis, and the effective number of thoughts, 1 / sum of squared w_i."""
    series = records.read_series(Path(workdir))
    figure = Figure(figsize=(10, 3.5), layout="constrained")
    shown = {
        "train/misalignment_weight": "misalignment weight p− / (p+ + p−)",
        "train/effective_thoughts": "effective thoughts 1 / Σ w²",
    }
    for axes, (name, label) in zip(figure.subplots(1, 2), shown.items()):
        if name not in series:
            raise UserError(f"{workdir}/metrics.jsonl: no {name}; only objectives with thoughts write it")
        steps, values = series[name]
        axes.plot(steps, values, color="C0", alpha=0.3, linewidth=0.8)
        axes.plot(steps, smoothed(values), color="C0")
        axes.set(xlabel="step", ylabel=label)
    return figure
