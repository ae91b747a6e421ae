"""Every protocol gives the score that `score` gives; cohorts wait and give up; wrong fields are named."""

import dataclasses
import math
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from dwrl_jax.judge import score
from dwrl_jax.judge.votes import Adaptive
from dwrl_jax.serving import protocols
from tests.judge.test_score import CARD, PAIRWISE, loaded
from tests.serving.conftest import until

PROMPT, GOOD, BAD = "s1 o1 o2 o3 o4 o5", "s2 warm", "s5 curt"
USER, ANSWER = {"role": "user", "content": PROMPT}, {"role": "assistant", "content": GOOD}
SHOWN = f"<bos> <user> {PROMPT} <end> <assistant>"
OBJECTS = [{"output": [{"type": "message", "content": [{"type": "output_text", "text": t}]}]} for t in (GOOD, BAD)]
ONE = {  # path: (request, the score of GOOD in its answer)
    "/v1/judge": ({"messages": PROMPT, "responses": [GOOD]}, lambda said: said["score"][0]),
    "/get_reward": (
        {"query": [f"{SHOWN} {GOOD} <end>"], "prompts": [SHOWN], "labels": [None]},
        lambda said: said["rewards"][0],
    ),
    "/slime": ({"prompt": [USER], "response": f"{GOOD} <end>", "label": "x"}, lambda said: said),
    "/classify": (
        {"model": "m", "input": f"{SHOWN} {GOOD} <end> ", "use_activation": False},
        lambda said: said["data"][-1]["probs"][-1],
    ),
    "/v1/embeddings": (
        {"model": "m", "input": f" <user> {PROMPT} <end> <assistant> {GOOD}"},  # verl takes the begin token away
        lambda said: said["data"][-1]["embedding"][-1],
    ),
    "/v1/score": ({"query": SHOWN, "items": [GOOD]}, lambda said: said["scores"][0][-1]),
    "/score": ({"query": PROMPT, "items": [GOOD]}, lambda said: said["scores"][0][-1]),
    "/compare": (
        {"conversation_history": [USER], "response_objs": OBJECTS, "principle": None},
        lambda said: said["rewards"][0],
    ),
    "/verify": (
        {"responses_create_params": {"input": [USER]}, "response": OBJECTS[0], "rollout": 7},
        lambda said: said["reward"] if said["rollout"] == 7 else None,
    ),
    "/v1/chat/completions": ({"messages": [USER, ANSWER], "n": 2}, lambda said: said["score"]),
}


@pytest.fixture(scope="module")
def expected(judge):
    (row,) = score(judge, [{"prompt": PROMPT, "responses": [GOOD, BAD]}], 2, batch_size=4)
    return row


def test_every_protocol_has_a_case(served):
    paths = served[0].app.app.openapi()["paths"]
    assert {path for path, said in paths.items() if "post" in said} == set(ONE)
    assert len(protocols.routers()) == 6


@pytest.mark.parametrize("path", ONE)
def test_a_protocol_gives_the_judges_score(client, expected, path):
    request, read = ONE[path]
    answer = client.post(path, json=request)
    assert answer.status_code == 200, answer.text
    assert read(answer.json()) == pytest.approx(expected["score"][0], abs=1e-6)


def test_all_columns(client, expected):
    columns = ["score", "log_odds", "interval", "rank", "votes", "thoughts"]
    said = client.post("/v1/judge", json={"messages": [USER], "responses": [GOOD, BAD], "return": columns}).json()
    for name in ("score", "log_odds", "votes"):
        np.testing.assert_allclose(said[name], expected[name], atol=1e-6)
    assert said["thoughts"] == expected["thoughts"] and said["rank"] == expected["rank"]
    for (low, high), votes in zip(said["interval"], said["votes"]):
        assert 0 <= low <= np.mean(votes) <= high <= 1
    usage = said["usage"]
    assert usage["votes"] == 2 and usage["prompt_tokens"] == 34 and usage["completion_tokens"] > 4


def test_the_reward_can_be_the_log_odds(serving, expected):
    with serving(reward="log_odds") as (client, _):
        said = client.post("/slime", json=ONE["/slime"][0]).json()
    assert said == pytest.approx(expected["log_odds"][0], abs=1e-5)


def test_votes_are_put_together_from_programs(judge, client, serving):
    """Three votes are 2 + 1 of the programs, and auto has as many as `score` takes."""
    asked = {"messages": PROMPT, "responses": [GOOD, BAD], "return": ["score", "votes"]}

    def check(client, votes, expected):
        (row,) = score(judge, [{"prompt": PROMPT, "responses": [GOOD, BAD]}], expected, batch_size=4)
        said = client.post("/v1/judge", json=asked | {"votes": votes}).json()
        np.testing.assert_allclose(said["votes"], row["votes"], atol=1e-6)
        np.testing.assert_allclose(said["score"], row["score"], atol=1e-6)
        return len(row["votes"][0])

    assert check(client, 3, 3) == 3
    with serving(votes=Adaptive(rounds=(2, 2, 2))) as (adaptive, _):
        assert check(adaptive, "auto", Adaptive(rounds=(2, 2, 2))) in (4, 6)
    with serving(votes=Adaptive(delta=0.99, rounds=(2, 2, 2))) as (adaptive, _):
        assert check(adaptive, "auto", Adaptive(delta=0.99, rounds=(2, 2, 2))) == 2


def test_a_prompt_with_turns_and_a_system_message_is_read_from_its_text(client):
    turns = [{"role": "system", "content": "s3"}, USER, ANSWER, {"role": "user", "content": "s4 o1"}]
    text = f"<bos> <system> s3 <end> <user> {PROMPT} <end> <assistant> {GOOD} <end> <user> s4 o1 <end> <assistant>"
    expected = client.post("/slime", json={"prompt": turns, "response": BAD}).json()
    assert client.post("/slime", json={"prompt": text, "response": BAD}).json() == pytest.approx(expected, abs=1e-6)
    whole = {"input": f"{text} {BAD} <end> "}
    assert client.post("/classify", json=whole).json()["data"][0]["probs"][0] == pytest.approx(expected, abs=1e-6)


def test_an_empty_query_has_no_rewards(client):
    said = client.post("/get_reward", json={"query": [], "prompts": [], "labels": []})
    assert said.status_code == 200 and said.json()["rewards"] == said.json()["scores"] == []


def test_a_completion_has_a_thought_and_a_verdict(client):
    said = client.post("/v1/chat/completions", json=ONE["/v1/chat/completions"][0]).json()
    assert [choice["index"] for choice in said["choices"]] == [0, 1]
    for choice in said["choices"]:
        thought, verdict = choice["message"]["content"].rsplit("\n\n", 1)
        assert verdict == ("yes" if choice["score"] > 0.5 else "no")
        assert thought == choice["message"]["reasoning_content"]
    assert client.get("/v1/models").json()["data"][0]["id"] == "random"


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/v1/judge", {"responses": [GOOD]}, 400, "messages"),
        ("/v1/judge", {"messages": PROMPT, "responses": []}, 400, "responses"),
        ("/v1/judge", {"messages": PROMPT, "responses": [GOOD], "vote": 2}, 400, "vote"),
        ("/v1/judge", {"messages": PROMPT, "responses": [GOOD], "votes": 0}, 400, "votes"),
        ("/v1/judge", {"messages": PROMPT, "responses": [GOOD], "votes": True}, 400, "votes"),
        ("/v1/judge", {"messages": PROMPT, "responses": [GOOD], "votes": 65}, 422, "votes"),
        ("/v1/judge", {"messages": PROMPT, "responses": [GOOD], "return": ["price"]}, 400, "return.0"),
        ("/v1/judge", {"messages": PROMPT, "responses": [GOOD, " "]}, 422, "responses"),
        ("/v1/judge", {"messages": "s1 hello", "responses": [GOOD]}, 422, "messages"),
        ("/v1/judge", {"messages": "o1 " * 200, "responses": [GOOD]}, 422, "messages"),
        ("/v1/judge", {"messages": [{"role": "tool", "content": "s1"}], "responses": [GOOD]}, 422, "messages"),
        ("/v1/judge", {"messages": "s1 <end>", "responses": [GOOD]}, 422, "messages"),
        ("/get_reward", {"query": [GOOD], "prompts": [PROMPT]}, 400, "query.0"),
        ("/get_reward", {"query": [GOOD], "prompts": []}, 422, "query.0"),
        ("/get_reward", {"query": [GOOD], "prompts": [PROMPT, PROMPT]}, 400, "prompts"),
        ("/get_reward", {"query": [f"s1 hello{GOOD}"], "prompts": ["s1 hello"]}, 422, "prompts"),
        ("/slime", {"prompt": "s1 <end> <user> s2", "response": GOOD}, 422, "prompt"),
        ("/slime", {"prompt": PROMPT, "response": None}, 400, "response"),
        ("/classify", {"input": PROMPT}, 422, "input.0"),
        ("/classify", {}, 400, "input"),
        ("/v1/embeddings", {"input": []}, 400, "input"),
        ("/v1/score", {"query": PROMPT, "items": [GOOD, ""]}, 422, "items"),
        ("/compare", {"conversation_history": [USER], "response_objs": []}, 400, "response_objs"),
        ("/compare", {"conversation_history": [USER], "response_objs": OBJECTS, "principle": "x"}, 422, "principle"),
        ("/verify", {"responses_create_params": {"input": [USER]}, "response": {"output": []}}, 400, "response.output"),
        ("/v1/chat/completions", {"messages": [USER]}, 422, "messages"),
        ("/v1/chat/completions", {"messages": [USER, ANSWER], "stream": True}, 422, "stream"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(client, path, body, status, param):
    answer = client.post(path, json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, status), answer.text
    assert error["param"] == param and error["message"]


@pytest.fixture(scope="module")
def pairwise():
    return loaded(dataclasses.replace(CARD, kind="label", texts=PAIRWISE, readout="choices", buckets=(32,)))


def test_a_judge_that_compares(serving, pairwise):
    """The scores of a group; one response alone is refused; intervals hold the scores."""
    rows = [{"prompt": PROMPT, "responses": [GOOD, BAD, "s3 plain"]}]
    (row,) = score(pairwise, rows, 2, batch_size=4)
    with serving(pairwise, sizes=(2,), in_flight=2, cohort_wait=0.3) as (client, service):
        asked = {"messages": PROMPT, "responses": rows[0]["responses"], "return": ["score", "interval"]}
        said = client.post("/v1/judge", json=asked).json()
        np.testing.assert_allclose(said["score"], row["score"], atol=1e-6)
        assert all(low <= value <= high for (low, high), value in zip(said["interval"], said["score"]))
        alone = client.post("/slime", json=ONE["/slime"][0])
        assert alone.status_code == 422 and alone.json()["error"]["param"] == "response"
        assert client.post("/v1/chat/completions", json=ONE["/v1/chat/completions"][0]).status_code == 422
        items = client.post("/v1/score", json={"query": PROMPT, "items": rows[0]["responses"]}).json()["scores"]
        np.testing.assert_allclose(np.ravel(items), row["score"], atol=1e-6)
        _cohorts(client, service, row)


def _cohorts(client, service, row):
    """Three rollouts are compared together; two of three after the time; a lone one is a failure."""

    def one(text):
        body = {"conversation_history": [USER], "response_objs": [_object(text)], "cohort_size": 3}
        return client.post("/compare", json=body)

    with ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(one, text) for text in row["responses"]]
        said = [answer.result().json() for answer in answers]
        assert [each["metrics"]["cohort"] for each in said] == [3, 3, 3]
        np.testing.assert_allclose([each["rewards"][0] for each in said], row["score"], atol=1e-6)
        began = time.monotonic()
        answers = [pool.submit(one, text) for text in row["responses"][:2]]
        said = [answer.result().json() for answer in answers]
        assert [each["metrics"]["cohort"] for each in said] == [2, 2] and time.monotonic() - began < 15
        assert sum(each["rewards"][0] for each in said) == pytest.approx(1)
    lost = one(GOOD)
    assert lost.status_code == 504 and "1 of 3 responses" in lost.json()["error"]["message"]
    until(lambda: not service.cohorts.open)


def _object(text):
    return {"output": [{"type": "reasoning"}, {"type": "message", "content": text}]}


def test_no_number_is_infinite(client):
    said = client.post("/v1/judge", json={"messages": PROMPT, "responses": [GOOD]}).json()
    assert all(map(math.isfinite, said["score"] + said["log_odds"]))
