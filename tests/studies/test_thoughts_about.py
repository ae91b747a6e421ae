"""Exact: the columns by hand. Invariance: order of responses, size of batches. Smoke: stories260K asked in two ways."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from dwrl_jax.core import files
from dwrl_jax.generation.forced import teacher_forced
from dwrl_jax.judge.card import as_json
from dwrl_jax.judge.score import prepare
from studies import thoughts_about
from tests.judge.test_score import CARD, PAIRWISE, loaded

ROWS = [
    {"prompt": "s1 o1 o2", "responses": ["s2 warm", "s5 curt"]},
    {"prompt": "s4 o3", "responses": ["s1 plain", "s2 warm"]},
    {"prompt": "s0 o2 o2", "responses": ["s3 curt", "s3 curt"]},
]


def test_a_line_by_hand():
    """Of the first pair's four thoughts three are its response's own, and one ties; of the second pair's, one is."""
    found = {
        "own": np.array([[[-1.0, -1.0], [-1.0, -2.0]], [[-1.0, -3.0], [-3.0, -3.0]]]),
        "other": np.array([[[-2.0, -2.0], [-2.0, -2.0]], [[-2.0, -2.0], [-2.0, -2.0]]]),
        "length": np.array([[[1, 2], [1, 2]], [[4, 2], [2, 2]]]),
        "cut_off": np.array([[[0, 0], [0, 0]], [[1, 1], [0, 0]]]),
        "entropy": np.full((2, 2, 2), 3.0),
        "mass": np.full((2, 2, 2), 0.75),
        "score": np.log([[[0.5, 0.7], [0.2, 0.2]], [[0.1, 0.3], [0.4, 0.4]]]),
    }
    np.testing.assert_array_equal(thoughts_about.own_share(found), [0.875, 0.25])
    share, *others = thoughts_about.line(found)
    assert share == "56.2 (25.0 to 87.5)"
    assert others == ["+0.12", "2.0", "25", "1.50", "75", "5.0"]


@pytest.fixture(scope="module")
def judge():
    return loaded()


def test_each_thought_is_read_behind_both_responses(judge):
    """Equal responses have equal probabilities, and reversed ones exchange their thoughts; both as read alone."""
    found = thoughts_about.ask(judge, ROWS, votes=2, size=2)
    assert found["own"].shape == (3, 2, 2) and (found["own"] < 0).all()
    np.testing.assert_allclose(found["own"][2], found["other"][2], atol=1e-5)
    assert np.abs(found["own"][:2] - found["other"][:2]).min() > 1e-4
    swapped = thoughts_about.ask(judge, [row | {"responses": row["responses"][::-1]} for row in ROWS], 2, size=3)
    for name, values in found.items():
        np.testing.assert_allclose(swapped[name], values[:, ::-1], atol=1e-5, err_msg=name)


def test_probabilities_are_those_of_the_training_pass(judge, monkeypatch):
    """A thought that is given in the place of the drawn ones, behind either response of a pair alone."""
    writer, thought = judge.judge.writer, [7, 9, judge.judge.end]
    given = jnp.full((2, 1, CARD.max_thought), judge.judge.pad).at[:, 0, :3].set(jnp.array(thought))
    drawn = type("Drawn", (), {"thought": given, "length": jnp.full((2, 1), 3)})
    monkeypatch.setattr(thoughts_about, "write", lambda *_: (drawn, None))
    found = thoughts_about.ask(judge, ROWS[:1], votes=1, size=1)
    alone = []
    for _, question in prepare(judge, ROWS[0]).questions:
        prefix, length = jnp.asarray(question.prefix)[None], jnp.array([len(question.prefix)])
        read = teacher_forced(writer, judge.params, prefix, length, given[:1], drawn.length[:1], judge.judge.question)
        alone.append(float(read.logp.sum()))
    np.testing.assert_allclose(found["own"][0, :, 0], alone, atol=1e-4)
    np.testing.assert_allclose(found["other"][0, :, 0], alone[::-1], atol=1e-4)
    assert not found["cut_off"].any()


def test_ways_of_asking_a_real_model_are_lines_of_a_table(shared_data, tmp_path, capsys):
    texts = {"judge_question": "Is it good?", "answer_question": "Say it.", "answers": ["a", "I"]}
    for name, temperature in (("warm", 1.0), ("cold", 0.5)):
        card = {"texts": texts, "max_thought": 6, "buckets": [256], "temperature": temperature}
        files.write_json(tmp_path / f"{name}.json", card)
    arguments = [f"--model={shared_data / 'models' / 'stories260K'}", "--rows=3", "--votes=2", "--batch_size=2"]
    arguments += [f"--input={shared_data / 'hh_rlhf' / 'validation.jsonl.gz'}"]
    thoughts_about.main([*arguments, "--judge", *(str(tmp_path / f"{name}.json") for name in ("warm", "cold"))])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "3 pairs, 2 thoughts about each response"
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[4:]]
    assert [line[0] for line in cells] == ["`warm`", "`cold`"]
    entropies = [float(line[5]) for line in cells]
    assert 0 < entropies[1] < entropies[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "label", "texts": PAIRWISE}, "not a judge that thinks about single responses"),
        ({"thoughts": "none"}, "not a judge that thinks about single responses"),
    ],
)
def test_a_judge_without_such_thoughts_is_refused(changes, message, tmp_path, capsys):
    files.write_json(tmp_path / "judge.json", as_json(dataclasses.replace(CARD, **changes)))
    files.write_lines(tmp_path / "rows.jsonl", [{"prompt": "s1", "chosen": "s2 warm", "rejected": "s3 curt"}])
    with pytest.raises(SystemExit) as ended:
        thoughts_about.main(["--model=x", f"--input={tmp_path / 'rows.jsonl'}", f"--judge={tmp_path / 'judge.json'}"])
    assert ended.value.code == 2
    assert f"judge.json: {message}" in capsys.readouterr().err
