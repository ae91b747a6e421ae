"""Figures of run.py as a page: the fitted lines, the picture, the tables."""

import math
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dwrl_jax.core import files
from studies.pages import device, splice, table

WORKS = ("sample", "update", "step")
SWEEPS = {"group": "thoughts per response", "plen": "prompt length, tokens", "new": "thought length, tokens"}
BAR = 0.15  # largest relative deviation from the line that counts as linear


def positions(sizes: dict) -> int:
    """Token positions that the model computes in sampling. Each phase of the update computes as many."""
    question = 1
    return sizes["prompts"] * (sizes["plen"] + sizes["group"] * (1 + sizes["new"] + question))


def sweep(data: dict, name: str) -> list[dict]:
    """The measured rows of a sweep, in the order of its values."""
    wanted = [data["base"] | {name: value} for value in data["sweeps"][name]]
    return [next(row for row in data["points"] if row["sizes"] == sizes) for sizes in wanted]


def fit(x, y) -> tuple[float, float, float | None]:
    """Intercept and slope of the line that is closest to y in relative terms, and its largest relative deviation.

    The deviation is None for fewer than three points, as a line goes through any two.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    intercept, slope = np.linalg.lstsq(np.stack([1 / y, x / y], 1), np.ones(len(y)))[0]
    deviation = np.abs((intercept + slope * x) / y - 1).max()
    return float(intercept), float(slope), float(deviation) if len(x) > 2 else None


def fit_of(data: dict, name: str, work: str):
    rows = sweep(data, name)
    return fit([positions(row["sizes"]) for row in rows], [np.median(row["seconds"][work]) for row in rows])


def draw(data: dict, path: Path) -> None:
    """A panel for each work and sweep."""
    figure = Figure(figsize=(max(4.2 * len(data["sweeps"]), 6.3), 9), layout="constrained")
    title = (
        f"Seconds by positions computed\n{data['shape']}, {data['dtype']}; {device(data)}; jax {data['machine']['jax']}"
    )
    figure.suptitle(title, fontsize=11)
    grid = figure.subplots(len(WORKS), len(data["sweeps"]), squeeze=False)
    for i, work in enumerate(WORKS):
        for j, name in enumerate(data["sweeps"]):
            draw_panel(grid[i, j], data, name, work)
    grid[0, 0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def draw_panel(axes, data: dict, name: str, work: str) -> None:
    """Medians by positions, with swept values and the ranges of the repeats, and the fitted line."""
    rows = sweep(data, name)
    x = np.array([positions(row["sizes"]) for row in rows])
    seconds = np.array([row["seconds"][work] for row in rows])
    middle = np.median(seconds, 1)
    intercept, slope, deviation = fit_of(data, name, work)
    ends = np.array([0, x.max() * 1.05])
    axes.plot(ends, intercept + slope * ends, color="C1", linewidth=1.2, label="line fitted to the medians")
    spread = [middle - seconds.min(1), seconds.max(1) - middle]
    axes.errorbar(x, middle, spread, fmt="o", color="C0", markersize=4, capsize=3, label="median and range")
    for i, row in enumerate(rows):
        offset, side = ((7, -9), "left") if i % 2 else ((-7, 4), "right")  # neighbours can be close
        label, style = f"{row['sizes'][name]:,}", {"fontsize": 8, "color": "0.35", "ha": side}
        axes.annotate(label, (x[i], middle[i]), offset, textcoords="offset points", **style)
    off = "" if deviation is None else f"\nat most {percent(deviation)} off the line"
    axes.set_title(f"{work}, by {SWEEPS[name]}{off}", fontsize=10)
    axes.set(xlabel="positions computed", ylabel=f"{work}, s", xlim=(0, x.max() * 1.08), ylim=(0, middle.max() * 1.25))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(color="0.92")


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def digits(x: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{x:,.{max(2 - math.floor(math.log10(abs(x) or 1)), 0)}f}"


def fit_table(data: dict) -> list[str]:
    lines = []
    for name in data["sweeps"]:
        for work in WORKS:
            intercept, slope, deviation = fit_of(data, name, work)
            off = "too few points" if deviation is None else percent(deviation)
            if deviation is not None and deviation > BAR:
                off = f"**{off}, above the bar**"
            lines.append([SWEEPS[name], work, digits(intercept), digits(1000 * slope), off])
    return table(["sweep", "work", "fixed, s", "s per 1,000 positions", "largest deviation"], lines)


def sweep_table(data: dict, name: str) -> list[str]:
    lines = []
    for row in sweep(data, name):
        sizes, count = row["sizes"], positions(row["sizes"])
        seconds = {work: np.median(row["seconds"][work]) for work in WORKS}
        tokens = sizes["prompts"] * sizes["group"] * sizes["new"] / seconds["sample"]
        rates = [digits(tokens), digits(count / seconds["update"])]
        times = [digits(seconds[work]) for work in WORKS]
        lines.append([f"{sizes[name]:,}", f"{count:,}", *times, *rates, digits(row["compile_s"])])
    works = [f"{work}, s" for work in WORKS]
    return table([SWEEPS[name], "positions", *works, "sampled tokens/s", "updated positions/s", "compile, s"], lines)


def report(data: dict, picture: str) -> str:
    """The generated part of the page."""
    host, base = data["machine"], data["base"]
    lines = [
        f"    {data['command']}",
        "",
        f"{device(data)}; jax {host['jax']}; commit `{host['commit']}`; {host['date']}. Model"
        f" `{data['shape']}`, {data['dtype']}, random. Times are medians of {data['repeats']} rounds. Sizes that are"
        f" not swept are {base['prompts']} responses, {base['group']} thoughts each, {base['plen']} tokens of"
        f" prompt and {base['new']} of thought.",
        "",
        f"![Seconds by positions computed]({picture})",
        "",
        "Time should be a straight line over positions = responses (prompt + thoughts (1 + thought + question));"
        f" the bar is a deviation of {100 * BAR:.0f} %. An update has two phases, so two passes over its positions.",
        "",
        *fit_table(data),
    ]
    for name in data["sweeps"]:
        lines += sweep_table(data, name)
    return "\n".join(lines)


def write(data: dict, folder: Path) -> list[Path]:
    """The raw figures, the picture and the page, in this order."""
    folder.mkdir(parents=True, exist_ok=True)
    raw, picture, page = (folder / f"speed.{ending}" for ending in ("json", "png", "md"))
    files.write_json(raw, data, indent=1)
    draw(data, picture)
    text = page.read_text(encoding="utf-8") if page.exists() else "# Speed\n"
    page.write_text(splice(text, report(data, picture.name)), encoding="utf-8")
    return [raw, picture, page]
