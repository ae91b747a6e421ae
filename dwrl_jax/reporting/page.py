"""A self-contained page about a run: `python -m dwrl_jax.report --workdir=runs/x`.

The page is made of results.json and, where they exist, metrics.jsonl and thoughts.jsonl of a workdir. report.html
beside them loads nothing: style and pictures are inline. Shares are from 0 to 1 in the files and in % on the page.
"""

from pathlib import Path

import jinja2
import numpy as np
from matplotlib.ticker import MaxNLocator
from scipy.special import expit, logsumexp

from dwrl_jax import objectives
from dwrl_jax.core import files
from dwrl_jax.core.errors import UserError
from dwrl_jax.objectives.parts.panels import Panel
from dwrl_jax.reporting.curves import curves
from dwrl_jax.reporting.text import READERS
from dwrl_jax.settings.config import flat
from dwrl_jax.workdir import records, watch
from dwrl_jax.workdir.records import Series

SHOWN_PAIRS = 4


def moment(name: str, step: int, rows: dict, pairwise: bool) -> dict:
    """The judgement of a pair at a step: thoughts by falling weight and the mean score, for both sides.

    The sides of a pairwise judge are the orders, and its score is the probability of the right label. A judge that
    gives rewards has "reward" in its rows, in the place of the log of a score.
    """
    sides = {side: [row for (s, _), row in rows.items() if s == side] for side in records.SIDES}
    log_score = {side: mean_log_score(thoughts) for side, thoughts in sides.items()}
    rewards = any("reward" in row for row in rows.values())
    difference = log_score["chosen"] - log_score["rejected"]
    if pairwise:
        probability = sum(map(np.exp, log_score.values())) / 2
    else:
        probability = 0.5 if np.isnan(difference) else expit(difference)  # nan: both infinite, or both zero
    return {
        "name": name,
        "step": step,
        "thoughts": {side: sorted(sides[side], key=lambda row: -row["thought_weight"]) for side in sides},
        "score": None if rewards else {side: float(np.exp(score)) for side, score in log_score.items()},
        "reward": log_score if rewards else None,
        "probability": float(probability),
    }


def mean_log_score(thoughts: list[dict]) -> float:
    """Log of the mean score. In older files, which have no "reward", a score may be Infinity."""
    with np.errstate(divide="ignore", over="ignore"):
        scores = [row["reward"] if "reward" in row else np.log(row["score"]) for row in thoughts]
        return float(logsumexp(scores) - np.log(len(scores))) if scores else -np.inf


def examples(steps: dict[int, dict[int, dict]], pairwise: bool) -> list[dict]:
    """Pairs to show, from clearly right to clearly wrong at the last step; with thoughts before training if logged."""
    if not steps:
        return []
    first, last = min(steps), max(steps)
    both = steps[first].keys() & steps[last].keys() if first < last else set()
    kept = {pair: rows for pair, rows in steps[last].items() if pair in both or not both}
    moments = {pair: moment("after", last, rows, pairwise) for pair, rows in kept.items()}
    order = sorted(moments, key=lambda pair: -moments[pair]["probability"])
    picks = np.unique(np.linspace(0, len(order) - 1, min(SHOWN_PAIRS, len(order))).round().astype(int))
    shown = [(order[i], [moments[order[i]]]) for i in picks]
    for pair, seen in shown:
        if both:
            seen.insert(0, moment("before", first, steps[first][pair], pairwise))
    if first < last and not both:
        early = list(steps[first].items())[:2]
        shown += [(pair, [moment("before", first, rows, pairwise)]) for pair, rows in early]
    return [{"pair": pair, "moments": seen} for pair, seen in shown if all(all(m["thoughts"].values()) for m in seen)]


def interval_picture(results: dict) -> dict:
    """Places of intervals, references and ticks on an axis of accuracy, in % of the width (0 to 100)."""
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


def warnings(series: Series, results: dict, group_size: int | None) -> list[tuple[str, str]]:
    """(symptom, remedy) by the mean over the last tenth of the run, at least ten steps, and while the run went."""
    recent = {name: float(np.mean(v[-max(10, len(v) // 10) :])) for name, (_, v) in series.items()}
    mass, cut_off = recent.get("train/answer_mass", 1.0), recent.get("train/cut_off", 0.0)
    gap, effective = recent.get("train/logp_gap_mean", 0.0), recent.get("train/effective_thoughts", 0.0)
    ties = {k: cell["ties"] for k, cell in results["trained"].items() if cell.get("ties") is not None}
    tied = max(ties, key=ties.get, default=None)
    skipped = int(series[records.SKIPPED][1].sum()) if records.SKIPPED in series else 0
    broken = [name for name, (_, values) in series.items() if not np.isfinite(values).all()]
    checks = [
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
        (skipped, f"{skipped} updates were skipped, because figures were not finite.",
         f"Look at the pairs in {records.NOT_FINITE}, or lower the learning rate."),
    ]  # fmt: skip
    while_it_went = [
        (f"From step {fault.step}: {fault.what}.", f"{fault.advice[:1].upper()}{fault.advice[1:]}.")
        for fault in watch.begun(series, group_size or 1)
    ]
    return [(what, action) for holds, what, action in checks if holds] + while_it_went


def headline(results: dict) -> str:
    """The result in a sentence, with the most votes. It claims a change only if the interval leaves zero out."""
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


def render(template: str, **values) -> str:
    """A page of the package as text. The model's texts are escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dwrl_jax.reporting", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["points"] = points
    environment.globals["readers"] = READERS
    return environment.get_template(template).render(**values)


def write_report(workdir: Path) -> Path:
    """Write workdir/report.html from the files of the run, whole or not at all. Returns its path.

    UserError names the file, and the missing or malformed line or key.
    """
    workdir = Path(workdir)
    results, series, steps = records.read_results(workdir), records.read_series(workdir), records.read_thoughts(workdir)
    config, pairwise = flat(results.get("config") or {}), results["judge"] == "label"
    known = ("base", "trained", "gain", "reference", "sources", "config", "steps", "seconds")
    try:
        text = render(
            "report.html.jinja",
            name=workdir.resolve().name,
            headline=headline(results),
            results=results,
            picture=interval_picture(results),
            facts=flat({key: value for key, value in results.items() if key not in known}),
            warnings=warnings(series, results, config.get("sampler.group_size")),
            curves=curves(series, panels_of(config), config),
            last={name: (int(at[-1]), float(values[-1])) for name, (at, values) in sorted(series.items())},
            examples=examples(steps, pairwise),
            pairwise=pairwise,
            config=config,
        )
    except (KeyError, jinja2.UndefinedError) as error:
        raise UserError(f"{workdir}: results.json or thoughts.jsonl lacks a key: {error}") from None
    path = workdir / "report.html"
    files.write_text(path, text)
    return path


def panels_of(config: dict) -> tuple[Panel, ...]:
    """The pictures of the run's objective; none where there is no objective of that name."""
    name = config.get("objective.name")
    return objectives.load(name).panels if name in objectives.names() else ()
