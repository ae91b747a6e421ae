"""Smoke: a small suite from its command, stopped and gone on with; exact: what its table says of given scores."""

import json
import subprocess
import sys

import numpy as np
import pytest

from dwrl_jax.core.errors import UserError
from dwrl_jax.evaluation import metrics as evaluate
from dwrl_jax.reporting import suite as comparison
from dwrl_jax.suites import cells as reproduce
from dwrl_jax.suites.definitions import METHODS, SUITES
from dwrl_jax.workdir import records
from studies import findings
from tests.small import REPO

SMALL = ("optim.steps=3", "base.optim.steps=4", "eval.pairs=12", "eval.curve_pairs=12", "eval.every=1")


def command(workdir, *more):
    settings = [f"--config.{setting}" for setting in SMALL]
    line = [sys.executable, "-m", "dwrl_jax.reproduce", "--suite=tiny", f"--workdir={workdir}", *settings, *more]
    return subprocess.run(line, cwd=REPO, capture_output=True, text=True)


def test_a_suite_runs_each_cell_once(tmp_path):
    """Two arms on one base model; the second command runs what is new; all stands in the table and the figures."""
    done = command(tmp_path, "--arms=bt_token", "--seeds=11")
    assert done.returncode == 0, done.stderr
    first = (tmp_path / "tiny/bt_token/pairs-11/results.json").stat().st_mtime_ns
    done = command(tmp_path, "--arms=dwrl,bt_token", "--seeds=11", "--budgets=pairs")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "tiny/bt_token/pairs-11/results.json").stat().st_mtime_ns == first
    rows = {(row["method"], row["budget"]): row for row in reproduce.read_rows(tmp_path)}
    assert set(rows) == {("dwrl", "pairs"), ("bt_token", "pairs")}
    dwrl, token = rows["dwrl", "pairs"], rows["bt_token", "pairs"]
    assert dwrl["pairs"] == token["pairs"] == 48
    assert dwrl["generated_tokens"] > token["generated_tokens"] == 0
    results = json.loads((tmp_path / dwrl["workdir"] / "results.json").read_text())
    best = results["trained"]["k32"]
    assert (dwrl["accuracy"], dwrl["nll"]) == (best["accuracy"], best["nll"])
    assert len(list((tmp_path / "bases").iterdir())) == 1
    assert "| `dwrl` | pairs | 1 |" in done.stdout and "| `bt_token` | pairs | 1 |" in done.stdout
    assert (tmp_path / "figures_tiny.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--arms=dwrl,nothing"], "--arms=nothing: choose from dwrl, "),
        (["--seeds=77"], "--seeds=77: choose from 11, 12, 13, 14, 15"),
        (["--budgets=steps"], "--budgets=steps: choose from pairs, generated_tokens, seconds"),
        (["--arm=dwrl", "--size=3"], "not a flag"),
        (["--config.optim.step=3"], "step"),
    ],
)
def test_bad_input_is_one_line(tmp_path, flags, message):
    done = command(tmp_path, *flags)
    assert done.returncode == 2
    assert message in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_every_method_of_the_paper_is_in_the_suites():
    paper = {"dwrl", "dwrl_no_misalignment", "grpo_point", "grpo_pair", "bt", "bt_token", "bt_prefilled", "gram"}
    assert paper <= set(METHODS) == set(SUITES["hh"].arms) <= set(SUITES["tiny"].arms)
    assert not set(SUITES["tiny"].seeds) & {*SUITES["tiny_rates"].seeds, *SUITES["tiny_choices"].seeds}, (
        "chosen on other worlds"
    )


def used(steps, tokens, seconds):
    return {"steps": steps, "per_step": {"generated_tokens": tokens, "seconds": seconds}}


@pytest.mark.parametrize(
    "row, budget, expected",
    [
        (used(250, 1000, 0.5), "generated_tokens", 500),
        (used(250, 1000, 0.5), "seconds", None),  # as much already
        (used(250, 0, 0.05), "generated_tokens", None),  # has none to spend
        (used(250, 0, 0.05), "seconds", 2500),
        (used(250, 4000, 2.0), "seconds", 62),
    ],
)
def test_steps_of_an_equal_budget(row, budget, expected):
    assert reproduce.equal_steps(row, used(250, 2000, 0.5), budget) == expected


def a_run(workdir, name, right, ids):
    """A run whose trained judge is right about given pairs, with its row."""
    scores = np.where(np.asarray(right)[:, None, None], [[-1.0], [-2.0]], [[-2.0], [-1.0]])
    (workdir / name).mkdir()
    records.write_scores(workdir / name / "eval" / "trained.jsonl", np.asarray(ids), scores)
    known = {"no_thought": {"accuracy": 0.6, "nll": 0.7}, "ceiling": None}
    (workdir / name / "results.json").write_text(json.dumps({"reference": known}))
    method, seed = name.split("-")
    row = {"config": "c", "method": method, "budget": "pairs", "seed": int(seed), "workdir": name, "votes": 1}
    numbers = {
        "accuracy": float(np.mean(right)),
        "base_accuracy": 0.5,
        "nll": 0.5,
        "pairs": 16,
        "generated_tokens": 5,
        "seconds": 1.0,
    }
    return row | numbers | {"pairwise": False}


def test_rows_stand_in_the_order_of_the_arms():
    rows = [{"method": name} for name in ("bt", "unknown", "dwrl")]
    assert [row["method"] for row in reproduce.by_arm(rows, ["dwrl", "bt"])] == ["dwrl", "bt", "unknown"]


def test_the_table_says_what_the_scores_say(tmp_path):
    """Paired by pair and by seed: 3 of 4 and 4 of 4 against 2 of 4 and 2 of 4, one pair unknown to one of them."""
    rows = [
        a_run(tmp_path, "ours-1", [1, 1, 1, 0], [0, 1, 2, 3]),
        a_run(tmp_path, "ours-2", [1, 1, 1, 1], [0, 1, 2, 3]),
        a_run(tmp_path, "other-1", [0, 1, 1, 0, 1], [0, 1, 2, 3, 4]),
        a_run(tmp_path, "other-2", [0, 1, 1, 0], [0, 1, 2, 3]),
    ]
    found = comparison.paired(tmp_path, rows[2:], rows[:2], evaluate.wins)
    np.testing.assert_array_equal(found, [[-1, 0, 0, 0], [-1, 0, 0, -1]])
    text = comparison.table(tmp_path, rows, "ours")
    assert "| `ours` | pairs | 2 | 50.0 | 87.5 ± 17.7 |  | 0.500 |  | 16 | 5 | 1 |" in text
    assert "| -37.5 [" in text.splitlines()[-2]
    # every answer has a margin of one: a wrong one costs softplus(1) where a right one costs softplus(-1), one more
    assert "| +0.375 [" in text.splitlines()[-2]
    assert text.splitlines()[-1].startswith("| best no-thought reader |  | 2 |  | 60.0 ± 0.0 |  | 0.700 |")
    assert {line.count("|") for line in text.splitlines()} == {12}


def test_the_picture_of_the_findings_shows_rates_and_differences(tmp_path):
    rates = [a_run(tmp_path, f"bt@{rate}-1", [1, right], [0, 1]) for rate, right in (("0.1", 0), ("0.01", 1))]
    rows = [a_run(tmp_path, "dwrl-1", [1, 1, 0, 0], [0, 1, 2, 3]), a_run(tmp_path, "bt-1", [0, 1, 0, 0], [0, 1, 2, 3])]
    for name, some in (("rates", rates), ("choices", rows)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
        for row in some:
            (tmp_path / row["workdir"]).rename(tmp_path / name / row["workdir"])
    left, right = findings.figure(tmp_path / "rates", tmp_path / "choices").axes
    np.testing.assert_array_equal(left.lines[0].get_xydata(), [[0.01, 100], [0.1, 50]])
    (bar,) = right.containers
    np.testing.assert_array_equal(bar.lines[0].get_xydata(), [[-25, 1]])
    with pytest.raises(UserError, match="no finished cells"):
        findings.rows_of(tmp_path)


def test_the_interval_knows_seeds_and_pairs():
    """No spread, no width; a spread between seeds alone shows; so does one between pairs alone."""
    assert comparison.two_level_interval([np.full(50, 0.25)] * 3) == (0.25, 0.25)
    low, high = comparison.two_level_interval([np.zeros(50), np.ones(50)])
    assert (low, high) == (0.0, 1.0)
    pairs = np.tile([0.0, 1.0], 200)
    low, high = comparison.two_level_interval([pairs])
    assert low == pytest.approx(0.5 - 1.96 * 0.5 / 20, abs=0.01) and high == pytest.approx(0.549, abs=0.01)
