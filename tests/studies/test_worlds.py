"""The page of the five worlds: made from the runs that are kept, which new runs are added to."""

import numpy as np
import pytest

from dwrl_jax.core import files
from dwrl_jax.core.errors import UserError
from dwrl_jax.reporting.runs import CURVES, FinishedRun
from dwrl_jax.settings.commandline import parse
from dwrl_jax.suites.definitions import IN_WORLDS, RATES_IN_WORLDS, SUITES
from dwrl_jax.workdir import records
from studies import worlds
from tests.runs import REPO

LONG = "tiny,world=long"


def a_run(method, accuracy, seed=21, config=LONG, warnings=(), objective="dwrl", base=0.6):
    """A run of one step and four pairs, below a ceiling of 85 %."""
    known = {"no_thought": {"accuracy": 0.55, "nll": 0.7}, "ceiling": {"accuracy": 0.85, "nll": 0.3}}
    row = {"config": config, "method": method, "budget": "pairs", "seed": seed, "workdir": f"{config}/{method}/{seed}"}
    row |= {"objective": objective, "pairwise": False, "votes": 1, "accuracy": accuracy, "base_accuracy": base}
    row |= dict.fromkeys(("nll", "pairs", "generated_tokens", "seconds", "steps", "ece"), 0.5)
    scores = np.where(np.arange(4)[:, None, None] < 4 * accuracy, [[-1.0], [-2.0]], [[-2.0], [-1.0]])
    return FinishedRun(row | {"known": known, "warnings": list(warnings)}, np.arange(4), scores, np.zeros((1, 5)))


def test_a_run_has_collapsed_far_below_the_ceiling_where_another_is_near_it():
    """The ceiling is .85. Nothing collapses where all are far from it, for then the world is too hard."""
    runs = [a_run("dwrl", 0.81), a_run("bvpo", 0.69), a_run("bt", 0.71), a_run("irpm", 0.5, seed=22)]
    assert worlds.collapsed(runs) == {(LONG, "bvpo", "pairs", 21)}


def test_runs_are_added_to_those_that_are_kept(tmp_path):
    """A new run of the same cell takes the old one's place; worlds and other cells stay."""
    worlds.add(tmp_path, [a_run("dwrl", 0.75, 22), a_run("dwrl", 0.5), a_run("dwrl", 0.75, config="tiny")])
    worlds.add(tmp_path, [a_run("bvpo", 0.75), a_run("dwrl", 0.25)])
    found = worlds.by_world(tmp_path)
    assert list(found) == ["plain", "long"]
    kept = [(run.row["method"], run.row["seed"], run.row["accuracy"]) for run in found["long"]]
    assert kept == [("dwrl", 21, 0.25), ("dwrl", 22, 0.75), ("bvpo", 21, 0.75)]
    np.testing.assert_array_equal(found["long"][0].log_scores, a_run("dwrl", 0.25).log_scores)


def test_runs_of_one_world_and_seed_start_from_one_model(tmp_path):
    """Only methods that begin from the same thoughts and read-out are held against each other."""
    worlds.add(tmp_path, [a_run("dwrl", 0.75), a_run("bt", 0.5, objective="bt", base=0.5)])
    assert list(worlds.by_world(tmp_path)) == ["long"]
    worlds.add(tmp_path, [a_run("bvpo", 0.75, objective="bvpo", base=0.61)])
    with pytest.raises(UserError, match="long: seed 21 has several base models, .* dwrl 0.6000, bvpo 0.6100"):
        worlds.by_world(tmp_path)


def test_the_page_is_made_from_a_workdir_and_then_from_the_kept_runs(tmp_path):
    runs = [a_run("dwrl", 0.75), a_run("dwrl", 0.5, seed=22), a_run("bvpo", 0.75), a_run("bvpo", 0.85, seed=22)]
    for run in runs:
        folder = tmp_path / "suite" / run.row["workdir"]
        (folder / "eval").mkdir(parents=True)
        records.write_scores(folder / "eval" / "trained.jsonl", run.ids, run.log_scores)
        results = {"reference": run.row["known"], "config": {"sampler": {"group_size": 8}}}
        files.write_json(folder / "results.json", results)
        steps = [dict.fromkeys(CURVES, 0.0) | {"step": step, "train/cut_off": 0.0} for step in range(1, 121)]
        for step in steps[60:] if run is runs[1] else ():
            step["train/cut_off"] = 0.9
        files.write_lines(folder / "metrics.jsonl", steps)
    rows = [{k: v for k, v in run.row.items() if k not in ("known", "warnings")} for run in runs]
    only = a_run("dwrl", 0.25, seed=23)  # a seed without bvpo: it is kept and not shown
    worlds.add(tmp_path / "worlds", [only])
    files.write_lines(tmp_path / "suite" / "results.jsonl", [*rows, rows[0] | {"config": "qwen7b"}])
    page = tmp_path / "worlds.md"
    page.write_text("By hand.\n")
    worlds.main([f"--keep={tmp_path / 'suite'}", f"--docs={tmp_path}"])
    lines = page.read_text().splitlines()
    assert lines[0] == "By hand."
    assert "| accuracy % / NLL | long | collapses |" in lines
    assert "| `dwrl` | 62.5 ± 17.7 / 0.500 | 1 of 2 |" in lines
    assert "| `bvpo` | 80.0 ± 7.1 / 0.500 | 0 of 2 |" in lines
    assert "| before training | 60.0 |  |" in lines
    assert "| ceiling | 85.0 ± 0.0 / 0.300 |  |" in lines
    (warned,) = (line for line in lines if line.startswith("| long 22 |"))
    assert warned.startswith("| long 22 | `dwrl` | 50.0 / 0.500 (collapsed) | cut_off ")
    assert (tmp_path / "worlds.png").stat().st_size > 5_000
    assert len(worlds.by_world(tmp_path / "worlds")["long"]) == 5
    first = page.read_bytes()
    worlds.main([f"--docs={tmp_path}"])
    assert page.read_bytes() == first


def test_a_warning_is_told_with_its_first_step():
    """The ceiling is .85. A warning of another method counts where the run ends near it."""
    runs = [a_run("dwrl", 0.75, warnings=[[40, "low_entropy"], [90, "ties"], [140, "low_entropy"]])]
    runs += [a_run("bvpo", 0.75, objective="bvpo", warnings=[[1, "ties"]])]
    runs += [a_run("irpm", 0.81, objective="irpm", warnings=[[2, "ties"]]), a_run("bt", 0.84, objective="bt")]
    lines = worlds.warnings({"long": runs})
    told = [
        "| long 21 | `dwrl` | 75.0 / 0.500 | low_entropy 40, ties 90 |",
        "| long 21 | `irpm` | 81.0 / 0.500 | ties 2 |",
    ]
    assert lines[2:4] == told
    assert lines[5] == "Of 2 runs that end within 5 points of the ceiling 1 warned."


def test_what_is_missing_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        worlds.main([f"--docs={tmp_path}"])
    assert ended.value.code == 2 and "worlds.md: no such page" in capsys.readouterr().err
    (tmp_path / "worlds.md").write_text("")
    for flags, message in (([], "no runs are kept here; give --keep"), ([f"--keep={tmp_path}"], "no finished cells")):
        with pytest.raises(SystemExit) as ended:
            worlds.main([f"--docs={tmp_path}", *flags])
        assert ended.value.code == 2 and message in capsys.readouterr().err


def searched(method, accuracy, seed, config=LONG):
    return {key: value for key, value in a_run(method, accuracy, seed, config).row.items() if key != "known"}


def test_a_rate_is_chosen_on_all_worlds_and_seeds_together(tmp_path):
    """bvpo: .7 and .5 beside .5 and .8. The better rate of the first world is not the better one of both."""
    rows = [searched("bvpo@5e-05", 0.7, 201), searched("bvpo@5e-05", 0.5, 201, "tiny,world=shortcut")]
    rows += [searched("bvpo@0.00015", 0.5, 201), searched("bvpo@0.00015", 0.8, 201, "tiny,world=shortcut")]
    assert worlds.best_rate(worlds.by_rate(rows)["bvpo"]) == 1.5e-4
    other = [searched("qwen@1", 0.5, 201), searched("bvpo@5e-05", 0.5, 201, "qwen7b")]
    (tmp_path / "suite").mkdir()
    files.write_lines(tmp_path / "suite" / "results.jsonl", [*rows[1:], *other])
    (tmp_path / "worlds.md").write_text("By hand.\n")
    worlds.add_rates(tmp_path / "worlds", [rows[0], rows[3] | {"accuracy": 0.1}])
    worlds.main([f"--keep={tmp_path / 'suite'}", f"--docs={tmp_path}"])
    lines = (tmp_path / "worlds.md").read_text().splitlines()
    assert "| accuracy % / NLL | 5e-05 | 0.00015 | runs |" in lines
    assert "| `bvpo` | 60.0 / 0.500 | **65.0 / 0.500** | 2 |" in lines
    assert worlds.kept_rates(tmp_path / "worlds") == sorted(rows, key=lambda row: (row["config"], row["method"]))


def test_each_method_of_the_suite_has_its_best_rate():
    """The paper's own update has the rate of `dwrl`, which is also the config's default."""
    rates = worlds.by_rate(worlds.kept_rates(REPO / "docs" / worlds.KEPT))
    best = {name: worlds.best_rate(of_method) for name, of_method in rates.items()}
    assert all(len(of_method) == len(RATES_IN_WORLDS) for of_method in rates.values())
    assert best == {name: SUITES["worlds"].arms[name].settings["optim.learning_rate"] for name in IN_WORLDS}
    paper = SUITES["worlds"].arms["dwrl_paper"].settings
    config, _ = parse([f"--config={REPO / 'configs' / 'tiny.py'}", "--workdir=unused"])
    assert best["dwrl"] == paper["optim.learning_rate"] == config.optim.learning_rate


def test_rates_with_different_runs_are_not_compared():
    with pytest.raises(UserError, match="the rates of bvpo have different runs"):
        worlds.by_rate([searched("bvpo@5e-05", 0.7, 201), searched("bvpo@0.00015", 0.7, 202)])
