"""The table of causes says which runs have collapsed, and is made from the kept runs alone."""

import numpy as np
import pytest

from dwrl_jax.core import files
from dwrl_jax.core.errors import UserError
from dwrl_jax.suites.definitions import SUITES
from studies import causes

FIRST, SECOND = list(SUITES["causes"].arms)[:2]


def a_run(arm, accuracy, seed=1):
    curves = {name: [0.5, 0.6] for name in causes.CURVES}
    kept = {"config": "tiny,world=long", "method": arm, "seed": seed, "accuracy": accuracy, "nll": 0.4, "votes": 8}
    return kept | {"base_accuracy": 0.7, "ceiling": 0.85, "warnings": [], "curves": curves}


@pytest.mark.parametrize("accuracy, expected", [(0.69, True), (0.71, False)])
def test_a_run_has_collapsed_where_it_ends_far_below_the_ceiling(accuracy, expected):
    """The ceiling is .85."""
    assert causes.collapsed(a_run(FIRST, accuracy)) == expected


def test_the_page_is_made_from_the_kept_runs(tmp_path):
    runs = [a_run(FIRST, 0.6), a_run(SECOND, 0.84), a_run(SECOND, 0.8, seed=2)]
    runs[0]["warnings"] = [[40, "low_entropy"], [90, "ties"], [140, "low_entropy"]]
    files.write_lines(tmp_path / causes.KEPT, runs)
    (tmp_path / causes.PAGE).write_text("By hand.\n")
    causes.main([f"--docs={tmp_path}"])
    lines = (tmp_path / causes.PAGE).read_text().splitlines()
    assert lines[0] == "By hand." and "| arm | long 1 | long 2 |" in lines
    assert f"| `{FIRST}` | **60.0 / 0.40** (low_entropy 40, ties 90) |  |" in lines
    assert f"| `{SECOND}` | 84.0 / 0.40 | 80.0 / 0.40 |" in lines
    assert (tmp_path / causes.PICTURE).stat().st_size > 10_000


def test_a_run_is_kept_in_small_form(tmp_path):
    """Means of ten steps; the last steps that make no whole ten are left out."""
    folder = tmp_path / "cell"
    folder.mkdir()
    steps = [{f"train/{name}": float(step // 10) for name in causes.CURVES} | {"step": step} for step in range(25)]
    files.write_lines(folder / "metrics.jsonl", steps)
    results = {"config": {"sampler": {"group_size": 4}}, "reference": {"ceiling": {"accuracy": 0.85}}}
    files.write_json(folder / "results.json", results)
    row = dict.fromkeys(("config", "seed", "accuracy", "nll", "base_accuracy", "votes"), 1)
    files.write_lines(tmp_path / "results.jsonl", [row | {"method": FIRST, "workdir": "cell"}])
    causes.keep(tmp_path, tmp_path / causes.KEPT)
    (kept,) = files.read_lines(tmp_path / causes.KEPT)
    assert kept["ceiling"] == 0.85 and kept["curves"]["cut_off"] == [0, 1]
    np.testing.assert_allclose(kept["curves"]["effective_thoughts"], [0, 0.25])
    with pytest.raises(UserError, match="no finished cells"):
        causes.keep(tmp_path / "empty", tmp_path / causes.KEPT)
