"""Votes in rounds against 32 fixed votes, on the votes that are kept in docs/comparison.

python studies/adaptive_votes.py [--docs=docs] [--delta=0.05]

For each method: the share of the thoughts that are spent, and the share of pairs with the verdict of all votes. Both
payoffs of `votes.log_capital` are shown. It writes the table of docs/evaluate.md.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from dwrl_jax.core import files
from dwrl_jax.core.errors import exit_cleanly
from dwrl_jax.judge.votes import Adaptive, log_capital
from dwrl_jax.reporting.runs import FinishedRun, read_kept
from dwrl_jax.reporting.suite import markdown, methods_of, select
from studies.pages import splice

ROOT = Path(__file__).parents[1]
PAYOFFS = {"scaled": (True, 0.99), "plain": (False, 0.99)}


def differences(run: FinishedRun) -> np.ndarray:
    """d of each pair and vote [N, K]: right score less wrong score, or the sum of both orders' right labels less 1."""
    scores = np.exp(run.log_scores)
    return scores.sum(1) - 1 if run.row["pairwise"] else scores[:, 0] - scores[:, 1]


def spent(difference: np.ndarray, rule: Adaptive, payoff: str) -> tuple[float, float]:
    """Share of the thoughts that are spent, and share of the pairs with the verdict of all votes."""
    ends = np.cumsum(rule.rounds)
    scaled, most = PAYOFFS[payoff]
    used = np.full(len(difference), ends[-1])
    for end in ends[-2::-1]:
        settled = log_capital(difference[:, :end], scaled, most) >= -np.log(rule.delta)
        used = np.where(settled, end, used)
    sums = np.cumsum(difference, 1)
    verdict = np.sign(sums[np.arange(len(used)), used - 1])
    return float(used.mean() / ends[-1]), float((verdict == np.sign(sums[:, ends[-1] - 1])).mean())


def table(runs: list[FinishedRun], rule: Adaptive) -> str:
    """Markdown with a line for each method that writes thoughts: means over seeds, the least share over seeds."""
    titles = [
        "method",
        *(f"{payoff}: {what}" for payoff in PAYOFFS for what in ("thoughts %", "same verdict %, least")),
    ]
    lines = []
    for method in methods_of(runs):
        part = [
            run for run in select(runs, method=method, budget="pairs") if run.log_scores.shape[-1] >= sum(rule.rounds)
        ]
        if part:
            cells = [f"`{method}`"]
            for payoff in PAYOFFS:
                each = np.array([spent(differences(run), rule, payoff) for run in part])
                cells += [
                    f"{100 * each[:, 0].mean():.0f}",
                    f"{100 * each[:, 1].mean():.1f}, {100 * each[:, 1].min():.1f}",
                ]
            lines.append(cells)
    return markdown(titles, lines) + "\n"


@exit_cleanly
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of evaluate.md and comparison/")
    parser.add_argument("--delta", type=float, default=Adaptive.delta)
    given = parser.parse_args(arguments)
    made = table(read_kept(given.docs / "comparison"), Adaptive(delta=given.delta))
    page = given.docs / "evaluate.md"
    files.write_text(page, splice(page.read_text(encoding="utf-8"), made))


if __name__ == "__main__":
    main()
