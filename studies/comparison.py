"""The comparison of methods on the built-in world: tables and picture from the rows that are kept in docs/comparison.

python studies/comparison.py [--keep=runs/suite] [--docs=docs]

It writes the table of README.md, the tables of docs/comparison.md and docs/comparison.png. With --keep it first takes
the rows from a workdir that `python -m dwrl_jax.reproduce --suite=tiny` has filled.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from dwrl_jax.core import files
from dwrl_jax.core.errors import UserError, exit_cleanly
from dwrl_jax.reporting.runs import keep, read_kept, read_rows, read_runs
from dwrl_jax.reporting.suite import Runs, figure, table, votes_table
from dwrl_jax.suites.cells import by_arm
from dwrl_jax.suites.definitions import SUITES
from studies import pages

REFERENCE = SUITES["tiny"].reference
IN_THE_README = ("method", "accuracy", "accuracy_less", "nll", "tempered", "tempered_less", "tokens")


def short(runs: Runs) -> str:
    """The generated part of the README: equal pairs alone."""
    return table(runs, REFERENCE, IN_THE_README) + "\n"


def whole(runs: Runs) -> str:
    """The generated part of docs/comparison.md."""
    by_votes = (
        "The same runs by the number of votes. Calibration error, and accuracy on the more confident half of\n"
        "pairs, are those with the most votes. Flips are the pairs about which a pairwise judge changes its mind when\n"
        "the responses change place:"
    )
    return f"{table(runs, REFERENCE)}\n\n{by_votes}\n\n{votes_table(runs)}\n"


def write(page: Path, generated: str) -> None:
    """Put the generated part between the marks of a page. UserError where the page does not exist."""
    if not page.exists():
        raise UserError(f"{page}: no such page; give --docs the folder beside README.md")
    files.write_text(page, pages.splice(page.read_text(encoding="utf-8"), generated))


@exit_cleanly
def main(arguments: list[str] | None = None) -> None:
    given = pages.flags(__doc__, "comparison.md, beside README.md", arguments)
    kept = given.docs / "comparison"
    if given.keep:
        rows = by_arm(read_rows(given.keep))
        if not rows:
            raise UserError(f"{given.keep}/results.jsonl: no finished cells; fill it with dwrl_jax.reproduce first")
        keep(kept, read_runs(given.keep, rows))
    runs = read_kept(kept)
    write(given.docs.parent / "README.md", short(runs))
    write(given.docs / "comparison.md", whole(runs))
    figure(runs).savefig(given.docs / "comparison.png", dpi=110)


if __name__ == "__main__":
    main()
