"""Tables and figures of the finished runs of a suite."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from scipy.special import expit

from dwrl_jax.core import files
from dwrl_jax.evaluation import metrics
from dwrl_jax.evaluation.calibration import confident_half, tempered_losses
from dwrl_jax.reporting.runs import FinishedRun

RESAMPLES = 4000
BUDGETS = {"pairs": "pairs", "generated_tokens": "generated tokens", "seconds": "seconds"}
COLUMNS = {
    "method": "method",
    "budget": "as much of",
    "seeds": "seeds",
    "before": "% before",
    "accuracy": "accuracy %, mean ± sd",
    "accuracy_less": "less {reference}, 95 % interval",
    "nll": "NLL",
    "nll_less": "less {reference}, 95 % interval",
    "tempered": "NLL after one temperature",
    "tempered_less": "less {reference}, 95 % interval",
    "pairs": "pairs",
    "tokens": "generated tokens",
    "seconds": "seconds",
}
Runs = list[FinishedRun]


def write(workdir: Path, runs: Runs, reference: str) -> None:
    """Write workdir/table.md and, for each config, workdir/figures_CONFIG.png about the finished runs."""
    parts = []
    for config in dict.fromkeys(run.row["config"] for run in runs):
        part = [run for run in runs if run.row["config"] == config]
        parts.append(f"**{config}**\n\n{table(part, reference)}")
        figure(part).savefig(workdir / f"figures_{config}.png", dpi=110)
    files.write_text(workdir / "table.md", "\n\n".join(parts) + "\n")


def select(runs: Runs, **wanted) -> Runs:
    """The runs whose rows have these values."""
    return [run for run in runs if all(run.row[name] == value for name, value in wanted.items())]


def methods_of(runs: Runs) -> list[str]:
    """Each method once, in the order of the runs."""
    return list(dict.fromkeys(run.row["method"] for run in runs))


def mean(runs: Runs, name: str) -> float:
    """The mean over runs of a number of their rows."""
    return float(np.mean([run.row[name] for run in runs]))


def markdown(titles: list[str], lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (titles, ["---"] * len(titles), *lines))


def table(runs: Runs, reference: str, columns: tuple[str, ...] = tuple(COLUMNS)) -> str:
    """Markdown with a line for each method and budget: means over seeds, and paired differences from the reference.

    `columns` are names of COLUMNS. Without "budget" among them, the lines are those of equal pairs.
    """
    base = select(runs, method=reference, budget="pairs")
    lines = []
    for method in methods_of(runs):
        for budget in BUDGETS if "budget" in columns else ("pairs",):
            part = select(runs, method=method, budget=budget)
            if part:
                lines.append(bold(line(part)) if method == reference else line(part) | differences(part, base))
    lines += world_lines(base)
    titles = [COLUMNS[name].format(reference=reference) for name in columns]
    return markdown(titles, [[cells.get(name, "") for name in columns] for cells in lines])


def line(runs: Runs) -> dict[str, str]:
    """Cells of the runs of one method, by column."""
    return {
        "method": f"`{runs[0].row['method']}`",
        "budget": BUDGETS[runs[0].row["budget"]],
        "seeds": str(len(runs)),
        "before": f"{100 * mean(runs, 'base_accuracy'):.1f}",
        "accuracy": accuracy([run.row for run in runs]),
        "nll": f"{mean(runs, 'nll'):.3f}",
        "tempered": f"{np.mean([tempered_losses(log_odds(run)).mean() for run in runs]):.3f}",
        "pairs": f"{mean(runs, 'pairs'):,.0f}",
        "tokens": f"{mean(runs, 'generated_tokens'):,.0f}",
        "seconds": f"{mean(runs, 'seconds'):,.0f}",
    }


def bold(cells: dict[str, str]) -> dict[str, str]:
    """The line of the reference."""
    return cells | {name: f"**{cells[name]}**" for name in ("method", "accuracy", "nll")}


def differences(runs: Runs, base: Runs) -> dict[str, str]:
    """Cells of the paired differences from the reference, with their intervals. None without a common seed."""
    cells = {}
    measures = (
        ("accuracy", metrics.wins, 100, 1),
        ("nll", metrics.losses, 1, 3),
        ("tempered", tempered_losses, 1, 3),
    )
    for name, measure, unit, digits in measures:
        parts = paired(runs, base, measure)
        if parts:
            numbers = (np.mean([part.mean() for part in parts]), *two_level_interval(parts))
            centre, low, high = (f"{unit * number:+.{digits}f}" for number in numbers)
            cells[f"{name}_less"] = f"{centre} ({low} to {high})"
    return cells


def world_lines(runs: Runs) -> list[dict[str, str]]:
    """Cells of the reference readers of the built-in world: the best no-thought reader and the noise ceiling."""
    lines = []
    for name, title in (("no_thought", "best no-thought reader"), ("ceiling", "noise ceiling")):
        known = [run.row["known"][name] for run in runs if run.row["known"][name]]
        if known:
            nll = np.mean([row["nll"] for row in known])
            lines.append({"method": title, "seeds": str(len(known)), "accuracy": accuracy(known), "nll": f"{nll:.3f}"})
    return lines


def votes_table(runs: Runs, votes: tuple[int, ...] = (1, 8, 32)) -> str:
    """Markdown with a line for each method at equal pairs: means over seeds by the number of votes.

    The calibration error is that with the most votes, and so is the accuracy on the more confident half of the pairs.
    Flips are the pairs about which a pairwise judge changes its mind when the two responses change place.
    """
    titles = ["method", *(f"accuracy %, k = {k}" for k in votes), *(f"NLL, k = {k}" for k in votes)]
    lines = []
    for method in methods_of(runs):
        part = select(runs, method=method, budget="pairs")
        if part:
            lines.append([f"`{method}`", *votes_line(part, votes)])
    return markdown([*titles, "calibration error", "confident half %", "flips %"], lines)


def votes_line(runs: Runs, votes: tuple[int, ...]) -> list[str]:
    """Cells of the runs of one method; empty for more votes than were drawn."""

    def over_seeds(measure, count, style, unit=1):
        if not all(count <= run.log_scores.shape[-1] for run in runs):
            return ""
        return style.format(unit * np.mean([measure(log_odds(run, count)).mean() for run in runs]))

    row = runs[0].row
    flips = [metrics.order_metrics(run.log_scores, run.row["votes"])["flips"] for run in runs if row["pairwise"]]
    return [
        *(over_seeds(metrics.wins, count, "{:.1f}", 100) for count in votes),
        *(over_seeds(metrics.losses, count, "{:.3f}") for count in votes),
        f"{mean(runs, 'ece'):.3f}",
        f"{100 * np.mean([confident_half(log_odds(run)) for run in runs]):.1f}",
        f"{100 * np.mean(flips):.1f}" if flips else "",
    ]


def accuracy(rows: list[dict]) -> str:
    """The mean and the standard deviation over seeds, in %."""
    values = 100 * np.array([row["accuracy"] for row in rows])
    return f"{values.mean():.1f}" + (f" ± {values.std(ddof=1):.1f}" if len(rows) > 1 else "")


def log_odds(run: FinishedRun, votes: int | None = None) -> Float[np.ndarray, "N R"]:
    """Log-odds of the right order of each pair. The default of `votes` is the number in the run's row."""
    return metrics.log_odds(run.log_scores, votes or run.row["votes"], run.row["pairwise"])


def paired(runs: Runs, base: Runs, measure: Callable) -> list[Float[np.ndarray, " N"]]:
    """For each common seed, a measure of log-odds less that of the reference, on the same held-out pairs."""
    of_seed = {run.row["seed"]: run for run in base}
    seeds = [(run, of_seed[run.row["seed"]]) for run in runs if run.row["seed"] in of_seed]
    return [difference(run, other, measure) for run, other in seeds]


def difference(run: FinishedRun, other: FinishedRun, measure: Callable) -> Float[np.ndarray, " N"]:
    """By common pair: the mean of a measure over groups of votes, less the other run's."""
    _, mine, others = np.intersect1d(run.ids, other.ids, return_indices=True)
    return measure(log_odds(run)[mine]).mean(1) - measure(log_odds(other)[others]).mean(1)


def two_level_interval(differences: list[Float[np.ndarray, " N"]]) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean: seeds are drawn anew, and pairs within each seed."""
    rng = np.random.default_rng(0)
    # [seeds, resamples]: the mean of each seed's pairs, drawn anew
    drawn = np.stack([rng.choice(part, (RESAMPLES, len(part))).mean(1) for part in differences])
    seeds = rng.integers(0, len(differences), (RESAMPLES, len(differences)))
    means = drawn[seeds, np.arange(RESAMPLES)[:, None]].mean(1)
    return tuple(np.percentile(means, (2.5, 97.5)))


def figure(runs: Runs) -> Figure:
    """Accuracy against three budgets and against votes, calibration, and the two weights during training."""
    picture = Figure(figsize=(16, 8), layout="constrained")
    axes = picture.subplots(2, 4).ravel()
    for index, method in enumerate(methods_of(runs)):
        part = select(runs, method=method, budget="pairs")
        style = {"color": f"C{index % 10}", "linestyle": "-" if index < 10 else "--", "label": method}
        for axis, name in zip(axes, ("pairs", "sample/tokens", "time/step_seconds")):
            draw_against(axis, part, name, style)
        draw_votes(axes[3], part, style)
        draw_calibration(axes[4], part, style)
        draw_curve(axes[5], part, "train/misalignment_weight", style)
        draw_curve(axes[6], part, "train/effective_thoughts", style)
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


def draw_against(axis: Axes, runs: Runs, name: str, style: dict) -> None:
    """Accuracy on the curve's pairs against the use of a budget so far. The base model is the first point."""
    curves = []
    for run in runs:
        row, right = run.row, run.curve("eval/accuracy")
        each = np.full(len(right), row["pairs"] / row["steps"]) if name == "pairs" else np.nan_to_num(run.curve(name))
        used, asked = np.cumsum(each), ~np.isnan(right)
        if asked.any() and used[-1] > 0:
            curves.append([(0.0, row["base_accuracy"]), *zip(used[asked], right[asked])])
    shortest = min(map(len, curves), default=0)
    if shortest > 1:
        x, y = np.array([curve[:shortest] for curve in curves]).mean(0).T
        axis.plot(x, y, marker=".", **style)


def draw_votes(axis: Axes, runs: Runs, style: dict) -> None:
    """Accuracy against the number of votes."""
    if runs:
        votes, curves = zip(*(votes_curve(run.log_scores, run.row["pairwise"]) for run in runs))
        axis.plot(votes[0], np.mean(curves, 0), marker=".", **style)


def draw_calibration(axis: Axes, runs: Runs, style: dict) -> None:
    """Share of right answers against the said probability, in ten bins of all seeds together."""
    if not runs:
        return
    points = calibration(np.concatenate([log_odds(run).ravel() for run in runs]))
    axis.plot([0.5, 1], [0.5, 1], color="0.7", linewidth=1)
    if points:
        axis.plot(*np.array(points).T, marker=".", **style)


def draw_curve(axis: Axes, runs: Runs, name: str, style: dict) -> None:
    """The mean of a metric over seeds, by step."""
    curves = [curve[~np.isnan(curve)] for curve in (run.curve(name) for run in runs)]
    shortest = min(map(len, curves), default=0)
    if shortest:
        smooth = np.mean([curve[:shortest] for curve in curves], 0)
        axis.plot(np.arange(1, shortest + 1), smooth, linewidth=1, **style)


def votes_curve(log_scores: Float[np.ndarray, "N S K"], pairwise: bool) -> tuple[list[int], list[float]]:
    """Numbers of votes (powers of two up to K and 32), and the accuracy with each."""
    votes = [k for k in (1, 2, 4, 8, 16, 32) if k <= log_scores.shape[2]]
    return votes, [float(metrics.wins(metrics.log_odds(log_scores, k, pairwise)).mean()) for k in votes]


def calibration(log_odds: Float[np.ndarray, " N"], least: int = 30) -> list[tuple[float, float]]:
    """(mean said probability, share that is right) of each of ten bins of [0.5, 1] with at least `least` pairs."""
    said, right = expit(np.abs(log_odds)), metrics.wins(log_odds)
    bins = np.minimum(((said - 0.5) * 20).astype(int), 9)
    held = [bins == b for b in range(10) if (bins == b).sum() >= least]
    return [(float(said[part].mean()), float(right[part].mean())) for part in held]
