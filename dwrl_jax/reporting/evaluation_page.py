"""A self-contained page about evaluations: one judge, or several beside each other with paired differences."""

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.special import expit

from dwrl_jax.core import files
from dwrl_jax.evaluation import calibration, judged
from dwrl_jax.evaluation.benchmarks.parts.result import difference
from dwrl_jax.evaluation.judged import Pair
from dwrl_jax.evaluation.run import Evaluation, result_of
from dwrl_jax.evaluation.style import FEATURES
from dwrl_jax.reporting import suite
from dwrl_jax.reporting.curves import AXIS, COLORS, INK, to_svg
from dwrl_jax.reporting.evaluation_text import common, same_verdicts, votes_of
from dwrl_jax.reporting.page import render

MISTAKES, THOUGHTS = 5, 2  # that are shown of a judge, and of a response
STYLE = dict.fromkeys(
    ("text.color", "axes.labelcolor", "axes.edgecolor", "grid.color", "xtick.color", "ytick.color"), AXIS
)


SHARE = "share"  # the style of a number that is shown in %
LENGTHS = ("much shorter", "shorter", "as long", "longer", "much longer")
HABITS = (  # title, keys of the summary, style
    ("same verdict in single votes", ("pairs", "stability"), SHARE),
    ("same verdict in both orders", ("pairs", "consistency"), SHARE),
    ("P(first is better) less one half", ("pairs", "position bias"), "{:+.3f}"),
    ("longer response wins where it is right", ("pairs", "lengths", "longer wins", "longer is right", "share"), SHARE),
    ("longer response wins where it is wrong", ("pairs", "lengths", "longer wins", "shorter is right", "share"), SHARE),
    *(
        (f"accuracy, right response is {name}", ("pairs", "lengths", "accuracy", name, "share"), SHARE)
        for name in LENGTHS
    ),
    ("accuracy at matched style", ("pairs", "style", "accuracy at matched style"), SHARE),
    *((f"coefficient of {name}", ("pairs", "style", "coefficients", name), "{:+.2f}") for name in FEATURES),
    *((f"standard error of {name}", ("pairs", "style", "errors", name), "{:.2f}") for name in FEATURES),
    ("thoughts per pair", ("cost", "thoughts per pair"), "{:.1f}"),
    ("tokens per pair", ("cost", "tokens per pair"), "{:.0f}"),
    ("rows per second", ("rows per second",), "{:.2f}"),
    ("padding of prefixes", ("padding",), SHARE),
    ("model", ("model",), "{}"),
    ("commit", ("commit",), "{}"),
    ("seed", ("seed",), "{}"),
)


def write_page(path: Path, groups: Sequence[Sequence[Evaluation]]) -> Path:
    """Write a page about the benchmarks that all groups have. A group has the evaluations of one judge."""
    sections = [section([first, *others], number) for number, (_, first, others) in enumerate(common(groups))]
    files.write_text(path, render("evaluation.html.jinja", sections=sections, headline=headline(groups)))
    return path


def headline(groups: Sequence[Sequence[Evaluation]]) -> str:
    """The scores in a sentence; with several judges the number of judges."""
    if len(groups) > 1:
        return f"{len(groups)} judges beside each other"
    scores = [f"{each.benchmark.title} {100 * each.summary['overall']:.1f} %" for each in groups[0]]
    return ", ".join(scores)


def section(evaluations: Sequence[Evaluation], number: int) -> dict:
    """All that the page shows of a benchmark."""
    models = [model(each, evaluations[0], COLORS[i % len(COLORS)]) for i, each in enumerate(evaluations)]
    with matplotlib.rc_context(STYLE | {"font.size": 9.5}):
        pictures = [
            picture("Accuracy by votes", draw_votes, models, f"s{number}a"),
            picture("Said and true", draw_reliability, models, f"s{number}b"),
            *curves(evaluations, models, number),
        ]
    return {
        "title": evaluations[0].benchmark.title,
        "models": models,
        "pictures": [each for each in pictures if each],
        "subsets": rows_of([each.summary["subsets"] for each in evaluations]),
        "averages": rows_of([each.summary["averages"] for each in evaluations]),
        "habits": habits([each.summary for each in evaluations]),
    }


def model(evaluation: Evaluation, first: Evaluation, color: str) -> dict:
    """What the page shows of a judge on a benchmark."""
    pairs = judged.pairs(evaluation.benchmark, evaluation.scored, evaluation.kind)
    odds = judged.log_odds(pairs, evaluation.kind)
    change = None
    if evaluation is not first:
        change = difference(result_of(evaluation), result_of(first)) | {"same": same_verdicts(first, evaluation)}
    return {
        "name": evaluation.folder.name
        if evaluation.folder.name != evaluation.about["benchmark"]
        else evaluation.folder.parent.name,
        "votes": votes_of(evaluation),
        "summary": evaluation.summary,
        "change": change,
        "color": color,
        "css": INK[color],
        "odds": odds,
        "mistakes": mistakes(pairs, odds[:, 0], evaluation.kind),
    }


def habits(summaries: Sequence[dict]) -> list[tuple[str, list[str]]]:
    """(title, what each summary says) of each line of `HABITS` that has a number, and of the rows without a score."""
    lines = [(title, [_told(summary, keys, style) for summary in summaries]) for title, keys, style in HABITS]
    errors = [", ".join(f"{reason} {n}" for reason, n in summary["errors"].items()) or "0" for summary in summaries]
    return [line for line in lines if set(line[1]) != {"–"}] + [("rows without a score", errors)]


def _told(summary: dict, keys: tuple[str, ...], style: str) -> str:
    value = summary
    for key in keys:
        value = (value or {}).get(key)
    if value is None:
        return "–"
    return f"{100 * value:.1f} %" if style == SHARE else style.format(value)


def rows_of(numbers: Sequence[dict]) -> list[tuple[str, list[float | None]]]:
    """(name, the number of each judge) of each name that a judge has."""
    names = dict.fromkeys(name for each in numbers for name in each)
    return [(name, [each.get(name) for each in numbers]) for name in names]


def mistakes(pairs: Sequence[Pair], odds: np.ndarray, kind: str) -> list[dict]:
    """The pairs about which the judge is most sure and wrong, with thoughts about both responses."""
    order = [i for i in np.argsort(odds, kind="stable")[:MISTAKES] if odds[i] < 0]
    return [
        {
            "id": pairs[i].row["id"],
            "subset": pairs[i].row["subset"],
            "prompt": pairs[i].row["prompt"],
            "probability": float(expit(odds[i])),
            "sides": [_side(pairs[i], side, kind) for side in ("right", "wrong")],
        }
        for i in order
    ]


def _side(pair: Pair, side: str, kind: str) -> dict:
    index = pair.right if side == "right" else pair.wrong
    thoughts, votes = pair.row["thoughts"][index], pair.row["votes"][index]
    return {
        "name": side,
        "text": pair.row["responses"][index],
        "score": pair.row["score"][index],
        "thoughts": list(zip(votes, thoughts))[:THOUGHTS],
        "first": kind == "label",
    }


def picture(title: str, draw: Callable, models: Sequence[dict], name: str) -> dict | None:
    """A figure with a line for each judge; None if there is nothing to draw."""
    figure = Figure(figsize=(4.2, 2.6), layout="constrained")
    axes = figure.subplots()
    drawn = [model for model in models if draw(axes, model)]
    if not drawn:
        return None
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.22, linewidth=0.6)
    legend = [(model["name"], model["css"]) for model in drawn]
    return {"title": title, "legend": legend, "svg": to_svg(figure, name)}


def draw_votes(axes: Axes, model: dict) -> bool:
    """Accuracy over pairs against the number of votes, k = 1, 2, 4, ...; dashed: without a thought."""
    pairs, plain = model["summary"]["pairs"], model["summary"]["no_thought"]
    if not pairs or not plain:
        return False
    votes = [int(k) for k in pairs["by votes"]]
    axes.plot(votes, [100 * share for share in pairs["by votes"].values()], ".-", color=model["color"])
    if plain["pairs"]:
        axes.axhline(100 * plain["pairs"]["accuracy"], color=model["color"], linewidth=1, linestyle=(0, (4, 3)))
    axes.set(xlabel="votes", ylabel="accuracy, %", xscale="log", xticks=votes, xticklabels=votes)
    axes.minorticks_off()
    return True


def draw_reliability(axes: Axes, model: dict) -> bool:
    """Share that is right against the said probability in ten bins; faint: after one temperature."""
    least = max(len(model["odds"]) // 50, 3)
    axes.plot([50, 100], [50, 100], color=AXIS, linewidth=0.8, alpha=0.6)
    for odds, alpha in ((calibration.tempered(model["odds"]), 0.35), (model["odds"], 1.0)):
        points = 100 * np.array(suite.calibration(odds[:, 0], least)).reshape(-1, 2)
        axes.plot(*points.T, ".-", color=model["color"], alpha=alpha)
    axes.set(xlabel="said, %", ylabel="right, %")
    return len(model["odds"]) > 0


def curves(evaluations: Sequence[Evaluation], models: Sequence[dict], number: int) -> list[dict]:
    """A picture of each curve of the benchmark."""
    names = dict.fromkeys(name for each in evaluations for name in each.summary["curves"])

    def draw_curve(name):
        def draw(axes, model):
            values = model["summary"]["curves"].get(name)
            if values:
                axes.plot(np.arange(1, len(values) + 1), 100 * np.array(values), color=model["color"])
                axes.set(xlabel="k", ylabel="%")
            return bool(values)

        return draw

    drawn = (picture(name, draw_curve(name), models, f"s{number}c{i}") for i, name in enumerate(names))
    return [each for each in drawn if each]
