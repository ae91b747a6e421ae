"""The curves of a run's report: the choice of pictures, and their drawing as inline SVG.

Every run has the pictures of `common`; an objective adds its own, `Objective.panels`.
"""

import io
import math
import re

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from dwrl_jax.objectives.parts.panels import LEARNING, OPTIMISATION, SPEED, SUBJECTS, THOUGHTS, Panel
from dwrl_jax.workdir.records import Series

MAX_POINTS = 300  # of a curve
# Stand-ins that matplotlib accepts as colours. The page's CSS gives each of them a value for light and for dark mode.
INK = {
    "#000001": "var(--axis)",
    "#000002": "var(--blue)",
    "#000003": "var(--orange)",
    "#000004": "var(--green)",
    "#000005": "var(--violet)",
    "#000006": "var(--bad)",
}
AXIS, *COLORS, ALARM = INK
NOT_DRAWN = ("sample/tokens",)  # the throughput shows it


def common(series: Series) -> list[Panel]:
    """The pictures that do not depend on the objective. `series` has the phases of losses and gradient norms."""
    train, held = "training pairs", "held out"
    accuracy = {"train/pair_accuracy": train, "eval/accuracy": held}
    speed = {"sample/tokens_per_second": "sampling", "train/tokens_per_second": "training"}
    sureness = {"eval/brier": "Brier", "eval/ece": "ECE"}
    return [
        Panel(LEARNING, "Pair accuracy", "%", accuracy, 100, {"chance": 50}),
        Panel(LEARNING, "Pair NLL", "nats", {"train/pair_nll": train, "eval/nll": held}, lines={"chance": math.log(2)}),
        Panel(LEARNING, "Ties", "% of pairs", {"train/ties": train, "eval/ties": held}, 100),
        Panel(LEARNING, "Calibration", "error", sureness),
        Panel(LEARNING, "The two orders disagree", "% of pairs", {"train/flips": train, "eval/flips": held}, 100),
        Panel(LEARNING, "Position bias", "P(first is better) − 1/2", {"eval/position_bias": held}, lines={"none": 0}),
        Panel(THOUGHTS, "Cut off at the limit", "% of thoughts", {"train/cut_off": "share"}, 100),
        Panel(THOUGHTS, "Stopped by another end token", "% of thoughts", {"train/other_end": "share"}, 100),
        Panel(OPTIMISATION, "Loss", "mean over pairs", phases(series, "train/loss_")),
        Panel(OPTIMISATION, "Gradient norm", "L2", phases(series, "train/grad_norm_")),
        Panel(SPEED, "Throughput", "tokens / s", speed),
        Panel(SPEED, "A step", "s", {"time/step_seconds": "whole step"}),
        Panel(SPEED, "Padding", "% of positions", {"data/padding": "prefixes", "train/padding": "whole update"}, 100),
    ]


def phases(series: Series, prefix: str) -> dict[str, str]:
    """The metrics whose names begin with `prefix`. The label of each is the rest of its name, the phase."""
    return {name: name.removeprefix(prefix).replace("_", " ") for name in series if name.startswith(prefix)}


def smoothed(values: np.ndarray) -> np.ndarray:
    """Centred moving average over about 1/20 of the run, its window cut at both ends."""
    kernel = np.ones(2 * (len(values) // 40) + 1)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most MAX_POINTS points: the lowest and the highest of every stretch, so that spikes stay."""
    if len(values) <= MAX_POINTS:
        return steps, values
    stretches = np.array_split(np.arange(len(values)), MAX_POINTS // 2)
    keep = sorted({i for s in stretches for i in (s[values[s].argmin()], s[values[s].argmax()])})
    return steps[keep], values[keep]


def draw(panel: Panel, series: Series, config: dict, name: str) -> dict | None:
    """Draw a panel as inline SVG whose ids begin with `name`. None if none of its metrics was logged."""
    figure = Figure(figsize=(4.2, 2.3), layout="constrained")
    axes, legend = figure.subplots(), []
    for metric, label in panel.series.items():
        steps, values = series.get(metric, (np.array([]), np.array([])))
        finite = np.isfinite(values) & ((values > 0) | (not panel.log))
        steps, values = steps[finite], values[finite] * panel.scale
        if not len(values):
            continue
        color = COLORS[len(legend) % len(COLORS)]
        legend.append((label, INK[color]))
        if metric.startswith("eval/"):
            axes.plot(*thinned(steps, values), "o", color=color, markersize=4.5)
            continue
        axes.plot(*thinned(steps, values), color=color, alpha=0.28, linewidth=0.8)
        axes.plot(*thinned(steps, smoothed(values)), "." if len(values) == 1 else "-", color=color, linewidth=1.9)
    if not legend:
        return None
    for label, given in panel.lines.items():
        height = config.get(given) if isinstance(given, str) else given
        if height is not None:
            color = ALARM if label == "alarm" else AXIS
            axes.axhline(height, color=color, linewidth=1, linestyle=(0, (4, 3)))
            place = {"transform": axes.get_yaxis_transform(), "ha": "right", "va": "bottom", "fontsize": 8}
            axes.text(0.995, height, label, color=color, **place)
    axes.set(xlabel="step", ylabel=panel.unit, yscale="log" if panel.log else "linear")
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
    if not panel.log:
        axes.yaxis.set_major_formatter(EngFormatter(sep="") if panel.unit == "tokens / s" else "{x:.5g}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.22, linewidth=0.6)
    return {"title": panel.title, "legend": legend, "svg": to_svg(figure, name)}


def to_svg(figure: Figure, name: str) -> str:
    """The figure as an <svg> element: no metadata, colours from the page's CSS, ids unique by `name`."""
    out = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    svg = out.getvalue()[out.getvalue().index("<svg") :]
    svg = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(
        r'(<svg[^>]*?) height="[^"]*"',
        r"\1",
        re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1),
        count=1,
    )
    for stand_in, css in INK.items():
        svg = svg.replace(stand_in, css)
    return svg


def curves(series: Series, panels: tuple[Panel, ...], config: dict) -> dict[str, list[dict]]:
    """{subject: drawn pictures} of a run: the common ones and `panels`, without those that have nothing to show.

    `config` has its keys joined by dots.
    """
    style = {"text.color": AXIS, "axes.labelcolor": AXIS, "axes.edgecolor": AXIS, "grid.color": AXIS}
    drawn = {subject: [] for subject in SUBJECTS}
    with matplotlib.rc_context(style | {"xtick.color": AXIS, "ytick.color": AXIS, "font.size": 9.5}):
        for number, panel in enumerate([*common(series), *panels]):
            if picture := draw(panel, series, config, f"f{number}"):
                drawn[panel.subject].append(picture)
    return {subject: pictures for subject, pictures in drawn.items() if pictures}
