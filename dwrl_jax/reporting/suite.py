"""A table and figures of many runs, from the rows that `dwrl_jax.reproduce` left and the files of each run."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from scipy.special import expit

from dwrl_jax.core import files
from dwrl_jax.evaluation import metrics as evaluate
from dwrl_jax.workdir import records

RESAMPLES = 4000
BUDGETS = {"pairs": "pairs", "generated_tokens": "generated tokens", "seconds": "seconds"}
Rows = list[dict]


def write(workdir: Path, rows: Rows, reference: str) -> None:
    """workdir/table.md and, for each config, workdir/figures_CONFIG.png; of rows of whatever is finished."""
    parts = []
    for config in dict.fromkeys(row["config"] for row in rows):
        part = [row for row in rows if row["config"] == config]
        parts.append(f"**{config}**\n\n{table(workdir, part, reference)}")
        figure(workdir, part).savefig(workdir / f"figures_{config}.png", dpi=110)
    files.write_text(workdir / "table.md", "\n\n".join(parts) + "\n")


def table(workdir: Path, rows: Rows, reference: str) -> str:
    """Markdown, a line for each method and budget: means over seeds, and paired differences to the reference."""
    titles = ["method", "as much of", "seeds", "% before", "accuracy %, mean ± sd", f"less {reference}, 95 % interval"]
    titles += ["NLL", f"less {reference}, 95 % interval", "pairs", "generated tokens", "seconds"]
    lines = [f"| {' | '.join(titles)} |", "|" + " --- |" * len(titles)]
    base = [row for row in rows if row["method"] == reference and row["budget"] == "pairs"]
    for method in dict.fromkeys(row["method"] for row in rows):
        for budget in BUDGETS:
            part = [row for row in rows if (row["method"], row["budget"]) == (method, budget)]
            if part:
                lines.append(line(workdir, part, base, is_reference=method == reference))
    lines += world_lines(workdir, base)
    return "\n".join(lines)


def line(workdir: Path, rows: Rows, base: Rows, *, is_reference: bool) -> str:
    def mean(name):
        return np.mean([row[name] for row in rows])

    def against(measure, digits, unit=1):
        differences = [] if is_reference else paired(workdir, rows, base, measure)
        if not differences:
            return ""
        found = (np.mean([one.mean() for one in differences]), *two_level_interval(differences))
        centre, low, high = (f"{unit * number:+.{digits}f}" for number in found)
        return f"{centre} [{low}, {high}]"

    cells = [
        f"`{rows[0]['method']}`",
        BUDGETS[rows[0]["budget"]],
        str(len(rows)),
        f"{100 * mean('base_accuracy'):.1f}",
        accuracy(rows),
        against(evaluate.wins, 1, unit=100),
        f"{mean('nll'):.3f}",
        against(evaluate.losses, 3),
        f"{mean('pairs'):,.0f}",
        f"{mean('generated_tokens'):,.0f}",
        f"{mean('seconds'):,.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def world_lines(workdir: Path, rows: Rows) -> list[str]:
    """What readers of the built-in world reach who are no models: one without a thought, one who knows the truth."""
    found = [files.read_json(workdir / row["workdir"] / "results.json")["reference"] for row in rows]
    lines = []
    for name, title in (("no_thought", "best no-thought reader"), ("ceiling", "noise ceiling")):
        parts = [one[name] for one in found if one[name]]
        if parts:
            nll = np.mean([one["nll"] for one in parts])
            lines.append(f"| {title} |  | {len(parts)} |  | {accuracy(parts)} |  | {nll:.3f} |" + "  |" * 4)
    return lines


def accuracy(rows: Rows) -> str:
    """In %, the mean and the standard deviation over seeds."""
    values = 100 * np.array([row["accuracy"] for row in rows])
    return f"{values.mean():.1f}" + (f" ± {values.std(ddof=1):.1f}" if len(rows) > 1 else "")


def margins(workdir: Path, row: dict) -> tuple[np.ndarray, Float[np.ndarray, "N R"]]:
    """Pair ids [N], and the log-odds of the right order of each pair after training."""
    ids, log_scores = records.read_scores(workdir / row["workdir"] / "eval" / "trained.jsonl")
    return ids, evaluate.margins(log_scores, row["votes"], row["pairwise"])


def paired(workdir: Path, rows: Rows, base: Rows, measure: Callable) -> list[Float[np.ndarray, " N"]]:
    """For each seed that both have, a measure of margins less that of the reference, on the same held-out pairs."""
    of_seed = {row["seed"]: row for row in base}
    return [difference(workdir, row, of_seed[row["seed"]], measure) for row in rows if row["seed"] in of_seed]


def difference(workdir: Path, row: dict, other: dict, measure: Callable) -> Float[np.ndarray, " N"]:
    """Of every pair that both were asked about: the mean of a measure over groups of votes, less the other's."""
    (ids, margin), (other_ids, other_margin) = (margins(workdir, one) for one in (row, other))
    _, mine, others = np.intersect1d(ids, other_ids, return_indices=True)
    return measure(margin[mine]).mean(1) - measure(other_margin[others]).mean(1)


def two_level_interval(differences: list[Float[np.ndarray, " N"]]) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean: seeds are drawn anew, and pairs within each."""
    rng = np.random.default_rng(0)
    drawn = np.stack(
        [rng.choice(one, (RESAMPLES, len(one))).mean(1) for one in differences]
    )  # a mean of each seed's pairs drawn anew, for each resample
    seeds = rng.integers(0, len(differences), (RESAMPLES, len(differences)))
    means = drawn[seeds, np.arange(RESAMPLES)[:, None]].mean(1)
    return tuple(np.percentile(means, (2.5, 97.5)))


def figure(workdir: Path, rows: Rows) -> Figure:
    """Accuracy against three budgets and against votes, calibration, and the two weights during training."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    picture = Figure(figsize=(16, 8), layout="constrained")
    axes = picture.subplots(2, 4).ravel()
    for index, method in enumerate(methods):
        part = [row for row in rows if row["method"] == method and row["budget"] == "pairs"]
        style = {"color": f"C{index % 10}", "linestyle": "-" if index < 10 else "--", "label": method}
        steps = [steps_of(workdir, row) for row in part]
        for axis, name in zip(axes, ("pairs", "sample/tokens", "time/step_seconds")):
            draw_against(axis, part, steps, name, style)
        draw_votes(axes[3], workdir, part, style)
        draw_calibration(axes[4], workdir, part, style)
        draw_curve(axes[5], steps, "train/misalignment_weight", style)
        draw_curve(axes[6], steps, "train/effective_thoughts", style)
    titles = ("pairs seen", "generated tokens", "seconds of training", "votes k", "said probability", "step", "step")
    ylabels = ["held-out accuracy"] * 4 + ["share that is right", "misalignment weight", "effective thoughts"]
    for axis, title, ylabel in zip(axes, titles, ylabels):
        axis.set(xlabel=title, ylabel=ylabel)
        axis.grid(alpha=0.3)
    axes[1].xaxis.set_major_formatter(EngFormatter(sep=""))
    axes[3].set_xscale("log", base=2)
    axes[7].axis("off")
    axes[7].legend(*axes[0].get_legend_handles_labels(), loc="center", title="mean over seeds")
    return picture


def steps_of(workdir: Path, row: dict) -> Rows:
    steps = files.read_lines(workdir / row["workdir"] / "metrics.jsonl")
    return [step | {"pairs": row["pairs"] / row["steps"]} for step in steps]


def draw_against(axis: Axes, rows: Rows, steps: list[Rows], name: str, style: dict) -> None:
    """Accuracy of the curve's pairs against what was used so far; the base model is the first point."""
    curves = []
    for row, run in zip(rows, steps):
        used = np.cumsum([step.get(name, 0.0) for step in run])
        points = [(u, step["eval/accuracy"]) for u, step in zip(used, run) if "eval/accuracy" in step]
        if points and used[-1] > 0:
            curves.append([(0.0, row["base_accuracy"]), *points])
    shortest = min(map(len, curves), default=0)
    if shortest > 1:
        x, y = np.array([curve[:shortest] for curve in curves]).mean(0).T
        axis.plot(x, y, marker=".", **style)


def draw_votes(axis: Axes, workdir: Path, rows: Rows, style: dict) -> None:
    curves = []
    for row in rows:
        _, log_scores = records.read_scores(workdir / row["workdir"] / "eval" / "trained.jsonl")
        votes, wins = votes_curve(log_scores, row["pairwise"])
        curves.append(wins)
    if curves:
        axis.plot(votes, np.mean(curves, 0), marker=".", **style)


def draw_calibration(axis: Axes, workdir: Path, rows: Rows, style: dict) -> None:
    """Share of right answers among those said with a probability, in ten bins of all seeds."""
    if not rows:
        return
    points = calibration(np.concatenate([margins(workdir, row)[1].ravel() for row in rows]))
    axis.plot([0.5, 1], [0.5, 1], color="0.7", linewidth=1)
    if points:
        axis.plot(*np.array(points).T, marker=".", **style)


def votes_curve(log_scores: Float[np.ndarray, "N S K"], pairwise: bool) -> tuple[list[int], list[float]]:
    """Numbers of votes, powers of two up to K, and the accuracy with each."""
    votes = [k for k in (1, 2, 4, 8, 16, 32) if k <= log_scores.shape[2]]
    return votes, [float(evaluate.wins(evaluate.margins(log_scores, k, pairwise)).mean()) for k in votes]


def calibration(margin: Float[np.ndarray, " N"], least: int = 30) -> list[tuple[float, float]]:
    """(mean probability said, share that is right) in ten bins of [0.5, 1], those that hold `least` margins."""
    said, right = expit(np.abs(margin)), evaluate.wins(margin)
    bins = np.minimum(((said - 0.5) * 20).astype(int), 9)
    held = [bins == b for b in range(10) if (bins == b).sum() >= least]
    return [(float(said[own].mean()), float(right[own].mean())) for own in held]


def draw_curve(axis: Axes, steps: list[Rows], name: str, style: dict) -> None:
    curves = [[step[name] for step in run if name in step] for run in steps]
    shortest = min(map(len, curves), default=0)
    if shortest:
        smooth = np.mean([curve[:shortest] for curve in curves], 0)
        axis.plot(np.arange(1, shortest + 1), smooth, linewidth=1, **style)
