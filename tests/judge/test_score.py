"""Invariance: a row's scores depend on the row alone; exact: what is made of votes; smoke: the command."""

import dataclasses
import importlib
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit

from dwrl_jax import score as command
from dwrl_jax.core import lock, sharding
from dwrl_jax.core.errors import UserError
from dwrl_jax.core.types import PreferenceBatch
from dwrl_jax.data import world
from dwrl_jax.dialogue import Texts, make_dialogue
from dwrl_jax.judge import JudgeCard, LoadedJudge, score, scored_file, votes
from dwrl_jax.judge.card import as_json, read_card
from dwrl_jax.judge.judge import logps, mean_score
from dwrl_jax.judge.load import make_judge
from dwrl_jax.judge.rows import bucket_of, questions_of, read_row
from dwrl_jax.judge.thoughts import no_thoughts
from dwrl_jax.models import hf
from dwrl_jax.models.families import model_config, with_value_head
from dwrl_jax.models.families.presets import PRESETS, shrink
from tests.small import in_process_of_devices, lively

scoring = importlib.import_module("dwrl_jax.judge.score")  # the package gives the function this name
TEXTS = Texts(world.JUDGE, world.ASK, world.ANSWERS)
PAIRWISE = Texts("{conversation} A {first} B {second} judge", "good?", ("yes", "no"), turn="{content}", kind="label")
SCORES = dataclasses.replace(TEXTS, kind="score", answers=("off4", "off3", "off2", "off1", "off0"))
CARD = JudgeCard(texts=TEXTS, max_thought=5, buckets=(16, 32), chunk=64)
ROWS = [
    {"id": 1, "prompt": "s1 o1 o2 o3 o4 o5", "responses": ["s2 warm", "s5 curt", "s3 plain"]},
    {"id": 2, "prompt": "s4 o1 o2", "response": "s2 warm", "score": "the row's own"},
    {"id": 3, "prompt": "s0 o1 o2", "chosen": "s2 warm", "rejected": "s3 curt"},
    {"id": 4, "prompt": "s0 " + "o1 " * 24, "response": "s3 curt"},
]


def talkative(shape):
    """Random parameters whose next token is open."""
    params = lively(shape)
    params["params"]["embed"]["embedding"] *= 0.15  # the head too, which is tied to it
    return params


def loaded(card=CARD, mesh=None, outputs=0) -> LoadedJudge:
    """A random judge of the built-in world that knows no folder."""
    tokenizer = world.make_tokenizer()
    hf_config = shrink(PRESETS["qwen2.5-3b"], 1 + max(tokenizer.get_vocab().values()), max_position_embeddings=128)
    if outputs:
        hf_config = with_value_head(hf_config, tokenizer.pad_token_id, outputs)
    shape = model_config(hf_config)
    dialogue = make_dialogue(tokenizer, card.texts)
    mesh = sharding.make_mesh(mesh or {"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[: 1 if mesh is None else 8])
    return LoadedJudge(make_judge(card, shape, dialogue), talkative(shape), None, card, dialogue, mesh, "random")


@pytest.fixture(scope="module")
def judge():
    return loaded()


@pytest.fixture(scope="module")
def scored(judge):
    return list(score(judge, ROWS, votes=4, batch_size=4))


def test_rows_keep_their_columns_and_order(scored):
    assert [row["id"] for row in scored] == [1, 2, 3, 4] and not any("error" in row for row in scored)
    assert scored[0]["responses"] == ROWS[0]["responses"] and scored[2]["chosen"] == "s2 warm"
    assert scored[1]["input_score"] == "the row's own" and isinstance(scored[1]["score"], float)
    assert np.shape(scored[0]["votes"]) == (3, 4) and np.shape(scored[0]["thoughts"]) == (3, 4)
    for row in scored:
        np.testing.assert_allclose(row["score"], np.mean(row["votes"], -1), rtol=1e-6)
        np.testing.assert_allclose(expit(row["log_odds"]), row["score"], rtol=1e-6)
    assert np.argsort(scored[0]["rank"]).tolist() == np.argsort(-np.array(scored[0]["score"])).tolist()
    assert len({text for texts in scored[0]["thoughts"] for text in texts}) > 6, "thoughts are all alike"


def test_scores_depend_on_the_row_alone(judge, scored):
    """Shuffled, alone, twice in one input, in other batches and with another number of votes."""
    for order, batch_size in (([3, 1, 0, 2, 1], 4), ([1], 2)):
        again = list(score(judge, [ROWS[i] for i in order], votes=4, batch_size=batch_size))
        for i, row in zip(order, again):
            assert row["thoughts"] == scored[i]["thoughts"]
            np.testing.assert_allclose(row["log_odds"], scored[i]["log_odds"], atol=1e-5)
    fewer = list(score(judge, ROWS[1:2], votes=2, batch_size=4))
    assert fewer[0]["thoughts"] == scored[1]["thoughts"][:2]
    other = list(score(judge, ROWS[1:2], votes=4, seed=1, batch_size=4))
    assert other[0]["thoughts"] != scored[1]["thoughts"]


def score_on_a_mesh():
    judge = loaded(mesh={"data": 2, "fsdp": 2, "tensor": 2})
    alone = list(score(loaded(), ROWS, votes=4, batch_size=4))
    for row, expected in zip(score(judge, ROWS, votes=4, batch_size=4), alone):
        assert row["thoughts"] == expected["thoughts"]
        np.testing.assert_allclose(row["log_odds"], expected["log_odds"], atol=1e-5)


def test_scores_do_not_depend_on_the_mesh():
    in_process_of_devices(score_on_a_mesh, 8)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (None, "not json"),
        ({"prompt": "s1"}, "unknown format"),
        ({"response": "s1 warm"}, "missing column: prompt"),
        ({"prompt": "s1", "responses": []}, "responses: not a list"),
        ({"prompt": "s1", "responses": ["s1 warm", " "]}, "empty response"),
        ({"prompt": "s1", "response": "<end>"}, "control token"),
        ({"prompt": "s1 hello", "response": "s1 warm"}, "unknown word: hello"),
        ({"prompt": "o1 " * 200, "response": "s1 warm"}, "too long: 211 tokens, at most 118"),
        ({"prompt": [{"role": "tool", "content": "s1"}], "response": "s1 warm"}, "tool turn"),
    ],
)
def test_a_bad_row_costs_itself(judge, scored, row, reason):
    bad, good = score(judge, [row, ROWS[1]], votes=4, batch_size=4)
    assert bad["score"] is bad["rank"] is bad["votes"] is None and re.match(reason, bad["error"])
    np.testing.assert_allclose(good["log_odds"], scored[1]["log_odds"], atol=1e-5)


def test_a_pairwise_judge_compares_all_responses():
    """P(i > j) is the mean over both orders and all votes, and a score the mean over the others."""
    judge = loaded(dataclasses.replace(CARD, kind="label", texts=PAIRWISE, readout="choices", buckets=(32,)))
    three, alone = score(judge, [ROWS[0], ROWS[1]], votes=2, batch_size=6)
    assert "compares" in alone["error"]
    first = np.array(three["votes"]).reshape(3, 2, 2).mean(-1)  # shown first against each of the two others
    win = {(i, j): first[i, place] for i in range(3) for place, j in enumerate(j for j in range(3) if j != i)}
    expected = [np.mean([(win[i, j] + 1 - win[j, i]) / 2 for j in range(3) if j != i]) for i in range(3)]
    np.testing.assert_allclose(three["score"], expected, rtol=1e-6)
    assert sum(three["score"]) == pytest.approx(1.5)


def test_judges_without_thoughts_have_one_vote():
    """Parity with the log-probabilities that training has, by a verdict and by a mean score."""
    for texts in (TEXTS, SCORES):
        card = dataclasses.replace(CARD, kind=texts.kind, texts=texts, thoughts="none")
        judge = loaded(card)
        (row,) = score(judge, ROWS[2:3], votes=8, batch_size=2)
        assert row["thoughts"] == [[], []] and np.shape(row["votes"]) == (2, 1)
        prefix = [s.prefix for s in questions(judge)]
        np.testing.assert_allclose(np.log(row["score"]), forced(judge, prefix), atol=1e-5)


def questions(judge):
    return questions_of(read_row(ROWS[2], judge.card.kind), judge.card.kind, judge.dialogue, 100)[0]


def forced(judge, prefix):
    length = max(map(len, prefix))
    padded = np.stack([np.pad(ids, (0, length - len(ids)), constant_values=judge.judge.pad) for ids in prefix])
    batch = PreferenceBatch(
        prefix=jnp.asarray(padded)[None],
        prefix_len=jnp.asarray([[len(ids) for ids in prefix]]),
        answer=jnp.full((1, 2), judge.judge.answers[0]),
        valid=jnp.ones(1, bool),
        pair_id=jnp.zeros(1, jnp.int32),
    )
    return logps(judge.judge, judge.params, batch, no_thoughts(batch, judge.judge.end)).answer[0, :, 0]


def test_a_reward_is_the_value_head_at_the_last_token():
    bare = dataclasses.replace(TEXTS, kind="bare")
    judge = loaded(dataclasses.replace(CARD, kind="reward", texts=bare, thoughts="none"), outputs=1)
    (row,) = score(judge, ROWS[2:3], votes=8, batch_size=2)
    ids = [question.prefix for question in questions(judge)]
    for reward, prefix in zip(row["score"], ids):
        hidden, _ = judge.judge.model.apply(judge.params, prefix[None, None], jnp.arange(len(prefix))[None, None])
        head = judge.params["params"]["value_head"][0]
        assert reward == pytest.approx(float(head @ hidden[0, 0, -1]), abs=1e-4)
    assert row["log_odds"] == row["score"]


def test_an_embedding_can_prefer_in_circles():
    bare = dataclasses.replace(TEXTS, kind="bare")
    card = dataclasses.replace(
        CARD, kind="embedding", texts=bare, thoughts="none", objective="preference_embedding",
        hyper={"planes": 2, "beta": 0.5},
    )  # fmt: skip
    (row,) = score(loaded(card, outputs=4), ROWS[:1], batch_size=4)
    assert all(0 < value < 1 for value in row["score"]) and sum(row["score"]) == pytest.approx(1.5)


def test_votes():
    log_scores = np.log([[0.2, 0.4], [0.5, 0.7]])
    np.testing.assert_allclose(votes.mean_vote(log_scores), np.log([0.3, 0.6]))
    np.testing.assert_allclose(votes.log_odds(np.log([0.3, 0.5])), [np.log(3 / 7), 0], atol=1e-12)
    assert np.isfinite(votes.log_odds(np.array([0.0, -1e-12, -800.0]))).all()
    assert votes.ranks([0.1, 0.5, 0.5, 0.9]).tolist() == [4, 2, 2, 1]
    odds = np.array([[0.0, 2.0, -1.0], [-2.0, 0.0, 0.5], [1.0, -0.5, 0.0]])
    np.testing.assert_allclose(votes.compared(odds)[0], (expit(2.0) + expit(-1.0)) / 2)
    win = {(0, 1): 0.9, (1, 0): 0.3}
    np.testing.assert_allclose(votes.against_others(win, 2), [0.8, 0.2])


def test_a_mean_score_lies_between_its_ends():
    p = np.array([[1.0, 0, 0, 0], [0, 0, 0, 1.0], [0.25] * 4, [0.1, 0.2, 0.3, 0.4]])
    expected = p @ np.array([1, 3, 5, 7]) / 8
    found = mean_score(jnp.log(jnp.maximum(p, 1e-30)))
    np.testing.assert_allclose(np.exp(found), expected, rtol=1e-5)
    np.testing.assert_allclose(mean_score(jnp.log(jnp.maximum(p, 1e-30)) - 3), found, rtol=1e-5)


def test_a_bucket_follows_from_the_length_alone():
    assert [bucket_of(n, CARD, 120) for n in (1, 16, 17, 32, 33, 65, 120)] == [16, 16, 32, 32, 64, 120, 120]


def test_a_card_travels_as_json(tmp_path):
    card = dataclasses.replace(CARD, kind="label", texts=PAIRWISE, objective="gram", hyper={"label_smoothing": 0.1})
    (tmp_path / "judge.json").write_text(json.dumps(as_json(card)))
    assert read_card(tmp_path / "judge.json") == card
    for change, said in (({"kind": "oracle"}, "kind='oracle'"), ({"tones": 1}, "unknown key 'tones'")):
        (tmp_path / "bad.json").write_text(json.dumps(as_json(card) | change))
        with pytest.raises(UserError, match=f"bad.json: {said}"):
            read_card(tmp_path / "bad.json")


@pytest.fixture(scope="module")
def folder(judge, tmp_path_factory):
    """The same judge as a Hugging Face folder with its card."""
    path = tmp_path_factory.mktemp("judge") / "model"
    hf_config = shrink(PRESETS["qwen2.5-3b"], judge.judge.model.config.vocab_size, max_position_embeddings=128)
    documents = {"judge.json": as_json(CARD)}
    hf.save_model(
        path, judge.params, judge.judge.model.config, hf_config, tokenizer=judge.dialogue.tokenizer, documents=documents
    )
    return path


def run(folder, source, output, *more):
    arguments = [f"--model={folder}", f"--input={source}", f"--output={output}", "--votes=4", "--batch_size=4", *more]
    command.main(arguments)


def test_the_command_stopped_and_gone_on_writes_the_same_file(folder, scored, tmp_path, monkeypatch, capsys):
    source, output = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in ROWS) + "not json\n")
    run(folder, source, tmp_path / "whole.jsonl")
    assert "1 rows could not be scored" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "whole.jsonl").read_text().splitlines()]
    assert [row.get("thoughts") for row in rows[:4]] == [row["thoughts"] for row in scored]

    def dies(*arguments, **options):
        iterator = score(*arguments, **options)
        yield next(iterator)
        yield next(iterator)
        raise KeyboardInterrupt

    monkeypatch.setattr(scored_file, "score", dies)
    with pytest.raises(KeyboardInterrupt):
        run(folder, source, output)
    partial = next(tmp_path.glob(".out.jsonl*"))
    partial.write_text(partial.read_text() + '{"half a li')
    given = []

    def counts(*arguments, **options):
        for row in score(*arguments, **options):
            given.append(row)
            yield row

    monkeypatch.setattr(scored_file, "score", counts)
    run(folder, source, output)
    assert len(given) == 3, "rows that were finished are given again"
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not list(tmp_path.glob(".out*"))
    with pytest.raises(SystemExit) as stopped:
        run(folder, source, output)
    assert stopped.value.code == 2 and "already there" in capsys.readouterr().err


def test_an_input_that_cannot_be_read(folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(folder, tmp_path / "none.jsonl", tmp_path / "out.jsonl")
    assert stopped.value.code == 2 and "cannot be read" in capsys.readouterr().err


def test_the_rows_of_any_file_are_read(tmp_path):
    """The digest is that of the bytes, and a row that cannot be read is a reason."""
    path = tmp_path / "rows.csv"
    path.write_text("system,question,response\ns3,s4 o1,s2 warm\na,b\n")
    assert list(scored_file.read_rows(path)) == [
        {"system": "s3", "question": "s4 o1", "response": "s2 warm"},
        "2 cells, not 3",
    ]
    row = read_row(next(scored_file.read_rows(path)), "verdict")
    assert [turn["content"] for turn in row.prompt] == ["s3", "s4 o1"] and row.responses == ("s2 warm",)
    count, digest = scored_file.measure(path)
    path.write_text(path.read_text() + "a,b\n")
    assert count == 2 and scored_file.measure(path)[0] == 3 and scored_file.measure(path)[1] != digest


def test_a_second_call_compiles_nothing(judge, scored, monkeypatch):
    """A notebook or a server calls `score` again and again."""
    traced = []
    monkeypatch.setattr(scoring, "answer_logps", lambda *arguments: traced.append(arguments))
    list(score(judge, ROWS[1:2], votes=4, batch_size=4))
    assert not traced


def test_a_long_conversation_loses_its_oldest_exchanges_and_says_so(judge):
    """The same number for all responses; the rest is scored as if it had never been longer."""
    exchange = [{"role": "user", "content": "o1 " * 60}, {"role": "assistant", "content": "s1 warm"}]
    last = {"role": "user", "content": "s4 o1 o2"}
    long, short = score(
        judge,
        [
            {"prompt": [*exchange * 3, last], "responses": ["s2 warm", "s3 " * 60]},
            {"prompt": [last], "response": "s2 warm"},
        ],
        votes=2,
        batch_size=4,
    )
    assert long["dropped_turns"] == 6 and "dropped_turns" not in short
    assert long["thoughts"][0] == short["thoughts"]
    np.testing.assert_allclose(long["log_odds"][0], short["log_odds"], atol=1e-5)


def test_two_commands_with_one_output(folder, tmp_path, capsys):
    """The second one is told, and writes nothing into the first one's file."""
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROWS[1]) + "\n")
    with lock.held(tmp_path / ".out.jsonl.lock", "go"), pytest.raises(SystemExit) as stopped:
        run(folder, tmp_path / "rows.jsonl", tmp_path / "out.jsonl")
    assert stopped.value.code == 2 and "is at work here; stop it, or choose another --output" in capsys.readouterr().err
