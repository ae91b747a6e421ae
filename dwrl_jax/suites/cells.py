"""The cells of a suite. Each cell is run once, and the table has all finished cells."""

import dataclasses
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from dwrl_jax.core import files, hosts
from dwrl_jax.core.errors import UserError
from dwrl_jax.reporting import suite as report
from dwrl_jax.reporting.runs import ROWS, read_rows, read_runs
from dwrl_jax.settings.commandline import parse
from dwrl_jax.suites.definitions import SUITES, Suite
from dwrl_jax.training import run as train
from dwrl_jax.training.assemble import judge_kind

CONFIGS = Path(__file__).parents[2] / "configs"
PAIRS = "pairs"  # the budget that every arm gets first
ALIKE = 1.25  # an arm whose use of a budget is within this factor of the reference's needs no second cell


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run, with as much of the `budget` as the reference. `steps` None means the config's number."""

    config: str
    arm: str
    budget: str
    seed: int
    steps: int | None = None

    @property
    def key(self) -> tuple:
        return self.config, self.arm, self.budget, self.seed

    @property
    def folder(self) -> Path:
        words = "".join(letter if letter.isalnum() or letter in "._" else "-" for letter in self.arm)
        return Path(self.config) / words / f"{self.budget}-{self.seed}"


def compare(suite: Suite, workdir: Path, overrides: list[str]) -> str | None:
    """Run the unfinished cells and return the table of all finished cells. None on processes that do not write.

    Table and figures also go to the workdir. `overrides` are flags --config.KEY=VALUE, for every cell.
    """
    rows = run_suite(suite, workdir, overrides)
    if not hosts.first():
        return None
    report.write(workdir, read_runs(workdir, by_arm(rows)), suite.reference)
    return (workdir / "table.md").read_text()


def run_suite(suite: Suite, workdir: Path, overrides: list[str]) -> list[dict]:
    """Run the cells that workdir/results.jsonl lacks. Returns all of its rows, the first finished first."""
    workdir.mkdir(parents=True, exist_ok=True)
    for config in suite.configs:
        bar = tqdm(suite.seeds, desc=config, unit="seed", disable=not sys.stderr.isatty())
        for seed in bar:
            for cell in cells(suite, config, seed, workdir):
                bar.set_postfix_str(f"{cell.arm}, equal {cell.budget}")
                row = run_cell(suite, cell, workdir, overrides)
                hosts.attempt(files.append_lines, workdir / ROWS, [row])
                jax.clear_caches()  # a suite's programs together are more than a machine holds
    return read_rows(workdir)


def cells(suite: Suite, config: str, seed: int, workdir: Path) -> Iterator[Cell]:
    """The unfinished cells of a seed. Cells of other budgets follow from the use of equal pairs."""
    done = {row_key(row) for row in read_rows(workdir)}
    first = [Cell(config, arm, PAIRS, seed) for arm in suite.arms]
    yield from (cell for cell in first if cell.key not in done)
    rows = {row_key(row): row for row in read_rows(workdir)}
    reference = rows.get(Cell(config, suite.reference, PAIRS, seed).key)
    for cell in first:
        for budget in suite.budgets:
            more = dataclasses.replace(cell, budget=budget)
            steps = equal_steps(rows[cell.key], reference, budget) if reference else None
            if steps and more.key not in done:
                yield dataclasses.replace(more, steps=steps)


def equal_steps(row: dict, reference: dict, budget: str) -> int | None:
    """Steps with which an arm uses as much of a budget as the reference. None where it does so already or uses none."""
    used, wanted = (each["per_step"][budget] for each in (row, reference))
    if not used or not wanted or 1 / ALIKE < wanted * reference["steps"] / (used * row["steps"]) < ALIKE:
        return None
    return max(round(wanted * reference["steps"] / used), 1)


def run_cell(suite: Suite, cell: Cell, workdir: Path, overrides: list[str]) -> dict:
    """Train one cell, or go on with it. Returns its row of results.jsonl."""
    config, folder = config_of(suite, cell, workdir, overrides)
    share_base(config, workdir)
    results = train.fit(config, folder)
    return row_of(cell, config, folder, results) if results else {}


def config_of(suite: Suite, cell: Cell, workdir: Path, overrides: list[str]) -> tuple[ConfigDict, Path]:
    """The config and the folder of a cell. UserError for a flag that no config has, and without held-out pairs."""
    arm = suite.arms[cell.arm]
    name, comma, variant = cell.config.partition(",")
    chosen = f"{CONFIGS / name}.py:{arm.objective}{comma}{variant}"
    flags = [f"--config={chosen}", f"--workdir={workdir / cell.folder}"]
    settings = [f"--config.{key}={value}" for key, value in {**suite.settings, **arm.settings}.items()]
    longer = [f"--config.optim.steps={cell.steps}"] if cell.steps else []
    config, folder = parse([*flags, *settings, *overrides, *longer])
    config.update_from_flattened_dict(dict.fromkeys(suite.seeded, cell.seed))
    if config.eval.pairs < 1:
        raise UserError(f"eval.pairs={config.eval.pairs}: methods are compared on held-out pairs; give at least 1")
    return config, folder


def share_base(config: ConfigDict, workdir: Path) -> None:
    """Let all cells that start from the same model share it, so that it is made once."""
    if config.base is None:
        return
    name = hashlib.sha256(config.base.to_json_best_effort().encode()).hexdigest()[:8]
    config.model.path = str(train.starting_folder(config, workdir / "bases" / name))
    config.base = None


def row_of(cell: Cell, config: ConfigDict, folder: Path, results: dict) -> dict:
    """A row of results.jsonl. `seconds` is the time of all training steps, compilation included."""
    steps = list(files.read_lines(folder / "metrics.jsonl"))
    best = max(results["trained"], key=lambda votes: int(votes[1:]))
    tokens = np.array([step.get("sample/tokens", 0) for step in steps])
    seconds = np.array([step["time/step_seconds"] for step in steps])
    return {
        "config": cell.config,
        "method": cell.arm,
        "objective": config.objective.name,
        "budget": cell.budget,
        "seed": cell.seed,
        "votes": int(best[1:]),
        "pairwise": judge_kind(config) == "label",
        **{name: results["trained"][best][name] for name in ("accuracy", "nll", "ties", "brier", "ece")},
        "base_accuracy": results["base"][best]["accuracy"],
        "pairs": len(steps) * config.data.batch_size,
        "generated_tokens": int(tokens.sum()),
        "seconds": float(seconds.sum()),
        "steps": len(steps),
        "per_step": {"generated_tokens": float(tokens.mean()), "seconds": float(np.median(seconds))},
        "workdir": str(cell.folder),
    }


def by_arm(rows: list[dict]) -> list[dict]:
    """Rows in the order in which the suites name their arms. Rows of unknown arms come last."""
    arms = list(dict.fromkeys(name for suite in SUITES.values() for name in suite.arms))
    return sorted(rows, key=lambda row: arms.index(row["method"]) if row["method"] in arms else len(arms))


def row_key(row: dict) -> tuple:
    return row["config"], row["method"], row["budget"], row["seed"]
