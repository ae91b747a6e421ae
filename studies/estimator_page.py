"""Figures of estimator.py as a page: the picture, and a table of all pairs together."""

from pathlib import Path

from matplotlib.figure import Figure

from dwrl_jax.core import files
from studies.pages import device, splice, table

MEASURES = {
    "bias": "bias, |E ĝ − g| / |g|",
    "sd": "standard deviation / |g|",
    "signal_to_noise": "signal to noise, |E ĝ| / sd",
    "cosine": "cosine of one estimate with g",
}
HEADS = {"bias": "bias", "sd": "sd", "signal_to_noise": "signal / noise", "cosine": "cosine"}
HEADS |= {"mean_cosine": "cosine of the mean"}


def figure(data: dict) -> Figure:
    """A panel for each measure and part: a line for each estimator, against the group size."""
    parts = list(dict.fromkeys(row["pair"] for row in data["rows"]))
    picture = Figure(figsize=(3.3 * len(parts), 2.6 * len(MEASURES)), layout="constrained")
    grid = picture.subplots(len(MEASURES), len(parts), sharex=True, sharey="row", squeeze=False)
    for axes, part in zip(grid.T, parts):
        for axis, measure in zip(axes, MEASURES):
            draw_panel(axis, [row for row in data["rows"] if row["pair"] == part], measure)
        axes[0].set_title(title(data, part), fontsize=10)
        axes[-1].set_xlabel("n, thoughts per response")
    for axis, label in zip(grid[:, 0], MEASURES.values()):
        axis.set_ylabel(label)
    picture.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=5)
    return picture


def title(data: dict, part: str) -> str:
    about = data["pairs"].get(part)
    if about is None:
        return part
    spread = " and ".join(f"{value:.1f}" for value in about["spread"])
    return f"{part}: P = {about['probability']:.2f},\nVar s / p² = {spread}"


def draw_panel(axis, rows: list[dict], measure: str) -> None:
    """A line for each estimator. A bias that may be chance is left out."""
    for index, name in enumerate(dict.fromkeys(row["estimator"] for row in rows)):
        shown = [row for row in rows if row["estimator"] == name and row[measure]]
        if measure == "bias":
            shown = [row for row in shown if row["bias"] > row["chance"]]
        line = ([row["n"] for row in shown], [row[measure] for row in shown])
        axis.plot(*line, marker=".", label=name, color=f"C{index}", linestyle="--" if index == 0 else "-")
    axis.set_xscale("log", base=2)
    axis.set_yscale("linear" if measure == "cosine" else "log")
    axis.xaxis.set_major_formatter("{x:.0f}")
    axis.grid(alpha=0.3)


def number(row: dict, measure: str) -> str:
    value = row[measure]
    if value is None:
        return "–"
    if measure == "bias" and value <= row["chance"]:
        return f"< {row['chance']:.3f}"
    return f"{value:.2f}" if value >= 0.095 else f"{value:.3f}"


def report(data: dict, picture: str) -> str:
    """The generated part of the page: command and machine, the picture, the table of the last part."""
    host, last = data["machine"], data["rows"][-1]["pair"]
    rows = [
        [row["estimator"], str(row["n"]), *(number(row, measure) for measure in HEADS)]
        for row in data["rows"]
        if row["pair"] == last
    ]
    lines = [
        f"    {data['command']}",
        "",
        f"{device(data)}; jax {host['jax']}; commit `{host['commit']}`; {host['date']}. A random judge of"
        f" {data['parameters']:,} parameters and all its {data['thoughts']} thoughts of at most two tokens;"
        f" {data['draws']:,} groups for each point.",
        "",
        f"![Bias, standard deviation, signal to noise and cosine by group size]({picture})",
        "",
        f"The gradient of {last}, relative to the norm of the exact one:",
        "",
        *table(["estimator", "n", *HEADS.values()], rows),
    ]
    return "\n".join(lines)


def write(data: dict, folder: Path) -> list[Path]:
    """The raw figures, the picture and the page, in this order. The page's text outside its marks stays."""
    folder.mkdir(parents=True, exist_ok=True)
    raw, picture, page = (folder / f"estimator.{ending}" for ending in ("json", "png", "md"))
    files.write_json(raw, data, indent=1)
    figure(data).savefig(picture, dpi=90)
    text = page.read_text(encoding="utf-8") if page.exists() else "# The gradient estimate: bias and variance\n"
    page.write_text(splice(text, report(data, picture.name)), encoding="utf-8")
    return [raw, picture, page]
