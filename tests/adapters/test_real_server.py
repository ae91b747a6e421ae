"""Parity: every adapter gets from a real server what `dwrl_jax.judge.score` says about the same rows, to 1e-6."""

import asyncio
import dataclasses
import io
import json
import threading
import time

import numpy as np
import pytest
import uvicorn

from dwrl_jax.adapters import __main__ as command
from dwrl_jax.adapters import client, nemo_gym, openrlhf, trl, verl
from dwrl_jax.data.formats import Malformed
from dwrl_jax.judge import load, score
from dwrl_jax.judge.rows import read_row
from dwrl_jax.serving import server, service, settings
from tests.judge.exports import export
from tests.judge.test_score import CARD

PROMPTS = ["s1 o1 o2", "s1 o1 o2", "s2 o3"]
COMPLETIONS = ["s2 warm", "s5 curt", "s3 plain"]
VOTES = 2
ROWS = [{"prompt": prompt, "responses": [text]} for prompt, text in zip(PROMPTS, COMPLETIONS)]


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    card = dataclasses.replace(CARD, buckets=(32,), max_thought=4)
    folder = export(tmp_path_factory.mktemp("served") / "judge", card)
    loaded = load(folder)
    rows = list(score(loaded, ROWS, VOTES, batch_size=4))
    return folder, loaded, [row["score"][0] for row in rows], [row["log_odds"][0] for row in rows]


@pytest.fixture(scope="module")
def url(judge):
    chosen = settings.ServeSettings(votes=VOTES, batch_size=4, sizes=(VOTES,), token="sesame")
    made = service.make_service(judge[1], chosen, "judge")
    running = uvicorn.Server(uvicorn.Config(server.make_app(made), port=0, log_level="warning"))
    thread = threading.Thread(target=running.run)
    thread.start()
    while not (running.started and (made.batcher.warm or made.batcher.failure)):
        time.sleep(0.01)
    yield f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}"
    running.should_exit = True
    thread.join()


@pytest.fixture(autouse=True)
def environment(url, monkeypatch):
    monkeypatch.setenv("DWRL_JAX_URL", url)
    monkeypatch.setenv("DWRL_JAX_TOKEN", "sesame")


def close(got, expected):
    np.testing.assert_allclose(got, expected, atol=1e-6, rtol=0)


def test_trl(judge):
    folder, _, scores, odds = judge
    batch = {"prompts": PROMPTS, "completions": COMPLETIONS}
    close(trl.reward_func(votes=VOTES)(**batch), scores)
    close(trl.reward_func(votes=VOTES, compare=True)(**batch), scores)
    close(asyncio.run(trl.async_reward_func(votes=VOTES, value="log_odds")(**batch)), odds)
    close(trl.in_process(folder, votes=VOTES, batch_size=4)(**batch), scores)
    with_bad = trl.reward_func()(prompts=PROMPTS, completions=["hello", "s1 <user>", COMPLETIONS[2]])
    assert with_bad[:2] == [None, None] and abs(with_bad[2] - scores[2]) < 1e-6


def test_a_response_alone_is_told_apart():
    """The words that the client looks for are the judge's own."""
    with pytest.raises(Malformed, match=client.COMPARES):
        read_row({"prompt": "s1", "responses": ["s2"]}, "label")


def test_verl(judge):
    asked = zip(COMPLETIONS, PROMPTS)
    got = [asyncio.run(verl.compute_score("", text, None, {"prompt": prompt})) for text, prompt in asked]
    close([each["score"] for each in got], judge[2])


def test_openrlhf(judge):
    queries = [f"{prompt} {text} <end>" for prompt, text in zip(PROMPTS, COMPLETIONS)]
    close(openrlhf.reward_func(queries, PROMPTS, PROMPTS)["rewards"], judge[2])
    body = {"query": queries, "prompts": PROMPTS, "labels": PROMPTS}
    close(client.post(client.server(), "/get_reward", body)["rewards"], judge[2])


def test_nemo_gym(judge):
    said = [{"output": [{"type": "message", "content": [{"type": "output_text", "text": t}]}]} for t in COMPLETIONS]
    history = [{"role": "user", "content": PROMPTS[0]}]
    close(asyncio.run(nemo_gym.compare(history, said[:2])), judge[2][:2])
    got = [asyncio.run(nemo_gym.reward({"input": prompt}, text)) for prompt, text in zip(PROMPTS, said)]
    close(got, judge[2])


def test_the_client_of_a_file(judge, capsys):
    lines = io.StringIO("\n".join([*map(json.dumps, ROWS), "", "{", json.dumps({"prompt": "s1", "responses": [""]})]))
    assert not command.main(lines)
    *rows, broken, empty = map(json.loads, capsys.readouterr().out.splitlines())
    close([row["score"][0] for row in rows], judge[2])
    assert "not a row" in broken["error"] and "status 422" in empty["error"]


def test_a_wrong_token_and_a_wrong_path():
    with pytest.raises(client.JudgeError, match="status 401"):
        trl.reward_func(token="wrong")(prompts=PROMPTS, completions=COMPLETIONS)
    with pytest.raises(client.JudgeError, match="status 404"):
        client.post(client.server(), "/v1/nothing", {})
