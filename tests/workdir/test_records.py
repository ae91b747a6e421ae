"""Each file of a workdir is read as it was written, also as earlier versions wrote it."""

import contextlib
import json
import struct
from types import SimpleNamespace

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from dwrl_jax.core.errors import UserError
from dwrl_jax.data.pairs import Pair
from dwrl_jax.workdir import records
from tests.small import given_thoughts

CELL = {"accuracy": 0.5, "interval": [0.4, 0.6], "nll": 0.7, "ties": 0.0, "pairs": 8}


def strict(line):
    """A line of JSON without NaN and Infinity, which are no JSON."""
    return json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def written(folder, log_scores, rewards, final=5):
    """Lines of thoughts.jsonl of one pair with two thoughts for each side, and what tensorboard is given."""
    thoughts = given_thoughts(np.full((1, 2, 2, 3), final), np.full((1, 2, 2), 3))
    rows = records.thought_rows(
        SimpleNamespace(valid=np.array([True]), pair_id=np.array([7])),
        SimpleNamespace(thought=np.asarray(thoughts.thought), thought_len=np.asarray(thoughts.thought_len)),
        np.asarray(log_scores, np.float32),
        {"thought_weight": np.full((1, 2, 2), 0.5, np.float32)},
        pairs=1,
        end=5,
        stops=(6, 7),
        decode=str,
        describe=lambda pair_id: Pair((), "y", "z"),
        rewards=rewards,
    )
    told = []
    board = SimpleNamespace(add_text=lambda *args: told.append(args))
    records.write_thoughts(folder, board, [{"step": 1} | row for row in rows], 1)
    return [strict(line) for line in (folder / "thoughts.jsonl").read_text().splitlines()], told[0][1]


def scalars(folder):
    """(step, name, value) of all scalars in the files of tensorboard, whose records are length, sum, event, sum."""
    found = []
    for path in sorted(folder.glob("events.*")):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event, content = Event.FromString(content[12 : 12 + length]), content[16 + length :]
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
    return found


def test_metrics_are_a_line_and_scalars(tmp_path):
    steps = {1: {"train/pair_nll": 0.75, "eval/accuracy": 0.5}, 2: {"train/pair_nll": 0.25}}
    with records.open_tensorboard(tmp_path, 0) as board:
        for step, metrics in steps.items():
            records.write_metrics(tmp_path, board, step, metrics)
    assert list(records.read_metrics(tmp_path)) == [{"step": step} | metrics for step, metrics in steps.items()]
    expected = [(step, name, value) for step, metrics in steps.items() for name, value in metrics.items()]
    assert scalars(tmp_path / "tensorboard") == expected


def test_rewards_without_a_bound_stay_numbers(tmp_path):
    """exp(200) is no float32."""
    rows, told = written(tmp_path, [[[200.0, -200.0], [0.5, -0.25]]], rewards=True)
    assert [row["reward"] for row in rows] == [200, -200, 0.5, -0.25] and "score" not in rows[0]
    assert "reward 200.000" in told


@pytest.mark.parametrize(
    ("final", "said"),
    [(5, ("[5 5]", False, None)), (6, ("[6 6]", False, "[6]")), (8, ("[8 8 8]", True, None))],
)
def test_a_thought_says_how_it_stopped(final, said, tmp_path):
    """By its end token, by another end token, or at the limit."""
    rows, _ = written(tmp_path, np.zeros((1, 2, 2)), rewards=False, final=final)
    assert {(row["thought"], row["cut_off"], row.get("other_end")) for row in rows} == {said}


def test_scores_of_a_language_model_are_probabilities(tmp_path):
    rows, told = written(tmp_path, np.log([[[0.5, 0.25], [1.0, 0.125]]]), rewards=False)
    np.testing.assert_allclose([row["score"] for row in rows], [0.5, 0.25, 1, 0.125])
    assert "reward" not in rows[0] and "score 0.250" in told


def test_a_metric_that_is_no_number_is_not_written(tmp_path):
    with pytest.raises(UserError, match=r"metrics.jsonl: train/kl would be inf"):
        records.write_metrics(tmp_path, contextlib.nullcontext(), 1, {"train/kl": float("inf")})
    assert not (tmp_path / "metrics.jsonl").exists()


def test_last_line_of_a_repeated_step_counts(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert records.read_series(tmp_path) == {}
    path.write_text('{"step": 1, "a": 1}\n{"step": 2, "a": 2}\n{"step": 1, "a": 7}\n{"step": 3, "a"')
    steps, values = records.read_series(tmp_path)["a"]
    assert steps.tolist() == [1, 2] and values.tolist() == [7, 2] and records.total(tmp_path, "a") == 10
    path.write_text('{"step": 1}\n{"step": 2,\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2"):
        records.read_series(tmp_path)


def test_scores_come_back(tmp_path):
    ids, scores = np.array([3, 5]), np.log(np.arange(1, 13, dtype=np.float32).reshape(2, 2, 3))
    path = tmp_path / "eval" / "base.jsonl"
    records.write_scores(path, ids, scores)
    for found, expected in zip(records.read_scores(path), (ids, scores)):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "name, cell, judge",
    [
        ("gram", CELL, "label"),
        ("bt", CELL, "reward"),
        ("gone", CELL | {"flips": 0.1}, "label"),
        ("gone", CELL, "verdict"),
    ],
)
def test_the_kind_of_judge_is_known_for_older_runs_too(tmp_path, name, cell, judge):
    old = {key: {"k1": cell} for key in ("base", "trained", "gain")} | {"config": {"objective": {"name": name}}}
    records.write_results(tmp_path, old)
    assert records.read_results(tmp_path)["judge"] == judge
    records.write_results(tmp_path, old | {"judge": "score"})
    assert records.read_results(tmp_path)["judge"] == "score"


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "results.json does not exist"),
        ("{", "results.json: not JSON"),
        ('{"base": {"k1": {}}}', 'results.json: "trained" is missing'),
        ('{"base": {"best": {}}}', "results.json: \"base\" has 'best'"),
    ],
)
def test_results_that_cannot_be_used_are_named(tmp_path, text, message):
    if text is not None:
        (tmp_path / "results.json").write_text(text)
    with pytest.raises(UserError, match=message):
        records.read_results(tmp_path)
