"""One self-contained page about a run: `python -m dwrl_jax.report --workdir=runs/x`.

Reads what a run leaves in its workdir, results.json (needed), metrics.jsonl and thoughts.jsonl (left out of
the page where absent), and writes report.html beside them. The page loads nothing: style and pictures are
inline. Shares are from 0 to 1 in the files and in % on the page.
"""

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path

import jinja2
import numpy as np
from matplotlib.ticker import MaxNLocator

from dwrl_jax.core import files
from dwrl_jax.core.errors import UserError, exit_cleanly
from dwrl_jax.reporting.curves import Series, curves
from dwrl_jax.settings.config import flat

MAX_PAIRS = 64  # held per logged step while thoughts.jsonl is read
SHOWN_PAIRS = 4


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


def moment(name: str, step: int, rows: dict, pairwise: bool) -> dict:
    """A pair as judged at one step: thoughts by falling weight and the mean score, for both sides.

    Of a pairwise judge the sides are the orders, and a score is the probability that it is right.
    """
    sides = {side: [row for (s, _), row in rows.items() if s == side] for side in ("chosen", "rejected")}
    score = {side: sum(r["score"] for r in thoughts) / max(len(thoughts), 1) for side, thoughts in sides.items()}
    total = sum(score.values())
    ranked = {side: sorted(sides[side], key=lambda r: -r["thought_weight"]) for side in sides}
    probability = total / 2 if pairwise else score["chosen"] / total if total else 0.5
    return {"name": name, "step": step, "thoughts": ranked, "score": score, "probability": probability}


def examples(steps: dict[int, dict[int, dict]], pairwise: bool) -> list[dict]:
    """Pairs to show, from clearly right to clearly wrong at the last step; before and after if logged."""
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


def is_pairwise(results: dict) -> bool:
    """Whether the run's judge sees both responses at once, in two orders."""
    return any("flips" in cell for cell in results["trained"].values())


def render(template: str, **values) -> str:
    """One of the package's pages as text; what the model wrote is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dwrl_jax.reporting", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["points"] = points
    return environment.get_template(template).render(**values)


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
    pairwise = is_pairwise(results)
    known = ("base", "trained", "gain", "reference", "sources", "config", "steps", "seconds")
    try:
        text = render(
            "report.html.jinja",
            name=workdir.resolve().name,
            headline=headline(results),
            results=results,
            picture=interval_picture(results),
            facts=flat({key: value for key, value in results.items() if key not in known}),
            warnings=warnings(series, results, group_size),
            curves=curves(series, group_size),
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


@exit_cleanly
def main() -> None:
    parser = argparse.ArgumentParser(description="Write report.html, one page about a run.")
    parser.add_argument("--workdir", type=Path, required=True, help="directory that the run wrote to")
    print(write_report(parser.parse_args().workdir))
