"""Evaluations in processes of their own: what a start leaves for the next, and two processes as one."""

import json

import numpy as np
import pytest

from dwrl_jax.judge.card import as_json
from dwrl_jax.models import hf
from dwrl_jax.models.families.presets import PRESETS, shrink
from tests.judge.test_score import CARD, loaded
from tests.models.test_hf_hosts import run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random judge of the built-in world as a folder."""
    judge, path = loaded(), tmp_path_factory.mktemp("judge") / "model"
    config = judge.judge.model.config
    hf_config = shrink(PRESETS["qwen2.5-3b"], config.vocab_size, max_position_embeddings=128)
    hf.save_model(
        path,
        judge.params,
        config,
        hf_config,
        tokenizer=judge.dialogue.tokenizer,
        documents={"judge.json": as_json(CARD)},
    )
    return path


def test_programs_are_kept_for_a_command_that_goes_on(folder, tmp_path, monkeypatch):
    """In the output, unless JAX was told a place."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    flags = [f"--model={folder}", "--benchmark=world", "--data=0:4", "--votes=2", "--batch_size=4"]
    run("dwrl_jax.evaluate", *flags, f"--output={tmp_path}", timeout=600)
    assert list((tmp_path / "compiled").glob("jit__answers-*-cache"))


@pytest.mark.slow
@pytest.mark.parametrize("votes", ["2", "auto"])
def test_two_processes_are_one(folder, votes, tmp_path):
    flags = [f"--model={folder}", "--benchmark=world", "--data=0:10", f"--votes={votes}", "--batch_size=4"]
    run("dwrl_jax.evaluate", *flags, f"--output={tmp_path / 'one'}", devices=1, timeout=600)
    run("dwrl_jax.evaluate", *flags, "--mesh=data=2", f"--output={tmp_path / 'two'}", processes=2, timeout=600)
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "rows.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert [row["id"] for row in two] == [str(i) for i in range(10)]
    for expected, row in zip(one, two, strict=True):
        assert row["thoughts"] == expected["thoughts"] and row["tokens"] == expected["tokens"]
        np.testing.assert_allclose(row["log_odds"], expected["log_odds"], atol=1e-5)
        np.testing.assert_allclose(row["no_thought"]["score"], expected["no_thought"]["score"], rtol=1e-5)
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("one", "two")]
    assert summaries[0]["overall"] == summaries[1]["overall"] and summaries[0]["votes"] == summaries[1]["votes"]
