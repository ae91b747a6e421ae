"""The curves of a run's report: which metrics stand together, and their drawing as inline SVG."""

import io
import math
import re
from dataclasses import dataclass, field

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

MAX_POINTS = 300  # of a curve
# Stand-ins that matplotlib accepts as colours; the page's CSS gives each a value for light and for dark mode.
INK = {
    "#000001": "var(--axis)",
    "#000002": "var(--blue)",
    "#000003": "var(--orange)",
    "#000004": "var(--bad)",
}
AXIS, BLUE, ORANGE, ALARM = INK

Series = dict[str, tuple[np.ndarray, np.ndarray]]  # metric name -> (steps, values)


@dataclass(frozen=True)
class Panel:
    """One small picture: `series` maps metrics to labels, `lines` labels to heights (None: not drawn)."""

    title: str
    unit: str
    series: dict[str, str]
    scale: float = 1.0
    lines: dict[str, float | None] = field(default_factory=dict)
    log: bool = False


def subjects(group_size: int | None) -> dict[str, list[Panel]]:
    """The pictures, grouped by what they tell; `group_size` (thoughts per response) may be unknown."""
    accuracy = {"train/pair_accuracy": "training pairs", "eval/accuracy": "held out"}
    flips = {"train/flips": "training pairs", "eval/flips": "held out"}
    nll = {"train/pair_nll": "training pairs", "eval/nll": "held out"}
    score = {"train/log_preference_score_chosen": "chosen", "train/log_preference_score_rejected": "rejected"}
    gap = {"train/logp_gap_mean": "mean", "train/logp_gap_max": "largest"}
    gradient = {"train/grad_norm_score": "score", "train/grad_norm_thought": "thought"}
    gradient |= {"train/grad_norm_joint": "joint", "train/grad_norm": "norm"}
    speed = {"sample/tokens_per_second": "sampling", "train/tokens_per_second": "training"}
    effective, flat = {"train/effective_thoughts": "1 / Σ w²"}, {"all weights equal": group_size}
    mass, alarm = {"train/answer_mass": "mean over thoughts"}, {"alarm": 0.95}
    pair_weight = {"train/misalignment_weight": "mean over pairs"}
    return {
        "Does it learn?": [
            Panel("Pair accuracy", "%", accuracy, 100, {"chance": 50}),
            Panel("Pair NLL", "nats", nll, lines={"chance": math.log(2)}),
            Panel("The two orders disagree", "% of pairs", flips, 100),
        ],
        "What it says about the responses": [
            Panel("Preference scores", "log p, nats", score),
            Panel("Mass on the answer tokens", "probability", mass, lines=alarm),
        ],
        "The two weights": [
            Panel("Misalignment weight", "p− / (p+ + p−)", pair_weight),
            Panel("Effective number of thoughts", "thoughts", effective, lines=flat),
        ],
        "Its thoughts": [
            Panel("Length", "tokens", {"train/thought_length": "mean"}),
            Panel("Cut off at the limit", "% of thoughts", {"train/cut_off": "share"}, 100),
            Panel("Entropy", "nats per token", {"train/entropy": "mean"}),
        ],
        "Optimisation": [
            Panel("Largest policy ratio", "new / old", {"train/ratio_max": "largest"}),
            Panel("Clipped", "% of tokens", {"train/clip_share": "share"}, 100),
            Panel("Gradient norm", "L2", gradient),
            Panel("Sampler against trainer", "|Δ log p|, nats", gap, lines={"alarm": 0.01}, log=True),
        ],
        "Speed": [
            Panel("Throughput", "tokens / s", speed),
            Panel("Padding", "% of positions", {"data/padding": "prefixes", "train/padding": "whole update"}, 100),
        ],
    }


def smoothed(values: np.ndarray) -> np.ndarray:
    """Centred moving average over about 1/20 of the run, its window cut at both ends."""
    kernel = np.ones(2 * (len(values) // 40) + 1)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most MAX_POINTS points that keep the lowest and highest of every stretch: spikes stay."""
    if len(values) <= MAX_POINTS:
        return steps, values
    stretches = np.array_split(np.arange(len(values)), MAX_POINTS // 2)
    keep = sorted({i for s in stretches for i in (s[values[s].argmin()], s[values[s].argmax()])})
    return steps[keep], values[keep]


def draw(panel: Panel, series: Series, name: str) -> dict | None:
    """Draw a panel as inline SVG whose ids begin with `name`; None if no metric of it was logged."""
    figure = Figure(figsize=(4.2, 2.3), layout="constrained")
    axes, legend = figure.subplots(), []
    for metric, label in panel.series.items():
        steps, values = series.get(metric, (np.array([]), np.array([])))
        finite = np.isfinite(values) & ((values > 0) | (not panel.log))
        steps, values = steps[finite], values[finite] * panel.scale
        if not len(values):
            continue
        color = ORANGE if legend else BLUE
        legend.append((label, INK[color]))
        if metric.startswith("eval/"):
            axes.plot(*thinned(steps, values), "o", color=color, markersize=4.5)
            continue
        axes.plot(*thinned(steps, values), color=color, alpha=0.28, linewidth=0.8)
        axes.plot(*thinned(steps, smoothed(values)), "." if len(values) == 1 else "-", color=color, linewidth=1.9)
    if not legend:
        return None
    for label, height in panel.lines.items():
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
    """The figure as one <svg> element: no metadata, colours from the page's CSS, ids unique by `name`."""
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


def curves(series: Series, group_size: int | None) -> dict[str, list[dict]]:
    """Subject -> drawn panels, without those that have nothing to show."""
    style = {"text.color": AXIS, "axes.labelcolor": AXIS, "axes.edgecolor": AXIS, "grid.color": AXIS}
    with matplotlib.rc_context(style | {"xtick.color": AXIS, "ytick.color": AXIS, "font.size": 9.5}):
        drawn = {
            subject: [draw(panel, series, f"f{i}{j}") for j, panel in enumerate(panels)]
            for i, (subject, panels) in enumerate(subjects(group_size).items())
        }
    kept = {subject: [panel for panel in panels if panel] for subject, panels in drawn.items()}
    return {subject: panels for subject, panels in kept.items() if panels}
