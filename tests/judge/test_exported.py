"""Parity: an exported judge has the same scores in transformers, by every way of reading them."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dwrl_jax import check_export
from dwrl_jax.core.errors import UserError
from dwrl_jax.judge import exported
from dwrl_jax.models import hf
from tests.judge.exports import export
from tests.judge.test_score import CARD, PAIRWISE, SCORES

pytest.importorskip("torch", reason="the other side needs PyTorch")
ROWS = [
    {"prompt": "s1 o1 o2 o3 o4 o5", "responses": ["s2 warm", "s5 curt"]},
    {"prompt": [{"role": "system", "content": "hm"}, {"role": "user", "content": "s4 o1"}], "responses": ["s2", "s3"]},
    {"prompt": "s1 o1", "responses": ["hello", "s2"]},
]
CARD = dataclasses.replace(CARD, max_thought=4, buckets=(32,))
CARDS = {
    "verdict": CARD,
    "label": dataclasses.replace(CARD, kind="label", texts=PAIRWISE, readout="choices", thoughts="none"),
    "thoughtful label": dataclasses.replace(CARD, kind="label", texts=PAIRWISE),
    "score": dataclasses.replace(CARD, kind="score", texts=SCORES, thoughts="none"),
    "reward": dataclasses.replace(CARD, kind="reward", thoughts="none"),
    "embedding": dataclasses.replace(CARD, kind="embedding", thoughts="none", objective="preference_embedding"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def folder(name):
        if name not in made:
            made[name] = export(tmp_path_factory.mktemp("exported") / name, CARDS[name])
        return made[name]

    return folder


SLOW = ("thoughtful label", "score", "embedding")  # parts of them are in the others


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in CARDS])
def test_parity_of_every_kind_of_judge(folders, name):
    found = exported.compare(folders(name), ROWS, votes=3)
    assert found.equal and found.responses == 4 and found.errors == 1 and found.changed == 0
    assert found.votes == 4 * (3 if CARDS[name].thoughts == "policy" else 1)
    assert 0 < found.outputs < 1e-5 and found.scores < 1e-5


def test_other_weights_are_not_equal(folders, tmp_path):
    folder = folders("verdict")
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in folder.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    loaded = exported.load(folder)
    tensors = load_file(broken / hf.SINGLE)
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 1.01
    save_file(tensors, broken / hf.SINGLE, {"format": "pt"})
    theirs = exported._transformers(broken, loaded)
    result = exported.Comparison()
    exported._compare_row(loaded, theirs, ROWS[0], 3, 0, result)
    assert not result.equal and result.outputs > 1e-3


def test_nothing_compared_or_not_finite_is_not_equal():
    assert not exported.Comparison().equal
    assert not exported.Comparison(responses=1, outputs=float("nan")).equal
    assert np.isnan(exported._largest(exported._largest(1.0, np.array([np.nan])), 2.0))


def test_a_thought_whose_text_has_other_tokens_is_counted(folders, monkeypatch):
    told = exported.ask_batch

    def another(*args, **options):
        answers = told(*args, **options)
        return [dataclasses.replace(a, thoughts=["s1 s1 s1", *a.thoughts[1:]]) for a in answers]

    monkeypatch.setattr(exported, "ask_batch", another)
    found = exported.compare(folders("verdict"), ROWS[:1], votes=3)
    assert found.changed == 2 and found.equal


def test_smoke_the_command(folders, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(map(json.dumps, ROWS)))
    with pytest.raises(SystemExit) as ended:
        check_export.main([f"--model={folders('reward')}", f"--input={rows}"])
    said = capsys.readouterr().out
    assert ended.value.code == 0 and said.startswith("4 votes about 4 responses; 1 rows could not be scored")
    assert said.endswith("equal\n") and "not equal" not in said


def test_what_is_no_export(folders, tmp_path):
    with pytest.raises(UserError, match="no export of a judge"):
        exported.compare(tmp_path, ROWS)
    folder = export(tmp_path / "start", dataclasses.replace(CARD, thoughts="start"))
    with pytest.raises(UserError, match="thoughts of another model"):
        exported.compare(folder, ROWS)
