"""The picture of docs/findings.md, from two folders that `dwrl_jax.reproduce` has filled.

python studies/findings.py --rates=runs/rates --choices=runs/choices [--output=docs/findings.png]
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1]))

from dwrl_jax.core.errors import UserError, exit_cleanly
from dwrl_jax.evaluation import metrics
from dwrl_jax.reporting.runs import read_rows, read_runs
from dwrl_jax.reporting.suite import Runs, mean, methods_of, paired, select, two_level_interval


def rows_of(workdir: Path) -> list[dict]:
    """The rows of equal pairs."""
    rows = [row for row in read_rows(workdir) if row["budget"] == "pairs"]
    if not rows:
        raise UserError(f"{workdir}/results.jsonl: no finished cells; fill the folder with dwrl_jax.reproduce first")
    return rows


def draw_rates(axis: Axes, rows: list[dict]) -> None:
    """Accuracy against the learning rate, a line for each method: mean over seeds."""
    cells = {}
    for row in rows:
        method, rate = row["method"].split("@")
        cells.setdefault(method, {}).setdefault(float(rate), []).append(100 * row["accuracy"])
    for index, (method, accuracies) in enumerate(cells.items()):
        rates = sorted(accuracies)
        style = {"color": f"C{index % 10}", "linestyle": "-" if index < 10 else "--", "label": method}
        axis.plot(rates, [np.mean(accuracies[rate]) for rate in rates], marker=".", **style)
    axis.set(xscale="log", xlabel="learning rate", ylabel="accuracy, %", title="Learning rate")
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))


def draw_differences(axis: Axes, runs: Runs, reference: str = "dwrl") -> None:
    """Accuracy less that of the reference, with 95 % intervals paired by seed and pair; NLL beside the names."""
    base = select(runs, method=reference)
    labels = []
    for place, method in enumerate(methods_of(runs)):
        part = select(runs, method=method)
        labels.append(f"{method}  (NLL {mean(part, 'nll'):.2f})")
        differences = paired(part, base, metrics.wins)
        if method == reference or not differences:
            axis.plot(0, place, "k|")
            continue
        centre = 100 * np.mean([difference.mean() for difference in differences])
        low, high = (100 * bound for bound in two_level_interval(differences))
        axis.errorbar(centre, place, xerr=[[centre - low], [high - centre]], fmt="o", color="C0", capsize=3)
    axis.axvline(0, color="0.7", linewidth=1)
    axis.set(xlabel=f"points of accuracy less {reference}", title="Choices of DWRL")
    axis.set_yticks(range(len(labels)), labels, fontsize=8)
    axis.invert_yaxis()


def figure(rates: Path, choices: Path) -> Figure:
    picture = Figure(figsize=(13, 4.5), layout="constrained")
    left, right = picture.subplots(1, 2)
    draw_rates(left, rows_of(rates))
    draw_differences(right, read_runs(choices, rows_of(choices)))
    for axis in (left, right):
        axis.grid(alpha=0.3)
    return picture


@exit_cleanly
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("rates", "choices"):
        parser.add_argument(f"--{name}", type=Path, required=True, help="a --workdir of dwrl_jax.reproduce")
    parser.add_argument("--output", type=Path, default=Path("docs/findings.png"))
    given = parser.parse_args()
    figure(given.rates, given.choices).savefig(given.output, dpi=110)


if __name__ == "__main__":
    main()
