"""Smoke: a small suite from its command, gone on with; exact: what its table says of given scores."""

import dataclasses
import itertools
import json

import numpy as np
import pytest

from dwrl_jax import reproduce
from dwrl_jax.core import files
from dwrl_jax.core.errors import UserError
from dwrl_jax.evaluation import metrics
from dwrl_jax.reporting import runs as finished
from dwrl_jax.reporting import suite as report
from dwrl_jax.suites import cells
from dwrl_jax.suites.definitions import METHODS, SUITES
from dwrl_jax.training.assemble import load_objective
from dwrl_jax.training.config import check
from dwrl_jax.workdir import records
from studies import comparison, findings, pages
from tests.small import REPO

SMALL = ("optim.steps=3", "base.optim.steps=4", "eval.pairs=12", "eval.curve_pairs=12", "eval.every=1")


def flags(workdir, *more):
    return ["--suite=tiny", f"--workdir={workdir}", *(f"--config.{setting}" for setting in SMALL), *more]


def test_a_suite_runs_each_cell_once(tmp_path, capsys):
    """Two arms on one base model; the second command runs what is new; all stands in the table and the figures."""
    reproduce.main(flags(tmp_path, "--arms=bt_token", "--seeds=77"))
    first = (tmp_path / "tiny/bt_token/pairs-77/results.json").stat().st_mtime_ns
    reproduce.main(flags(tmp_path, "--arms=dwrl,bt_token", "--seeds=77", "--budgets=pairs"))
    assert (tmp_path / "tiny/bt_token/pairs-77/results.json").stat().st_mtime_ns == first
    rows = {(row["method"], row["budget"]): row for row in finished.read_rows(tmp_path)}
    assert set(rows) == {("dwrl", "pairs"), ("bt_token", "pairs")}
    dwrl, token = rows["dwrl", "pairs"], rows["bt_token", "pairs"]
    assert dwrl["seed"] == token["seed"] == 77  # a world that is none of the suite's
    assert dwrl["pairs"] == token["pairs"] == 48
    assert dwrl["generated_tokens"] > token["generated_tokens"] == 0
    results = json.loads((tmp_path / dwrl["workdir"] / "results.json").read_text())
    best = results["trained"]["k32"]
    assert (dwrl["accuracy"], dwrl["nll"]) == (best["accuracy"], best["nll"])
    assert len(list((tmp_path / "bases").iterdir())) == 1
    output = capsys.readouterr().out
    assert "| **`dwrl`** | pairs | 1 |" in output and "| `bt_token` | pairs | 1 |" in output
    assert (tmp_path / "figures_tiny.png").stat().st_size > 10_000


def test_a_suite_of_several_worlds_has_a_table_for_each(tmp_path, monkeypatch, capsys):
    """The worlds of a cell are those of its config's variant."""
    suite = dataclasses.replace(SUITES["worlds"], configs=("tiny", "tiny,world=shortcut"))
    monkeypatch.setitem(SUITES, "worlds", suite)
    reproduce.main([*flags(tmp_path, "--arms=bt", "--seeds=77"), "--suite=worlds"])
    output = capsys.readouterr().out
    assert "**tiny**" in output and "**tiny,world=shortcut**" in output
    rows = finished.read_rows(tmp_path)
    kept = {row["config"]: files.read_json(tmp_path / row["workdir"] / "config.json") for row in rows}
    assert [kept[name]["world"]["name"] for name in suite.configs] == ["plain", "shortcut"]
    assert {config["world"]["seed"] for config in kept.values()} == {77}


@pytest.mark.parametrize("name", SUITES)
def test_every_arm_of_a_suite_has_a_config_that_can_run(name, tmp_path):
    """Settings of a suite hold for all of its arms, those of judges without thoughts too."""
    suite = SUITES[name]
    for config, arm in itertools.product(suite.configs, suite.arms):
        made, _ = cells.config_of(suite, cells.Cell(config, arm, cells.PAIRS, suite.seeds[0]), tmp_path, [])
        check(made)
        load_objective(made)


def test_the_worlds_are_compared_on_other_seeds_than_the_rates_come_from():
    assert not set(SUITES["worlds"].seeds) & set(SUITES["worlds_rates"].seeds)
    searched, compared = ({arm.objective for arm in SUITES[name].arms.values()} for name in ("worlds_rates", "worlds"))
    assert searched == compared and "dwrl_paper" in SUITES["worlds"].arms
    assert not set(SUITES["worlds"].seeds) & set(SUITES["causes"].seeds), "chosen on other worlds"


def test_adapters_stand_beside_all_weights_with_rates_that_were_tried_on_other_seeds():
    tried, compared = SUITES["tiny_lora_rates"], SUITES["tiny_lora"]
    assert not set(tried.seeds) & set(compared.seeds)
    adapted = {name: arm for name, arm in compared.arms.items() if "lora.rank" in arm.settings}
    assert {name.removesuffix("+lora") for name in adapted} == compared.arms.keys() - adapted.keys()
    for name, arm in adapted.items():
        assert arm in [each for other, each in tried.arms.items() if other.startswith(f"{name}@")]


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--configs=qwen7b", "--configs=qwen7b: choose from tiny"),
        ("--arms=dwrl,nothing", "--arms=nothing: choose from dwrl, "),
        ("--seeds=77,x", "--seeds=x: give whole numbers, for example --seeds=11,12"),
        ("--seeds=-1", "--seeds=-1: give whole numbers"),
        ("--budgets=steps", "--budgets=steps: choose from pairs, generated_tokens, seconds"),
        ("--size=3", "--size: no such flag; the nearest is --suite"),
        ("--config.optim.step=3", "step"),
        ("--config.eval.pairs=0", "eval.pairs=0: methods are compared on held-out pairs"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, flag, message):
    with pytest.raises(SystemExit) as ended:
        reproduce.main(flags(tmp_path, flag))
    assert ended.value.code == 2
    errors = capsys.readouterr().err
    assert message in errors and len(errors.strip().splitlines()) == 1


def test_seeds_arms_and_configs_are_those_asked_for():
    """Any seeds, each once; those of the suite, and all arms and configs, where none are named."""
    suite, _, _ = reproduce.parse(["--suite=tiny", "--workdir=x", "--seeds=77,3,77", "--arms=bt,dwrl"])
    assert suite.seeds == (77, 3) and list(suite.arms) == ["dwrl", "bt"]
    suite, _, _ = reproduce.parse(["--suite=worlds", "--workdir=x", "--configs", "tiny,world=few", "tiny"])
    assert suite.configs == ("tiny", "tiny,world=few") and suite.seeds == SUITES["worlds"].seeds
    suite, _, _ = reproduce.parse(["--suite=tiny", "--workdir=x"])
    assert suite == SUITES["tiny"]


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
    assert cells.equal_steps(row, used(250, 2000, 0.5), budget) == expected


def a_run(name, right, ids):
    """A run of two steps, whose trained judge is right about given pairs."""
    scores = np.where(np.asarray(right)[:, None, None], [[-1.0], [-2.0]], [[-2.0], [-1.0]])
    method, seed = name.split("-")
    row = {"config": "c", "method": method, "budget": "pairs", "seed": int(seed), "workdir": name, "votes": 1}
    numbers = {
        "accuracy": float(np.mean(right)),
        "base_accuracy": 0.5,
        "nll": 0.5,
        "pairs": 16,
        "generated_tokens": 5,
        "seconds": 1.0,
        "steps": 2,
        "ece": 0.01,
    }
    known = {"no_thought": {"accuracy": 0.6, "nll": 0.7}, "ceiling": None}
    curves = np.array([[np.nan, 2, 0.5, 0.25, 1.5], [0.75, 3, 0.5, 0.125, 1.75]])
    return finished.FinishedRun(row | numbers | {"pairwise": False, "known": known}, np.asarray(ids), scores, curves)


def write_workdir(workdir, runs):
    """The files of runs, as `dwrl_jax.reproduce` leaves them."""
    workdir.mkdir()
    for run in runs:
        folder = workdir / run.row["workdir"]
        (folder / "eval").mkdir(parents=True)
        records.write_scores(folder / "eval" / "trained.jsonl", run.ids, run.log_scores)
        (folder / "results.json").write_text(json.dumps({"reference": run.row["known"]}))
        steps = [dict(zip(finished.CURVES, step)) for step in run.curves.tolist()]
        files.write_lines(folder / "metrics.jsonl", [{k: v for k, v in step.items() if v == v} for step in steps])
    rows = [{name: value for name, value in run.row.items() if name != "known"} for run in runs]
    files.write_lines(workdir / "results.jsonl", rows)


def test_rows_stand_in_the_order_of_the_arms():
    rows = [{"method": name} for name in ("bt", "unknown", "dwrl")]
    assert [row["method"] for row in cells.by_arm(rows)] == ["dwrl", "bt", "unknown"]


@pytest.fixture
def four_runs():
    """Right about 3 of 4 and 4 of 4 pairs, against 2 of 4 and 2 of 4, one pair unknown to one of them."""
    return [
        a_run("ours-1", [1, 1, 1, 0], [0, 1, 2, 3]),
        a_run("ours-2", [1, 1, 1, 1], [0, 1, 2, 3]),
        a_run("other-1", [0, 1, 1, 0, 1], [0, 1, 2, 3, 4]),
        a_run("other-2", [0, 1, 1, 0], [0, 1, 2, 3]),
    ]


def test_the_table_says_what_the_scores_say(four_runs):
    """Differences are paired by pair and by seed."""
    found = report.paired(four_runs[2:], four_runs[:2], metrics.wins)
    np.testing.assert_array_equal(found, [[-1, 0, 0, 0], [-1, 0, 0, -1]])
    text = report.table(four_runs, "ours")
    ours = next(line for line in text.splitlines() if "ours" in line and "less" not in line)
    assert ours.startswith("| **`ours`** | pairs | 2 | 50.0 | **87.5 ± 17.7** |  | **0.500** |  | ")
    assert ours.endswith(" |  | 16 | 5 | 1 |")
    assert "| -37.5 (" in text.splitlines()[-2]
    # every answer has a margin of one: a wrong one costs softplus(1) where a right one costs softplus(-1), one more
    assert "| +0.375 (" in text.splitlines()[-2]
    assert text.splitlines()[-1].startswith("| best no-thought reader |  | 2 |  | 60.0 ± 0.0 |  | 0.700 |")
    assert {line.count("|") for line in text.splitlines()} == {14}
    short = report.table(four_runs, "ours", ("method", "nll", "accuracy"))
    assert "| `other` | 0.500 | 55.0 ± 7.1 |" in short.splitlines()


def test_the_table_of_votes_counts_them():
    """One vote is wrong by less than the other is right, so that both are right together."""
    scores = np.array([[[0.0, -1.0], [-3.0, -0.5]]])
    run = a_run("ours-1", [1], [0])
    two = finished.FinishedRun(run.row | {"votes": 2}, run.ids, scores, run.curves)
    (line,) = report.votes_table([two], votes=(1, 2, 4)).splitlines()[2:]
    one, both = (metrics.losses(metrics.log_odds(scores, votes)).mean() for votes in (1, 2))
    assert line == f"| `ours` | 50.0 | 100.0 |  | {one:.3f} | {both:.3f} |  | 0.010 | 100.0 |  |"
    orders = finished.FinishedRun(run.row | {"pairwise": True}, run.ids, scores[..., :1] - 0.01, run.curves)
    assert report.votes_table([orders], votes=(1,)).endswith(" 100.0 |")  # the orders disagree


def test_one_temperature_mends_a_judge_that_is_too_sure():
    """Its losses differ by far from those of the reference, and after one temperature not at all."""
    rng = np.random.default_rng(0)
    odds = rng.normal(1, 1, 400)
    scores = np.stack([odds, np.zeros(400)], 1)[..., None]
    calm, sure = (
        finished.FinishedRun(a_run(name, [1], [0]).row, np.arange(400), times * scores, np.zeros((0, 5)))
        for name, times in (("ours-1", 1), ("sure-1", 16))
    )
    cells = report.line([sure]) | report.differences([sure], [calm])
    assert cells["nll_less"].startswith("+0.") and float(cells["nll_less"].split()[0]) > 0.1
    assert abs(float(cells["tempered_less"].split()[0])) < 1e-3
    assert cells["tempered"] == report.line([calm])["tempered"]


def test_what_is_kept_says_the_same(tmp_path, four_runs):
    """A workdir, and the small folder that was made of it."""
    write_workdir(tmp_path / "suite", four_runs)
    read = finished.read_runs(tmp_path / "suite", finished.read_rows(tmp_path / "suite"))
    finished.keep(tmp_path / "kept", read)
    for run, again in zip(four_runs, finished.read_kept(tmp_path / "kept"), strict=True):
        assert run.row == again.row
        for name in ("ids", "log_scores", "curves"):
            np.testing.assert_array_equal(getattr(run, name), getattr(again, name))
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["results.jsonl", "scores.npz"]
    finer = [finished.FinishedRun(run.row, run.ids, run.log_scores + 1e-12, run.curves) for run in read]
    with pytest.raises(UserError, match="more digits than float32"):
        finished.keep(tmp_path / "other", finer)


def test_the_comparison_writes_tables_and_picture(tmp_path, four_runs, monkeypatch):
    """Between the marks of both pages, and again from what is kept."""
    monkeypatch.setattr(comparison, "REFERENCE", "ours")
    write_workdir(tmp_path / "suite", four_runs)
    readme, page = tmp_path / "README.md", tmp_path / "docs" / "comparison.md"
    page.parent.mkdir()
    readme.write_text("Words.\n")
    page.write_text("More words.\n")
    comparison.main([f"--keep={tmp_path / 'suite'}", f"--docs={page.parent}"])
    first = readme.read_text(), page.read_text()
    assert first[0].startswith("Words.\n") and "| `other` | 55.0 ± 7.1 |" in first[0]
    assert "| `other` | pairs | 2 |" in first[1] and "calibration error" in first[1]
    assert (page.parent / "comparison.png").stat().st_size > 10_000
    comparison.main([f"--docs={page.parent}"])
    assert (readme.read_text(), page.read_text()) == first


def test_the_tables_in_the_repository_are_those_of_the_rows_in_it():
    folder = REPO / "docs" / "comparison"
    runs = finished.read_kept(folder)
    assert pages.between((REPO / "README.md").read_text()) == comparison.short(runs)
    assert pages.between((REPO / "docs" / "comparison.md").read_text()) == comparison.whole(runs)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 4e6


def test_the_picture_of_the_findings_shows_rates_and_differences(tmp_path):
    rates = [a_run(f"bt@{rate}-1", [1, right], [0, 1]) for rate, right in (("0.1", 0), ("0.01", 1))]
    runs = [a_run("dwrl-1", [1, 1, 0, 0], [0, 1, 2, 3]), a_run("bt-1", [0, 1, 0, 0], [0, 1, 2, 3])]
    write_workdir(tmp_path / "rates", rates)
    write_workdir(tmp_path / "choices", runs)
    left, right = findings.figure(tmp_path / "rates", tmp_path / "choices").axes
    np.testing.assert_array_equal(left.lines[0].get_xydata(), [[0.01, 100], [0.1, 50]])
    (bar,) = right.containers
    np.testing.assert_array_equal(bar.lines[0].get_xydata(), [[-25, 1]])
    with pytest.raises(UserError, match="no finished cells"):
        findings.rows_of(tmp_path)


def test_the_interval_knows_seeds_and_pairs():
    """No spread, no width; a spread between seeds alone shows; so does one between pairs alone."""
    assert report.two_level_interval([np.full(50, 0.25)] * 3) == (0.25, 0.25)
    low, high = report.two_level_interval([np.zeros(50), np.ones(50)])
    assert (low, high) == (0.0, 1.0)
    pairs = np.tile([0.0, 1.0], 200)
    low, high = report.two_level_interval([pairs])
    assert low == pytest.approx(0.5 - 1.96 * 0.5 / 20, abs=0.01) and high == pytest.approx(0.549, abs=0.01)
