"""One self-contained page about a run: `python -m dwrl_jax.report --workdir=runs/x`.

Reads what a run leaves in its workdir, results.json (needed), metrics.jsonl and thoughts.jsonl (left out of
the page where absent), and writes report.html beside them. The page loads nothing: style and pictures are
inline. Shares are from 0 to 1 in the files and in % on the page.
"""

import argparse
import io
import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import jinja2
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from dwrl_jax.errors import UserError, exit_cleanly

MAX_POINTS = 300  # of a curve
MAX_PAIRS = 64  # held per logged step while thoughts.jsonl is read
SHOWN_PAIRS = 4
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
            Panel("Padding", "% of positions", {"data/padding": "share"}, 100),
        ],
    }


def read_results(path: Path) -> dict:
    """Read results.json. Raises UserError if it is absent, not JSON, or without base, trained or gain."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: pass the --workdir of a run that was evaluated") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    for key in ("base", "trained", "gain"):
        if not results.get(key):
            raise UserError(f'{path}: "{key}" is missing; evaluate both the base and the trained model')
        if odd := [k for k in results[key] if not re.fullmatch(r"k\d+", k)]:
            raise UserError(f'{path}: "{key}" has {odd[0]!r}, not a number of votes such as "k8"')
    return results


def read_jsonl(path: Path) -> Iterator[dict]:
    """Yield the objects of a JSON-lines file, none if it is absent; a half-written last line is dropped.

    Raises UserError naming file and line where a line is not an object with a "step".
    """
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
            except ValueError:
                if not line.endswith("\n") or not line.strip():
                    continue
                row = None
            if not isinstance(row, dict) or "step" not in row:
                raise UserError(f'{path}:{number}: not a JSON object with a "step"; remove the line')
            yield row


def read_series(path: Path) -> Series:
    """Every metric against its steps, in order; of a step that a resumed run repeated, the last line."""
    values: dict[str, dict[int, float]] = {}
    for row in read_jsonl(path):
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                values.setdefault(name, {})[row["step"]] = float(value)
    return {name: (np.array(sorted(at)), np.array([at[s] for s in sorted(at)])) for name, at in values.items()}


def read_thoughts(path: Path) -> dict[int, dict[int, dict]]:
    """First and last logged step -> pair -> (side, sample) -> row; held-out pairs where both have them.

    Holds MAX_PAIRS pairs of two steps per split, whatever the size of the file.
    """
    splits: dict[str, dict[int, dict[int, dict]]] = {}
    for row in read_jsonl(path):
        steps, step = splits.setdefault(row.get("split", "train"), {}), row["step"]
        if step not in steps:
            if len(steps) == 2 and min(steps) < step < max(steps):
                continue
            if len(steps) == 2:
                del steps[max(steps) if step > max(steps) else min(steps)]
            steps[step] = {}
        if row["pair"] in steps[step] or len(steps[step]) < MAX_PAIRS:
            steps[step].setdefault(row["pair"], {})[row["side"], row["sample"]] = row
    return splits[max(splits, key=lambda name: (len(splits[name]), name == "eval"))] if splits else {}


def moment(name: str, step: int, rows: dict) -> dict:
    """A pair as judged at one step: thoughts by falling weight and the mean score, for both sides."""
    sides = {side: [row for (s, _), row in rows.items() if s == side] for side in ("chosen", "rejected")}
    score = {side: sum(r["score"] for r in thoughts) / max(len(thoughts), 1) for side, thoughts in sides.items()}
    total = sum(score.values())
    ranked = {side: sorted(sides[side], key=lambda r: -r["thought_weight"]) for side in sides}
    probability = score["chosen"] / total if total else 0.5
    return {"name": name, "step": step, "thoughts": ranked, "score": score, "probability": probability}


def examples(steps: dict[int, dict[int, dict]]) -> list[dict]:
    """Pairs to show, from clearly right to clearly wrong at the last step; before and after if logged."""
    if not steps:
        return []
    first, last = min(steps), max(steps)
    both = steps[first].keys() & steps[last].keys() if first < last else set()
    moments = {pair: moment("after", last, rows) for pair, rows in steps[last].items() if pair in both or not both}
    order = sorted(moments, key=lambda pair: -moments[pair]["probability"])
    picks = np.unique(np.linspace(0, len(order) - 1, min(SHOWN_PAIRS, len(order))).round().astype(int))
    shown = [(order[i], [moments[order[i]]]) for i in picks]
    for pair, seen in shown:
        if both:
            seen.insert(0, moment("before", first, steps[first][pair]))
    if first < last and not both:
        shown += [(pair, [moment("before", first, rows)]) for pair, rows in list(steps[first].items())[:2]]
    return [{"pair": pair, "moments": seen} for pair, seen in shown if all(all(m["thoughts"].values()) for m in seen)]


def interval_picture(results: dict) -> dict:
    """Where (0 to 100, % of the width) intervals, references and ticks stand on one axis of accuracy."""
    votes = sorted({*results["base"], *results["trained"]}, key=lambda k: int(k[1:]))
    cells = [(k, m, results[m][k]) for k in votes for m in ("base", "trained") if k in results[m]]
    lines = {}
    for name, value in (results.get("reference") or {}).items():
        cell = value if isinstance(value, dict) else {"accuracy": value}
        if cell.get("accuracy") is not None:
            lines[name] = cell
    ends = [end for *_, cell in cells for end in cell["interval"]] + [c["accuracy"] for c in lines.values()]
    ticks = [t for t in MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(min(ends), max(ends)) if -0.01 < t < 1.01]
    low, high = min([*ends, *ticks]), max([*ends, *ticks])

    def place(value: float) -> float:
        return round(100 * (value - low) / (high - low), 2)

    rows = []
    for key, model, cell in cells:
        span = [place(end) for end in cell["interval"]]
        rows.append({"key": key, "model": model, "cell": cell, "at": place(cell["accuracy"]), "span": span})
    return {
        "rows": rows,
        "gains": sorted(results["gain"].items(), key=lambda item: int(item[0][1:])),
        "references": [{"name": name, "cell": c, "at": place(c["accuracy"])} for name, c in lines.items()],
        "ticks": [(f"{100 * tick:.0f}", place(tick)) for tick in ticks],
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


def warnings(series: Series, results: dict, group_size: int | None) -> list[tuple[str, str]]:
    """(what is wrong, what to do) from the mean over the last tenth of the run, at least ten steps."""
    recent = {name: float(np.mean(v[-max(10, len(v) // 10) :])) for name, (_, v) in series.items()}
    mass, cut_off = recent.get("train/answer_mass", 1.0), recent.get("train/cut_off", 0.0)
    gap, effective = recent.get("train/logp_gap_mean", 0.0), recent.get("train/effective_thoughts", 0.0)
    ties = {k: cell["ties"] for k, cell in results["trained"].items() if cell.get("ties") is not None}
    tied = max(ties, key=ties.get, default=None)
    broken = [name for name, (_, values) in series.items() if not np.isfinite(values).all()]
    found = [
        (mass < 0.95, f"The answer tokens hold {mass:.2f} of the probability (alarm below 0.95).",
         "The model wants to say something else: check the question's wording and the answer tokens."),
        (cut_off > 0.2, f"{100 * cut_off:.0f} % of the thoughts hit the length limit.",
         "Allow longer thoughts, or ask for short ones in the first question."),
        (group_size and group_size > 1 and effective > 0.95 * group_size,
         f"The weights of the thoughts are flat: {effective:.2f} of {group_size} thoughts count.",
         "Thoughts hardly change the score, so they learn little: raise the temperature or the group size."),
        (gap > 1e-2, f"Sampler and trainer differ by {gap:.3f} nats per token on average.",
         "Compute log-probabilities in float32, or recompute them with the trainer before the ratio."),
        (tied and ties[tied] > 0.05,
         f"{100 * ties.get(tied, 0):.1f} % of the held-out pairs are ties ({tied}).",
         "Scores are saturated or rounded: read them out in float32 and use more votes."),
        (broken, f"Values that are not finite: {', '.join(broken)}.",
         "Lower the learning rate, and look at the first step where it happens."),
    ]  # fmt: skip
    return [(what, action) for holds, what, action in found if holds]


def headline(results: dict) -> str:
    """The result in one sentence, at the most votes; claims a change only if the interval leaves zero out."""
    key = max(results["gain"], key=lambda k: int(k[1:]))
    before, after = (f"{100 * results[model][key]['accuracy']:.1f} %" for model in ("base", "trained"))
    (low, high), gain = results["gain"][key]["interval"], points(results["gain"][key]["accuracy"])
    votes = "with 1 vote" if key == "k1" else f"with {key[1:]} votes"
    interval = f"{100 * low:.1f} to {100 * high:.1f}".replace("-", "−")
    if low <= 0 <= high:
        return (
            f"No clear change: held-out pair accuracy is {after} after training and {before} before, "
            f"{votes}; the difference ({gain} points, 95 % interval {interval}) may be chance"
        )
    verb = "rose" if low > 0 else "fell"
    change = f"{gain} points, 95 % interval {interval}"
    return f"Held-out pair accuracy {verb} from {before} to {after} ({change}) {votes}"


def points(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")


def flat(tree: dict, prefix: str = "") -> dict[str, object]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    leaves = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return leaves


def write_report(workdir: Path) -> Path:
    """Write workdir/report.html from what the run left there, in one rename, and return its path.

    Raises UserError naming the file, and line or key, of missing or malformed input.
    """
    workdir = Path(workdir)
    results = read_results(workdir / "results.json")
    series, steps = read_series(workdir / "metrics.jsonl"), read_thoughts(workdir / "thoughts.jsonl")
    config = flat(results.get("config") or {})
    # the shallowest: the config may hold that of the run which made the base model
    sizes = sorted((key.count("."), value) for key, value in config.items() if key.endswith("group_size"))
    group_size = int(sizes[0][1]) if sizes else None
    known = ("base", "trained", "gain", "reference", "config", "steps", "seconds")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["points"] = points
    page = environment.from_string(resources.files("dwrl_jax").joinpath("report.html.jinja").read_text("utf-8"))
    try:
        text = page.render(
            name=workdir.resolve().name,
            headline=headline(results),
            results=results,
            picture=interval_picture(results),
            facts=flat({key: value for key, value in results.items() if key not in known}),
            warnings=warnings(series, results, group_size),
            curves=curves(series, group_size),
            last={name: (int(at[-1]), float(values[-1])) for name, (at, values) in sorted(series.items())},
            examples=examples(steps),
            config=config,
        )
    except (KeyError, jinja2.UndefinedError) as error:
        raise UserError(f"{workdir}: results.json or thoughts.jsonl lacks a key: {error}") from None
    path = workdir / "report.html"
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    # a thought cut inside a surrogate pair must not cost the page
    temporary.write_bytes(text.encode("utf-8", "replace"))
    os.replace(temporary, path)
    return path


@exit_cleanly
def main() -> None:
    parser = argparse.ArgumentParser(description="Write report.html, one page about a run.")
    parser.add_argument("--workdir", type=Path, required=True, help="directory that the run wrote to")
    print(write_report(parser.parse_args().workdir))


if __name__ == "__main__":
    main()
