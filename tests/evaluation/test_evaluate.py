"""The command: what it writes, that it goes on where it was stopped, and that no row is lost without a word."""

import dataclasses
import importlib
import json

import numpy as np
import pytest

from dwrl_jax import evaluate as command
from dwrl_jax.core.errors import UserError
from dwrl_jax.evaluation import judged, run
from dwrl_jax.judge import score
from tests.judge.test_score import CARD, PAIRWISE, TEXTS, loaded

scoring = importlib.import_module("dwrl_jax.judge.score")  # the package gives the function this name
ROWS = [
    {"input": "s1 o1 o2 o3 o4 o5", "output_1": "s2 warm", "output_2": "s5 curt", "label": 1},
    {"input": "s4 o1 o2", "output_1": "s2 warm", "output_2": "s3 plain", "label": 2},
    {"input": "s4 hello", "output_1": "s2 warm", "output_2": "s3 plain", "label": 2},
    {"input": "s4 o1 o2", "output_1": "s2 warm", "output_2": "s3 plain"},
    {"input": "s0 o3 o2", "output_1": "s1 warm", "output_2": "s3 plain", "label": 2},
]


@pytest.fixture(scope="module")
def judge():
    return loaded()


@pytest.fixture(scope="module")
def pairwise():
    return loaded(dataclasses.replace(CARD, kind="label", texts=PAIRWISE, readout="choices", buckets=(32,)))


@pytest.fixture(scope="module")
def llmbar(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "Natural.json").write_text(json.dumps(ROWS[:3]))
    (folder / "GPTOut.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[3:]))
    return folder


@pytest.fixture
def call(monkeypatch, judge):
    """The command with a judge that is already loaded."""

    def called(*arguments, judge=judge):
        monkeypatch.setattr(command, "load", lambda *_, **__: judge)
        command.main(["--model=random", "--votes=4", "--batch_size=4", *map(str, arguments)])

    return called


@pytest.fixture(scope="module")
def finished(judge, llmbar, tmp_path_factory):
    output = tmp_path_factory.mktemp("finished") / "out"
    run.evaluate(judge, "llmbar", str(llmbar), output, 4, batch_size=4)
    return output


def rows_of(output):
    return [json.loads(line) for line in (output / "rows.jsonl").read_text().splitlines()]


def test_rows_have_the_scores_that_scoring_gives(judge, finished):
    rows = rows_of(finished)
    assert [row["id"] for row in rows] == [
        "GPTOut.jsonl:1",
        "GPTOut.jsonl:2",
        *(f"Natural.json:{n}" for n in (1, 2, 3)),
    ]
    (alone,) = score(judge, [{"prompt": ROWS[4]["input"], "responses": ["s1 warm", "s3 plain"]}], votes=4, batch_size=4)
    assert rows[1]["thoughts"] == alone["thoughts"] and np.shape(rows[1]["votes"]) == (2, 4)
    np.testing.assert_allclose(rows[1]["log_odds"], alone["log_odds"], atol=1e-5)
    assert rows[0]["error"] == "missing column: label" and rows[4]["error"] == "unknown word: hello"
    assert rows[1]["tokens"]["thoughts"] >= 8 and rows[1]["tokens"]["prefix"] > 8


def test_the_summary_counts_what_the_rows_say(finished):
    summary, rows = json.loads((finished / "summary.json").read_text()), rows_of(finished)
    kept = [row for row in rows if row.get("error") is None]
    right = [row["score"][row["right"].index(True)] > row["score"][row["right"].index(False)] for row in kept]
    assert summary["overall"] == pytest.approx(np.mean(right)) and summary["n"] == 3
    assert summary["errors"] == {"missing column": 1, "unknown word": 1}
    assert summary["votes"] == 4 and summary["tokens"]["thoughts"] == sum(row["tokens"]["thoughts"] for row in kept)
    assert summary["cost"]["thoughts per pair"] == 8
    assert {"interval", "ties", "subsets", "seconds", "model", "commit", "padding"} <= summary.keys()
    assert summary["pairs"]["consistency"] == 1 and list(summary["pairs"]["by votes"]) == ["1", "2", "4"]


@pytest.mark.parametrize("kind", ["verdict", "label"])
def test_the_score_without_a_thought_is_that_of_a_judge_without_thoughts(kind, judge, pairwise):
    """Invariance: from the cache of the thoughts, or by teacher forcing."""
    judge = judge if kind == "verdict" else pairwise
    row = {"prompt": "s1 o1 o2", "responses": ["s2 warm", "s5 curt"]}
    (thinking,) = run_once(judge, row, 4)
    plain = dataclasses.replace(judge, card=dataclasses.replace(judge.card, thoughts="none"))
    (expected,) = score(plain, [row], batch_size=4)
    np.testing.assert_allclose(thinking["no_thought"]["score"], expected["score"], rtol=1e-4)
    np.testing.assert_allclose(thinking["no_thought"]["votes"], expected["votes"], rtol=1e-4)
    assert np.abs(np.array(thinking["score"]) - expected["score"]).max() > 1e-3, "thoughts change nothing"


def run_once(judge, row, votes):
    from dwrl_jax.judge.score import Work

    return list(score(judge, [row], votes, batch_size=4, work=Work()))


def test_stopped_and_gone_on_is_the_same(judge, llmbar, finished, tmp_path, monkeypatch):
    """Killed behind three rows, with half a row written; then another number of votes is refused, and it goes on."""
    output = tmp_path / "out"

    def dies(*arguments, **options):
        iterator = score(*arguments, **options)
        for _ in range(3):
            yield next(iterator)
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "score", dies)
    with pytest.raises(KeyboardInterrupt):
        run.evaluate(judge, "llmbar", str(llmbar), output, 4, batch_size=4)
    (output / "rows.jsonl").write_text((output / "rows.jsonl").read_text() + '{"id": "half a ')
    with pytest.raises(UserError, match=r"holds another evaluation \(other votes\)"):
        run.evaluate(judge, "llmbar", str(llmbar), output, 2, batch_size=4)
    given, asked, begin = [], [], scoring.begin_batch

    def counts(*arguments, **options):
        for row in score(*arguments, **options):
            given.append(row)
            yield row

    monkeypatch.setattr(run, "score", counts)
    monkeypatch.setattr(scoring, "begin_batch", lambda *rest, **options: asked.append(rest) or begin(*rest, **options))
    run.evaluate(judge, "llmbar", str(llmbar), output, 4, batch_size=4)
    assert len(given) == 2, "rows that were finished are given again"
    assert (output / "rows.jsonl").read_bytes() == (finished / "rows.jsonl").read_bytes()
    given.clear(), asked.clear()
    run.evaluate(judge, "llmbar", str(llmbar), output, 4, batch_size=4)
    assert not given and not asked, "a finished evaluation is only summarised"


def test_the_command_prints_what_the_summary_says(call, llmbar, tmp_path, capsys):
    call("--benchmark=llmbar,world", f"--data={llmbar},3:6", f"--output={tmp_path / 'out'}")
    told = capsys.readouterr().out
    for name in ("llmbar", "world"):
        overall = json.loads((tmp_path / "out" / name / "summary.json").read_text())["overall"]
        assert f"{100 * overall:.1f}%" in told
    assert "LLMBar, 4 votes" in told and "without a thought" in told and "thoughts add" in told
    assert "2 rows without a score (missing column 1, unknown word 1)" in told


def test_two_outputs_side_by_side(call, finished, llmbar, tmp_path, capsys):
    call("--benchmark=llmbar", f"--data={llmbar}", f"--output={tmp_path / 'two'}", "--seed=1")
    capsys.readouterr()
    command.main(["--compare", str(finished), str(tmp_path / "two")])
    told = capsys.readouterr().out
    first, second = (run.read(folder).summary["overall"] for folder in (finished, tmp_path / "two"))
    assert f"{100 * (second - first):+.1f}" in told.splitlines()[2]
    call("--benchmark=world", "--data=3:4", f"--output={tmp_path / 'three'}")
    for folders, said in (
        (["three"], "have no benchmark in common"),
        ([], "give two or more"),
        (["no"], "no finished"),
    ):
        with pytest.raises(SystemExit):
            command.main(["--compare", str(finished), *(str(tmp_path / folder) for folder in folders)])
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--benchmark=llmbar,hh", "--data=a"], "1 places for 2 benchmarks"),
        (["--benchmark=llmbar,llmbar"], "a name twice"),
        (["--benchmark=nothing"], "choose from hh"),
        (["--benchmark=world", "--delta=0", "--votes=auto"], "--delta=0.0: must be above 0"),
        (["--benchmark=world", "--votes=0"], "votes=0: must be at least 1"),
        (["--benchmark=world", "--votes=many"], "--votes=many: give a whole number, or auto"),
    ],
)
def test_bad_input_is_one_line(flags, said, call, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        call(*flags, f"--output={tmp_path / 'out'}")
    message = capsys.readouterr().err
    assert stopped.value.code == 2 and said in message and message.count("\n") == 1


def test_a_pairwise_judge_is_asked_in_both_orders(pairwise, llmbar, tmp_path):
    run.evaluate(pairwise, "llmbar", str(llmbar), tmp_path / "out", 4, batch_size=4)
    evaluation = run.read(tmp_path / "out")
    row = evaluation.scored[0]
    assert row["order"] == [[[0, 1]], [[1, 0]]] and np.shape(row["votes"]) == (2, 4)
    first, second = np.mean(row["votes"], 1)
    assert judged.verdicts(row, "label", row["votes"]) == [int(first < 0.5), int(second > 0.5)]
    (pair,) = judged.pairs(evaluation.benchmark, [row], "label")
    probability = 1 / (1 + np.exp(-judged.log_odds([pair], "label")[0, 0]))
    wins = (first + 1 - second) / 2  # of response 0; the right one is response 1
    assert row["right"] == [False, True] and probability == pytest.approx(1 - wins, rel=1e-5)
    assert row["score"] == pytest.approx([wins, 1 - wins], rel=1e-5)


def test_votes_against_several_others_are_found():
    """Three responses: votes of i are those against the first other one, then against the second."""
    votes = [[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]
    told = np.exp(judged.log_scores(votes, 1, 2, "label"))
    np.testing.assert_allclose(told, [[0.4], [1 - 0.6]])
    np.testing.assert_allclose(np.exp(judged.log_scores(votes, 2, 0, "label")), [[0.5], [1 - 0.2]])


def test_rewards_have_no_votes(llmbar, tmp_path):
    bare = dataclasses.replace(CARD, kind="reward", texts=dataclasses.replace(TEXTS, kind="bare"), thoughts="none")
    run.evaluate(loaded(bare, outputs=1), "llmbar", str(llmbar), tmp_path / "out", 4, batch_size=4)
    evaluation = run.read(tmp_path / "out")
    assert evaluation.summary["no_thought"] is None and evaluation.summary["cost"]["thoughts per pair"] == 0
    row = evaluation.scored[0]
    odds = judged.log_odds(judged.pairs(evaluation.benchmark, [row], "reward"), "reward")
    assert odds[0, 0] == pytest.approx(row["score"][1] - row["score"][0], rel=1e-5)
