"""Why DWRL collapses: a table and a picture of docs/findings.md, from the runs that are kept in docs/causes.jsonl.

python studies/causes.py [--keep=runs/causes] [--docs=docs]

With --keep it first takes the runs from a workdir that `python -m dwrl_jax.reproduce --suite=causes` has filled.
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1]))

from dwrl_jax.core import files
from dwrl_jax.core.errors import UserError, exit_cleanly
from dwrl_jax.reporting.runs import read_rows
from dwrl_jax.suites.definitions import SUITES
from dwrl_jax.workdir import watch
from dwrl_jax.workdir.records import series_of
from studies import pages
from studies.worlds import FAR, world_of

KEPT, PICTURE, PAGE = "causes.jsonl", "causes.png", "findings.md"
WINDOW = 10  # steps that a kept figure is the mean of
CURVES = {
    "pair_accuracy": "pair accuracy",
    "log_preference_score_chosen": "log p+, nats",
    "log_preference_score_rejected": "log p-, nats",
    "effective_thoughts": "share of thoughts that count",
    "entropy": "entropy, nats",
    "thought_length": "tokens per thought",
    "cut_off": "thoughts cut off",
    "answer_mass": "answer mass",
}


def kept_run(workdir: Path, row: dict) -> dict:
    """The small form of a finished run: its results, its warnings, and means of WINDOW steps of some metrics."""
    folder = workdir / row["workdir"]
    results = files.read_json(folder / "results.json")
    series = series_of(files.read_lines(folder / "metrics.jsonl"))
    group = results["config"]["sampler"]["group_size"]
    curves = {}
    for name in CURVES:
        values = series[f"train/{name}"][1]
        values = values[: len(values) // WINDOW * WINDOW].reshape(-1, WINDOW).mean(1)
        curves[name] = [round(float(value), 4) for value in values / (group if name == "effective_thoughts" else 1)]
    return {
        **{name: row[name] for name in ("config", "method", "seed", "accuracy", "nll", "base_accuracy", "votes")},
        "ceiling": results["reference"]["ceiling"]["accuracy"],
        "warnings": [[fault.step, fault.name] for fault in watch.begun(series, group)],
        "curves": curves,
    }


def keep(workdir: Path, path: Path) -> None:
    rows = [row for row in read_rows(workdir) if row["method"] in SUITES["causes"].arms]
    if not rows:
        raise UserError(f"{workdir}/results.jsonl: no finished cells; fill it with dwrl_jax.reproduce first")
    arms = list(SUITES["causes"].arms)
    rows.sort(key=lambda row: (row["config"], row["seed"], arms.index(row["method"])))
    files.write_lines(path, [kept_run(workdir, row) for row in rows])


def by_world(runs: list[dict]) -> dict[tuple, dict[str, dict]]:
    """{(config, seed): {arm: run}}, in the order of the runs."""
    worlds = {}
    for run in runs:
        worlds.setdefault((run["config"], run["seed"]), {})[run["method"]] = run
    return worlds


def name_of(config: str, seed: int) -> str:
    return f"{world_of(config)} {seed}"


def collapsed(run: dict) -> bool:
    """Whether a run ends FAR below the noise ceiling."""
    return run["ceiling"] - run["accuracy"] > FAR


def table(runs: list[dict]) -> str:
    """A line for each arm, a column for each world and seed: accuracy % / NLL, bold where a run has collapsed.

    Behind them are the warnings of the run and their first step.
    """
    worlds = by_world(runs)
    names = [name for name in SUITES["causes"].arms if any(name in arms for arms in worlds.values())]
    lines = []
    for name in names:
        cells = [f"`{name}`"]
        for arms in worlds.values():
            run = arms.get(name)
            cells.append(_cell(run) if run else "")
        lines.append(cells)
    ceilings = [next(iter(arms.values()))["ceiling"] for arms in worlds.values()]
    before = [next(iter(arms.values()))["base_accuracy"] for arms in worlds.values()]
    lines.append(["before training", *(f"{100 * value:.1f}" for value in before)])
    lines.append(["ceiling", *(f"{100 * value:.1f}" for value in ceilings)])
    return "\n".join(pages.table(["arm", *(name_of(*world) for world in worlds)], lines))


def _cell(run: dict) -> str:
    figures = f"{100 * run['accuracy']:.1f} / {run['nll']:.2f}"
    first = {name: step for step, name in reversed(run["warnings"])}
    told = ", ".join(f"{name} {step}" for name, step in sorted(first.items(), key=lambda item: item[1]))
    return (f"**{figures}**" if collapsed(run) else figures) + (f" ({told})" if told else "")


def figure(runs: list[dict]) -> Figure:
    """A row for each world and seed, a column for each metric, a line for each arm."""
    worlds, names = by_world(runs), list(SUITES["causes"].arms)
    picture = Figure(figsize=(2.2 * len(CURVES), 2.2 * len(worlds) + 0.5), layout="constrained")
    grid = picture.subplots(len(worlds), len(CURVES), squeeze=False, sharex=True, sharey="col")
    for axes, (world, arms) in zip(grid, worlds.items()):
        for axis, (name, title) in zip(axes, CURVES.items()):
            for arm, run in arms.items():
                values = run["curves"][name]
                at = WINDOW * (np.arange(len(values)) + 0.5)
                first = arm == names[0]
                axis.plot(at, values, color="k" if first else f"C{names.index(arm) % 10}", lw=2 if first else 1)
            axis.set_title(f"{name_of(*world)}: {title}", fontsize=7)
            axis.grid(alpha=0.3)
    handles = [
        grid[0, 0].plot([], [], color=f"C{index % 10}" if index else "k", label=name)[0]
        for index, name in enumerate(names)
        if any(name in arms for arms in worlds.values())
    ]
    picture.legend(handles=handles, loc="outside lower center", ncols=7, fontsize=8)
    return picture


@exit_cleanly
def main(arguments: list[str] | None = None) -> None:
    given = pages.flags(__doc__, PAGE, arguments)
    kept = given.docs / KEPT
    if given.keep:
        keep(given.keep, kept)
    if not kept.exists():
        raise UserError(f"{kept}: no runs are kept here; give --keep")
    runs = list(files.read_lines(kept))
    page = given.docs / PAGE
    files.write_text(page, pages.splice(page.read_text(encoding="utf-8"), table(runs)))
    figure(runs).savefig(given.docs / PICTURE, dpi=80)


if __name__ == "__main__":
    main()
