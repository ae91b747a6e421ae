"""The tables of judges and of adaptive votes are those of the rows that are kept."""

import numpy as np

from dwrl_jax.core import files
from dwrl_jax.judge.votes import Adaptive
from dwrl_jax.reporting.runs import read_kept
from studies import adaptive_votes, judges, pages
from tests.reporting.test_evaluation_page import write
from tests.small import REPO


def test_the_tables_in_the_repository_are_those_of_the_files_in_it():
    kept = judges.read_kept(REPO / "docs" / judges.KEPT)
    page = (REPO / "docs" / judges.PAGE).read_text(encoding="utf-8")
    assert pages.between(page) == judges.tables(kept)
    assert sum(path.stat().st_size for path in (REPO / "docs" / judges.KEPT).iterdir()) < 1e6


def test_the_table_of_adaptive_votes_is_that_of_the_kept_votes():
    made = adaptive_votes.table(read_kept(REPO / "docs" / "comparison"), Adaptive())
    assert pages.between((REPO / "docs" / "evaluate.md").read_text(encoding="utf-8")) == made


def test_spent_votes_by_hand():
    """One pair is settled after 8 of 32 votes, one never, and its first 8 votes are against it."""
    steady, mixed = np.full(32, 0.3), np.tile([0.1, -0.1], 16)
    share, same = adaptive_votes.spent(np.stack([steady, mixed + 1e-6]), Adaptive(), "scaled")
    assert share == (8 + 32) / 64 and same == 1
    turned = np.r_[np.full(8, 0.1), np.full(24, -0.5)]
    assert adaptive_votes.spent(turned[None], Adaptive(), "scaled") == (0.25, 0.0)


def test_kept_evaluations_make_the_table(tmp_path):
    write(tmp_path / "a", [1, 1, 0, 1])
    write(tmp_path / "b", [1, 1, 1, 1])
    files.write_text(tmp_path / judges.PAGE, "Words.\n")
    judges.main([f"--docs={tmp_path}", "--keep", f"one judge={tmp_path / 'a'}", f"two={tmp_path / 'b'}"])
    page = (tmp_path / judges.PAGE).read_text()
    assert page.startswith("Words.\n") and "**preference pairs of `f`** (4 rows, seed 0, commit abc)" in page
    first, second = page.splitlines()[-3:-1]
    assert first.startswith("| one judge | 4 votes | 75.0 (") and "| 50.0 | +25.0 (" in first
    assert second.startswith("| two | 4 votes | 100.0 (100.0 to 100.0) | +25.0 (+0.0 to +75.0) |")
    judges.main([f"--docs={tmp_path}"])
    assert (tmp_path / judges.PAGE).read_text() == page
    judges.main([f"--docs={tmp_path}", "--keep", f"a third={tmp_path / 'a'}", f"one judge={tmp_path / 'a'}"])
    *kept, last = (tmp_path / judges.PAGE).read_text().splitlines()[-4:-1]
    assert kept == [first, second] and last.startswith("| a third | 4 votes | 75.0 (")


def test_each_file_of_pairs_has_a_table(tmp_path):
    write(tmp_path / "a", [1, 1, 0, 1])
    write(tmp_path / "b", [1, 0], data="folder/g.jsonl")
    files.write_text(tmp_path / judges.PAGE, "")
    judges.main([f"--docs={tmp_path}", "--keep", f"judge={tmp_path / 'a'}", f"judge={tmp_path / 'b'}"])
    lines = (tmp_path / judges.PAGE).read_text().splitlines()
    assert [line for line in lines if line.startswith("**")] == [
        f"**preference pairs of `{file}`** ({count} rows, seed 0, commit abc)" for file, count in (("f", 4), ("g", 2))
    ]
    assert [line.split("|")[3][:6] for line in lines if line.startswith("| judge | 4")] == [" 75.0 ", " 50.0 "]
