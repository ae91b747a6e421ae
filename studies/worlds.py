"""The methods on five worlds: tables and picture of docs/worlds.md, from the runs that are kept in docs/worlds.

python -m studies.worlds [--keep=runs/worlds] [--docs=docs]

With --keep it first adds the runs of a workdir that `python -m dwrl_jax.reproduce` has filled: the suites `worlds` and
`worlds_rates`, all or a part of them. A run that is kept already gives way to that of the workdir. The page shows the
seeds of a world that have a run of every method.
"""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from dwrl_jax.core import files
from dwrl_jax.core.errors import UserError, exit_cleanly
from dwrl_jax.reporting import suite as report
from dwrl_jax.reporting.runs import ROWS, FinishedRun, keep, read_kept, read_rows, read_runs
from dwrl_jax.suites.cells import by_arm, row_key
from dwrl_jax.suites.definitions import SUITES
from dwrl_jax.workdir import watch
from dwrl_jax.workdir.records import series_of
from studies import pages

SUITE, SEARCH = SUITES["worlds"], SUITES["worlds_rates"]
KEPT, RATES, PICTURE, PAGE = "worlds", "rates.jsonl", "worlds.png", "worlds.md"
COLUMNS = ("method", "seeds", "before", "accuracy", "accuracy_less", "nll", "nll_less", "tempered", "tempered_less")
COLUMNS += ("tokens", "seconds")
FAR, NEAR = 0.15, 0.05  # a run has collapsed if it ends FAR below the ceiling where another one ends NEAR it
ALIKE = ("dwrl", "dwrl_no_misalignment", "grpo_point", "bvpo", "bt_prefilled")  # they begin as the same judge
Runs = list[FinishedRun]


def world_of(config: str) -> str:
    """The name of the world of one of the suite's configs."""
    return config.partition("world=")[2] or "plain"


def from_workdir(workdir: Path) -> Runs:
    """The finished runs of the suite in a workdir. Their rows also have their warnings, as [step, name]."""
    runs = []
    for row in read_rows(workdir):
        if row["config"] in SUITE.configs and row["method"] in SUITE.arms:
            series = series_of(files.read_lines(workdir / row["workdir"] / "metrics.jsonl"))
            group = files.read_json(workdir / row["workdir"] / "results.json")["config"]["sampler"]["group_size"]
            warnings = [[fault.step, fault.name] for fault in watch.begun(series, group)]
            runs += read_runs(workdir, [row | {"warnings": warnings}])
    return runs


def searched(workdir: Path) -> list[dict]:
    """The rows of the search for rates in a workdir."""
    return [row for row in read_rows(workdir) if row["config"] in SEARCH.configs and row["method"] in SEARCH.arms]


def add(folder: Path, runs: Runs) -> None:
    """Keep the runs in a folder for each world, beside those that are kept there."""
    for config in SUITE.configs:
        part, of_world = [run for run in runs if run.row["config"] == config], folder / world_of(config)
        if part:
            kept = {row_key(run.row): run for run in (*(read_kept(of_world) if of_world.exists() else ()), *part)}
            rows = by_arm(sorted((run.row for run in kept.values()), key=lambda row: row["seed"]))
            keep(of_world, [kept[row_key(row)] for row in rows])


def add_rates(folder: Path, rows: list[dict]) -> None:
    """Keep the rows of the search in a folder, beside those that are kept there."""
    kept = {row_key(row): row for row in (*kept_rates(folder), *rows)}
    if rows:
        folder.mkdir(exist_ok=True)
        files.write_lines(folder / RATES, sorted(kept.values(), key=row_key))


def kept_rates(folder: Path) -> list[dict]:
    return list(files.read_lines(folder / RATES)) if (folder / RATES).exists() else []


def by_rate(rows: list[dict]) -> dict[str, dict[float, list[dict]]]:
    """{method: {rate: its rows}}, in the suite's order. UserError where a rate lacks a run that another one has."""
    found = {}
    for arm in SEARCH.arms:
        name, _, rate = arm.partition("@")
        part = [row for row in rows if row["method"] == arm]
        if part:
            found.setdefault(name, {})[float(rate)] = part
    for name, rates in found.items():
        runs = {rate: {(row["config"], row["seed"]) for row in part} for rate, part in rates.items()}
        if any(one != next(iter(runs.values())) for one in runs.values()):
            raise UserError(f"{RATES}: the rates of {name} have different runs; run those that lack some")
    return found


def best_rate(rates: dict[float, list[dict]]) -> float:
    """The rate with the highest mean accuracy over all worlds and seeds together."""
    return max(rates, key=lambda rate: np.mean([row["accuracy"] for row in rates[rate]]))


def rates_table(rows: list[dict]) -> list[str]:
    """A line for each method: accuracy % / NLL at each rate, the best bold, and the runs behind each cell."""
    lines, found = [], by_rate(rows)
    for name, rates in found.items():
        cells = []
        for rate, part in rates.items():
            accuracy, nll = (np.mean([row[key] for row in part]) for key in ("accuracy", "nll"))
            bold = "**" if rate == best_rate(rates) else ""
            cells.append(f"{bold}{100 * accuracy:.1f} / {nll:.3f}{bold}")
        lines.append([f"`{name}`", *cells, str(len(part))])
    names = [f"{rate:g}" for rate in next(iter(found.values()))]
    return pages.table(["accuracy % / NLL", *names, "runs"], lines)


def by_world(folder: Path) -> dict[str, Runs]:
    """The kept runs of each world. UserError where two of them should have started from one model and did not."""
    worlds = {}
    for config in SUITE.configs:
        of_world = folder / world_of(config)
        if of_world.exists():
            worlds[world_of(config)] = read_kept(of_world)
    for world, runs in worlds.items():
        starts = {}
        for row in (run.row for run in runs):
            if row["objective"] in ALIKE:
                starts.setdefault(row["seed"], {})[row["base_accuracy"]] = row["method"]
        for seed, found in starts.items():
            if len(found) > 1:
                names = ", ".join(f"{name} {value:.4f}" for value, name in found.items())
                raise UserError(f"{folder / world}: seed {seed} has several base models, with accuracies of {names}")
    return worlds


def complete(worlds: dict[str, Runs]) -> dict[str, Runs]:
    """The worlds with those seeds that have every method that any world has, so that means are over the same seeds."""
    methods = set(methods_of(worlds))
    found = {}
    for world, runs in worlds.items():
        seeds = {run.row["seed"] for run in runs}
        whole = {seed for seed in seeds if set(report.methods_of(report.select(runs, seed=seed))) == methods}
        found[world] = [run for run in runs if run.row["seed"] in whole]
    return {world: runs for world, runs in found.items() if runs}


def below_ceiling(run: FinishedRun) -> float:
    """How far below its ceiling a run ended, as a part of 1."""
    return run.row["known"]["ceiling"]["accuracy"] - run.row["accuracy"]


def collapsed(runs: Runs) -> set[tuple]:
    """Keys of the runs of a world that end FAR below their ceiling, where another of their seed ends NEAR it."""
    below = {row_key(run.row): below_ceiling(run) for run in runs}
    least = {seed: min(x for key, x in below.items() if key[-1] == seed) for seed in {key[-1] for key in below}}
    return {key for key, x in below.items() if x > FAR and least[key[-1]] < NEAR}


def methods_of(worlds: dict[str, Runs]) -> list[str]:
    """The arms of the suite that have runs, in its order."""
    return [name for name in SUITE.arms if any(report.select(runs, method=name) for runs in worlds.values())]


def summary(worlds: dict[str, Runs]) -> list[str]:
    """A line for each method: accuracy % / NLL in each world, and in how many runs it collapsed."""
    lost = {world: collapsed(runs) for world, runs in worlds.items()}
    lines = []
    for method in methods_of(worlds):
        cells, fallen, made = [f"`{method}`"], 0, 0
        for world, runs in worlds.items():
            part = report.select(runs, method=method)
            made += len(part)
            fallen += sum(row_key(run.row) in lost[world] for run in part)
            rows = [run.row for run in part]
            cells.append(f"{report.accuracy(rows)} / {report.mean(part, 'nll'):.3f}" if part else "")
        lines.append([*cells, f"{fallen} of {made}"])
    for name, title in (("base", "before training"), ("ceiling", "ceiling")):
        lines.append([title, *(_known(runs, name) for runs in worlds.values()), ""])
    return pages.table(["accuracy % / NLL", *worlds, "collapses"], lines)


def _known(runs: Runs, name: str) -> str:
    part = report.select(runs, method=SUITE.reference)
    if name == "base":
        return f"{100 * report.mean(part, 'base_accuracy'):.1f}" if part else ""
    known = [run.row["known"][name] for run in part]
    return f"{report.accuracy(known)} / {np.mean([row['nll'] for row in known]):.3f}" if known else ""


def warnings(worlds: dict[str, Runs]) -> list[str]:
    """A line for each run that warned and is DWRL's or ends NEAR the ceiling, with the first step of each warning.

    Below it, how many of all runs that end NEAR the ceiling warned.
    """
    lines, near = [], []
    for world, runs in worlds.items():
        lost = collapsed(runs)
        for run in runs:
            row, first = run.row, {}
            for step, name in row["warnings"]:
                first.setdefault(name, step)
            ends_near = below_ceiling(run) < NEAR
            near += [bool(first)] if ends_near else []
            if first and (ends_near or row["objective"] == "dwrl"):
                told = ", ".join(f"{name} {step}" for name, step in first.items())
                end = f"{100 * row['accuracy']:.1f} / {row['nll']:.3f}"
                end += " (collapsed)" if row_key(row) in lost else ""
                lines.append([f"{world} {row['seed']}", f"`{row['method']}`", end, told])
    table = pages.table(["world, seed", "arm", "accuracy % / NLL", "warnings and their first step"], lines)
    return [*table, f"Of {len(near)} runs that end within 5 points of the ceiling {sum(near)} warned.", ""]


def text(worlds: dict[str, Runs], rates: list[dict]) -> str:
    """The generated part of the page."""
    parts = [*summary(worlds)] if worlds else []
    for world, runs in worlds.items():
        tables = report.table(runs, SUITE.reference, COLUMNS), report.votes_table(runs, (1, 8))
        parts += [f"### {world}", "", tables[0], "", tables[1], ""]
    if worlds:
        parts += ["### Warnings", "", *warnings(worlds)]
    if rates:
        parts += ["### Learning rates", "", *rates_table(rates)]
    return "\n".join(parts)


def figure(worlds: dict[str, Runs]) -> Figure:
    """A panel for each world: points below the ceiling where each run ended, a row for each method."""
    methods = methods_of(worlds)
    picture = Figure(figsize=(3 * len(worlds) + 1.5, 0.35 * len(methods) + 1.2), layout="constrained")
    for axis, (world, runs) in zip(picture.subplots(1, len(worlds), squeeze=False, sharey=True)[0], worlds.items()):
        for place, method in enumerate(methods):
            part = report.select(runs, method=method)
            ends = [-100 * below_ceiling(run) for run in part]
            axis.plot(ends, np.full(len(ends), place), "o", color=f"C{place % 10}", alpha=0.6, markersize=5)
            axis.plot(np.mean(ends) if ends else np.nan, place, "|k", markersize=14)
        axis.axvline(0, color="0.7", linewidth=1)
        axis.set(title=world, xlabel="points from the ceiling", yticks=range(len(methods)), yticklabels=methods)
        axis.grid(alpha=0.3)
    picture.axes[0].invert_yaxis()
    return picture


@exit_cleanly
def main(arguments: list[str] | None = None) -> None:
    given = pages.flags(__doc__, PAGE, arguments)
    page = given.docs / PAGE
    if not page.exists():
        raise UserError(f"{page}: no such page; give --docs its folder")
    kept = given.docs / KEPT
    if given.keep:
        runs, rates = from_workdir(given.keep), searched(given.keep)
        if not (runs or rates):
            raise UserError(f"{given.keep / ROWS}: no finished cells; fill it with dwrl_jax.reproduce first")
        add(kept, runs)
        add_rates(kept, rates)
    worlds, rates = complete(by_world(kept)), kept_rates(kept)
    if not (worlds or rates):
        raise UserError(f"{kept}: no runs are kept here; give --keep")
    files.write_text(page, pages.splice(page.read_text(encoding="utf-8"), text(worlds, rates)))
    if worlds:
        figure(worlds).savefig(given.docs / PICTURE, dpi=90)


if __name__ == "__main__":
    main()
