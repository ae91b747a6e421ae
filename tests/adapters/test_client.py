"""The client asks again where that may help, and never takes a failure for a score. No JAX comes with it."""

import json
import subprocess
import sys

import pytest

from dwrl_jax.adapters import client
from dwrl_jax.adapters.client import JudgeError, Refused, Unavailable, judge, server
from tests.adapters.stub import serving, worth
from tests.small import REPO

ASKED = [{"role": "user", "content": "What is 2 + 2?"}]
LATER = [(429, {"Retry-After": "7"}, "full"), (503, {}, "stopping"), (504, {}, ""), (500, {}, ""), (408, {}, "")]


def test_scores_of_responses(stub):
    reply = judge(server(stub.url), ASKED, ["4", "five"], 8, ("score", "log_odds"))
    assert reply["score"] == [worth(ASKED, "4"), worth(ASKED, "five")]
    path, headers, body = stub.requests[0]
    assert path == "/v1/judge" and "Authorization" not in headers
    assert body == {"messages": ASKED, "responses": ["4", "five"], "votes": 8, "return": ["score", "log_odds"]}


def test_exact_it_asks_again_and_waits_as_it_is_told(stub, pauses, monkeypatch):
    monkeypatch.setattr(client.random, "uniform", lambda low, high: high)
    stub.replies = [*LATER]
    assert judge(server(stub.url, wait=1, longest_wait=6), ASKED, ["4"])["score"] == [worth(ASKED, "4")]
    assert pauses == [6, 2, 4, 6, 6]  # 7 is longer than the longest; then 1 * 2^n
    assert len({json.dumps(body) for _, _, body in stub.requests}) == 1


@pytest.mark.parametrize("broken", ["cut", "hang"])
def test_a_reply_that_breaks_off_or_does_not_come(stub, pauses, broken):
    stub.replies = [broken, broken]
    assert judge(server(stub.url, timeout=0.1), ASKED, ["4"])["score"] == [worth(ASKED, "4")]
    assert len(pauses) == 2 and pauses[1] > pauses[0] / 2


def test_no_server(pauses):
    with serving() as gone:
        at = server(gone.url, attempts=3)
    with pytest.raises(Unavailable, match="no score after 3 attempts; the last one: ConnectionRefusedError"):
        judge(at, ASKED, ["4"])
    assert len(pauses) == 2


def test_a_server_that_stays_full(stub, pauses):
    stub.always = LATER[0]
    with pytest.raises(Unavailable, match="4 attempts; the last one: status 429: full"):
        judge(server(stub.url, attempts=4), ASKED, ["4"])
    assert pauses == [7, 7, 7]


@pytest.mark.parametrize(
    ("status", "kind"), [(400, Refused), (413, Refused), (422, Refused), (401, JudgeError), (404, JudgeError)]
)
def test_no_second_try_where_none_helps(stub, pauses, status, kind):
    stub.always = (status, {}, "responses[0]: empty")
    with pytest.raises(JudgeError, match=rf"status {status}: responses\[0\]: empty") as caught:
        judge(server(stub.url), ASKED, ["4"])
    assert type(caught.value) is kind and len(stub.requests) == 1 and not pauses


@pytest.mark.parametrize(
    "text",
    [
        '{"score": [NaN]}',
        '{"score": [Infinity]}',
        '{"score": [null]}',
        '{"score": [true]}',
        '{"score": ["0.5"]}',
        '{"score": []}',
        '{"score": [0.5, 0.5]}',
        '{"score": 0.5}',
        '{"error": "no"}',
        "[0.5]",
        "<html>",
    ],
)
def test_a_reply_without_a_score_is_no_score(stub, text):
    stub.always = (200, {}, text)
    with pytest.raises(JudgeError, match="the reply"):
        judge(server(stub.url), ASKED, ["4"])
    assert len(stub.requests) == 1


def test_the_token_is_sent_and_not_shown(stub, monkeypatch):
    monkeypatch.setenv("DWRL_JAX_URL", stub.url + "/")
    monkeypatch.setenv("DWRL_JAX_TOKEN", "sesame")
    judge(server(), ASKED, ["4"])
    path, headers, _ = stub.requests[0]
    assert path == "/v1/judge" and headers["Authorization"] == "Bearer sesame"
    assert "sesame" not in repr(server())


def test_odd_text_arrives(stub):
    odd = "\ud800 \x00 \U0001f9ff"
    judge(server(stub.url), ASKED, [odd])
    assert stub.requests[0][2]["responses"] == [odd]


def test_many_at_once_but_not_more_than_allowed(stub):
    stub.pause = 0.02
    at = server(stub.url, connections=4)
    calls = [lambda i=i: judge(at, ASKED, [str(i)])["score"][0] for i in range(20)]
    assert client.at_once(at, calls) == [worth(ASKED, str(i)) for i in range(20)]
    assert 2 <= stub.most_open <= 4


@pytest.mark.parametrize("settings", [{"url": "localhost:8080"}, {"url": "ftp://x"}, {"attempts": 0}])
def test_bad_settings(settings):
    with pytest.raises(JudgeError, match="url=|attempts="):
        server(**settings)


SCRIPT = """
import asyncio, sys
from dwrl_jax.adapters import nemo_gym, openrlhf, trl, verl
url = sys.argv[1]
print(trl.reward_func(url)(prompts=["a"], completions=["b"]))
print(asyncio.run(verl.compute_score("", "b", "", {"prompt": "a"}, url=url)))
heavy = ("jax", "jaxlib", "numpy", "torch", "transformers", "flax", "httpx", "requests")
assert not (loaded := [name for name in heavy if name in sys.modules]), loaded
"""


def test_no_jax_in_the_process_of_the_caller(stub):
    done = subprocess.run([sys.executable, "-c", SCRIPT, stub.url], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    score = worth([{"role": "user", "content": "a"}], "b")
    assert done.stdout == f"{[score]}\n{{'score': {score}, 'refused': 0.0}}\n"
