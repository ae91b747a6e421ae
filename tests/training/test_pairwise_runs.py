"""Smoke: the pairwise objectives from their command lines, and what a run with them leaves."""

import json
import re
from pathlib import Path

import pytest

from dwrl_jax.core.errors import UserError
from dwrl_jax.settings.commandline import parse
from tests.runs import REPO, fit, lines, run_command, tiny

FEW = ["--config.optim.steps=2"]
TWO_VOTES = ["--config.sampler.group_size=2", "--config.eval.votes=(1,2)"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of which the base model has seen both kinds of dialogues, made once."""
    folder = tmp_path_factory.mktemp("run")
    variant = "grpo_pair,smoke"
    assert parse([*tiny(variant), "--workdir=unused"])[0].base.world.pairwise_share > 0
    fit(folder, *FEW, *TWO_VOTES, variant=variant)
    return folder


def results_of(name, run, workdir, *arguments):
    votes = [] if name == "gram" else TWO_VOTES
    model = f"--config.model.path={run / 'base' / 'model'}"
    return fit(workdir, *FEW, *votes, model, *arguments, variant=f"{name},smoke")


@pytest.mark.parametrize("name", ["gram", "grpo_pair", "rm_r1"])
def test_every_pairwise_objective_runs(name, run, tmp_path):
    options = [] if name == "gram" else ["--config.objective.kl=0.1", "--config.objective.policy_updates=2"]
    results = results_of(name, run, tmp_path, *options)
    votes = ["k1"] if name == "gram" else ["k1", "k2"]
    assert list(results["trained"]) == votes
    for found in (*results["base"].values(), *results["trained"].values()):
        assert 0 <= found["accuracy"] <= 1 and 0 <= found["flips"] <= 1 and -0.5 <= found["position_bias"] <= 0.5
    metrics = lines(tmp_path / "metrics.jsonl")
    assert len(metrics) == 2 and {"train/pair_nll", "train/flips", "train/pair_accuracy"} <= metrics[0].keys()
    drawn = {"train/reward", "train/verdict_accuracy", "train/kl", "train/loss_policy_2", "sample/tokens_per_second"}
    assert drawn <= metrics[0].keys() if name != "gram" else not drawn & metrics[0].keys()
    assert ("train/well_formed" in metrics[0]) == (name == "rm_r1")
    assert {"eval/flips", "eval/position_bias"} <= metrics[1].keys()


def test_the_report_says_what_the_order_does(run):
    page = (run / "report.html").read_text()
    text = re.sub(r"\s+", " ", page)
    assert "<th>flips</th><th>position bias</th>" in page and "The two orders disagree" in page
    assert "Every thought compares both responses" in text
    rows = lines(run / "thoughts.jsonl")
    assert rows and all("dual_weight" not in row and 0 <= row["score"] <= 1 for row in rows)
    flips = json.loads((run / "results.json").read_text())["trained"]["k2"]["flips"]
    assert f"<td>{100 * flips:.1f} %</td>" in page


def test_the_second_update_is_clipped_against_the_policy_that_sampled(run, tmp_path):
    """One update leaves a ratio of 1; before the second one it has moved. In large groups some verdict is right."""
    ratio, large = {}, ["--config.sampler.group_size=16", "--config.data.batch_size=8"]
    for count in (1, 2):
        options = [f"--config.objective.policy_updates={count}", "--config.optim.learning_rate=0.01", *large]
        results_of("grpo_pair", run, tmp_path / str(count), *options)
        ratio[count] = lines(tmp_path / str(count) / "metrics.jsonl")[1]["train/ratio_max"]
    assert ratio[1] == pytest.approx(1, abs=1e-3) and ratio[2] > 1.01


def test_labels_that_do_not_sum_to_one_are_refused(run, tmp_path):
    with pytest.raises(UserError, match="score.readout='vocab': grpo_pair needs 'choices'"):
        results_of("grpo_pair", run, tmp_path, "--config.score.readout=vocab")


@pytest.mark.parametrize(
    "name",
    [
        "qwen3b:gram",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("llama8b:grpo_pair", "stories_hh:rm_r1")),
    ],
)
def test_other_configs_take_pairwise_objectives(name, tmp_path, capsys):
    file, objective = name.split(":")
    config = REPO / "configs" / f"{file}.py"
    assert run_command("train", f"--config={config}:{objective},smoke", f"--workdir={tmp_path}") == 0
    assert "flips" in capsys.readouterr().out
    assert json.loads((Path(tmp_path) / "results.json").read_text())["trained"]["k1"]["pairs"] == 16
