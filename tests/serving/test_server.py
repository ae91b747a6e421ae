"""One batcher for all; failures are answers and never numbers; the server stops well."""

import asyncio
import dataclasses
import json
import os
import re
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
import uvicorn

from dwrl_jax import serve as command
from dwrl_jax.core.errors import UserError
from dwrl_jax.judge import score
from dwrl_jax.serving import batcher, server
from dwrl_jax.serving.service import make_service
from dwrl_jax.serving.settings import parts
from tests.serving.conftest import SETTINGS, until

ROWS = [{"prompt": f"s{i % 6} o{i % 5} o2", "response": f"s{i % 4} warm"} for i in range(12)]


def body(row=ROWS[0], **more):
    return {"messages": row["prompt"], "responses": [row["response"]], **more}


def counts(client) -> dict[str, float]:
    lines = (line for line in client.get("/metrics").text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_requests_share_batches_and_do_not_change_each_other(judge, serving):
    expected = [row["score"] for row in score(judge, ROWS, 2, batch_size=4)]
    with serving(wait=0.1, in_flight=2) as (client, _):
        alone = client.post("/v1/judge", json=body()).json()["score"][0]
        with ThreadPoolExecutor(12) as pool:
            said = list(pool.map(lambda row: client.post("/v1/judge", json=body(row)).json()["score"][0], ROWS))
        metrics = counts(client)
    np.testing.assert_allclose(said, expected, atol=1e-6)
    assert alone == pytest.approx(expected[0], abs=1e-6)
    questions, batches = metrics["dwrl_jax_batch_questions_sum"], metrics["dwrl_jax_batch_questions_count"]
    assert questions == 13 and batches <= 6
    assert metrics["dwrl_jax_thoughts_total"] == 26 and metrics['dwrl_jax_tokens_total{part="thoughts"}'] > 26
    share = metrics["dwrl_jax_thoughts_cut_off_total"] / 26
    assert metrics["dwrl_jax_thoughts_cut_off_share"] == pytest.approx(share) and 0 < share < 1
    assert metrics["dwrl_jax_questions_waiting"] == metrics["dwrl_jax_rows_open"] == 0
    assert metrics['dwrl_jax_requests_total{path="/v1/judge",status="200"}'] == 13


@pytest.fixture
def held(monkeypatch):
    """The device waits until `held.set()`."""
    go, real = threading.Event(), batcher.ask_batch

    def ask(*args, **kwargs):
        go.wait(30)
        return real(*args, **kwargs)

    monkeypatch.setattr(batcher, "ask_batch", ask)
    go.set()  # the first programs
    yield go
    go.set()


def test_a_full_queue_says_when_to_come_again(serving, held):
    with serving(queue=2, batch_size=4) as (client, service), ThreadPoolExecutor(8) as pool:
        held.clear()
        asked = [pool.submit(client.post, "/v1/judge", json=body())]
        until(lambda: _all_on_the_device(service))
        with service.batcher.reading:  # a row that is being read has its place too
            asked += [pool.submit(client.post, "/v1/judge", json=body(row)) for row in ROWS[1:3]]
            until(lambda: service.batcher.being_read == len(service.batcher.incoming) == 1)
            full = client.post("/v1/judge", json=body(ROWS[3]))
            assert full.status_code == 429 and int(full.headers["Retry-After"]) >= 1
        until(lambda: len(service.batcher.waiting) == 1)
        assert client.post("/v1/judge", json=body(ROWS[3])).status_code == 429
        held.set()
        assert [answer.result().status_code for answer in asked] == [200] * 3
        assert client.post("/v1/judge", json=body() | {"responses": ["s1 warm"] * 3}).status_code == 413


def test_two_batches_are_asked_at_a_time(serving, held):
    """While the device has one batch, the next one is read and asked; a third one is read and waits."""
    with serving(in_flight=2, wait=0) as (client, service), ThreadPoolExecutor(3) as pool:
        held.clear()
        asked = []
        for number, row in enumerate(ROWS[:3], 1):
            asked.append(pool.submit(client.post, "/v1/judge", json=body(row)))
            until(lambda number=number: service.batcher.at_work == min(number, 2))
        until(lambda: sum(map(len, service.batcher.waiting.values())) == 1)  # it has been read
        assert service.batcher.at_work == 2
        held.set()
        assert [answer.result().status_code for answer in asked] == [200] * 3


def _all_on_the_device(service) -> bool:
    """Whether rows have come, and all of their questions were taken from the queue."""
    with service.batcher.changed:
        rows = service.batcher.rows
        return bool(rows) and all(row.missing for row in rows) and not service.batcher.waiting


def test_a_request_is_given_up_in_time(serving, held):
    with serving(timeout=0.2) as (client, service):
        held.clear()
        answer = client.post("/v1/judge", json=body())
        assert answer.status_code == 504 and "score" not in answer.json()
        held.set()
        until(lambda: not service.batcher.rows)
        assert client.post("/v1/judge", json=body()).status_code == 200


def test_a_device_that_fails_costs_its_batch(serving, monkeypatch):
    with serving() as (client, _):
        real = batcher.ask_batch
        monkeypatch.setattr(batcher, "ask_batch", lambda *args, **kwargs: 1 / 0)
        answer = client.post("/slime", json={"prompt": "s1", "response": "s1 warm"})
        assert answer.status_code == 500 and "ZeroDivisionError" in answer.json()["error"]["message"]
        monkeypatch.setattr(batcher, "ask_batch", real)
        assert client.post("/slime", json={"prompt": "s1", "response": "s1 warm"}).status_code == 200


def test_a_score_that_is_no_number_is_an_error(judge, serving):
    broken = dataclasses.replace(judge, params=jax.tree.map(lambda x: x * np.nan, judge.params))
    with serving(broken, sizes=(2,)) as (client, _):
        for path, asked in (("/v1/judge", body()), ("/slime", {"prompt": "s1", "response": "s1 warm"})):
            answer = client.post(path, json=asked)
            assert answer.status_code == 500 and "not finite" in answer.json()["error"]["message"]


def test_a_judge_that_does_not_start_says_so(serving, monkeypatch):
    monkeypatch.setattr(batcher, "ask_batch", lambda *args, **kwargs: 1 / 0)
    with serving() as (client, _):
        assert client.get("/health").status_code == 500
        answer = client.post("/v1/judge", json=body())
        assert answer.status_code == 503 and "ZeroDivisionError" in answer.json()["error"]["message"]


def test_another_program_is_compiled_beside_the_others(serving, monkeypatch):
    """While a longer program is compiled, short questions are answered."""
    compiling, go, real = threading.Event(), threading.Event(), batcher.ask_batch

    def ask(loaded, questions, length, **options):
        if length == 64 and not go.is_set():
            compiling.set()
            go.wait(30)
        return real(loaded, questions, length, **options)

    monkeypatch.setattr(batcher, "ask_batch", ask)
    with serving() as (client, _), ThreadPoolExecutor(1) as pool:
        longer = pool.submit(client.post, "/v1/judge", json=body({"prompt": "o1 " * 30, "response": "s1 warm"}))
        assert compiling.wait(30)
        assert client.post("/v1/judge", json=body()).status_code == 200 and not longer.done()
        go.set()
        assert longer.result().status_code == 200


def test_a_token_is_asked_for_and_never_told(serving, caplog):
    with serving(token="secret-9") as (client, _):
        for given in ({}, {"Authorization": "Bearer secret-8"}, {"Authorization": "Basic secret-9"}):
            answer = client.post("/v1/judge", json=body(), headers=given)
            assert answer.status_code == 401 and "secret" not in answer.text
        right = {"Authorization": "Bearer secret-9"}
        assert client.post("/v1/judge", json=body(), headers=right).status_code == 200
        assert [client.get(path).status_code for path in ("/health", "/ready", "/", "/metrics")] == [200, 200, 200, 401]
        assert "secret" not in client.get("/metrics", headers=right).text + caplog.text


def test_too_large_a_request_is_refused_before_it_is_read(serving):
    with serving(max_bytes=1000) as (client, _):
        large = json.dumps(body() | {"responses": ["s1 warm"] * 200}).encode()
        pieces = (large[i : i + 100] for i in range(0, len(large), 100))  # without a length
        for content in (large, pieces):
            answer = client.post("/v1/judge", content=content, headers={"Content-Type": "application/json"})
            assert answer.status_code == 413 and answer.json()["error"]["param"] == "body"


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[" * 100_000, b"\xff\xfe", b'"' + b"a" * 10, b"1" * 5000, b'{"messages": NaN}', b"null",
     b'{"messages": "s1", "responses": ["\\ud800"]}', b'{"messages": "\\udfff", "responses": ["s1 warm"]}',
     b'{"messages": "s1", "responses": ["s1 warm"], "votes": ' + b"9" * 5000 + b"}"],
)  # fmt: skip
def test_a_body_that_is_no_request(client, content):
    answer = client.post("/v1/judge", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400 and answer.json()["error"]["code"] == 400
    text = client.post("/v1/judge", content=json.dumps(body()), headers={"Content-Type": "text/plain"})
    assert text.status_code == 415  # another site's page may send this without asking


def test_unknown_paths_and_methods(client):
    assert client.get("/nothing").status_code == 404 and client.get("/v1/judge").status_code == 405
    assert client.get("/nothing").json()["error"]["code"] == 404


def asked_by_hand(service, receive):
    """The statuses that the app sends, for a request with these messages."""
    app, sent = server.make_app(service), []
    scope = {
        "type": "http", "method": "POST", "path": "/v1/judge", "raw_path": b"/v1/judge", "query_string": b"",
        "headers": [(b"content-type", b"application/json")], "http_version": "1.1", "scheme": "http", "root_path": "",
    }  # fmt: skip

    async def send(message):
        sent.append(message)

    async def run():
        began = time.monotonic()
        await asyncio.wait_for(app(scope, receive, send), 10)
        assert time.monotonic() - began < 9, "it only ended because it was cancelled"

    asyncio.run(run())
    return [message["status"] for message in sent if message["type"] == "http.response.start"]


def test_a_slow_caller_is_not_waited_for(judge):
    service = make_service(judge, dataclasses.replace(SETTINGS, read_timeout=0.05), "random")

    async def receive():
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b" ", "more_body": True}

    assert asked_by_hand(service, receive) == [408]


def test_a_caller_that_leaves_takes_its_questions_along(served, held):
    client, service = served
    before = counts(client)["dwrl_jax_batch_questions_sum"]
    held.clear()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.post, "/v1/judge", json=body())
        until(lambda: _all_on_the_device(service))
        messages = [{"type": "http.request", "body": json.dumps(body(ROWS[1])).encode(), "more_body": False}]

        async def receive():
            if messages:
                return messages.pop()
            while len(service.batcher.rows) < 2:
                await asyncio.sleep(0.005)
            return {"type": "http.disconnect"}

        assert asked_by_hand(service, receive) == []
        assert len(service.batcher.rows) == 1
        held.set()
        assert first.result().status_code == 200
    assert client.post("/v1/judge", json=body()).status_code == 200
    assert counts(client)["dwrl_jax_batch_questions_sum"] == before + 2  # the first one and the last one


def test_conversations_are_written_on_request_alone(serving, tmp_path):
    with serving(log=str(tmp_path / "asked.jsonl")) as (client, _):
        score = client.post("/v1/judge", json=body()).json()["score"]
    (said,) = map(json.loads, (tmp_path / "asked.jsonl").read_text().splitlines())
    assert said["responses"] == [ROWS[0]["response"]] and said["score"] == score


@pytest.mark.parametrize(("left", "expected"), [(False, {200}), (True, {503})])
def test_sigterm_finishes_what_was_taken(judge, held, left, expected):
    """New requests are told 503, taken ones are answered within the limit or told 503, and the server ends."""
    service = make_service(judge, dataclasses.replace(SETTINGS, linger=0.3, stop=0.5 if left else 20), "random")
    statuses, late, began = [], [], []

    def call(address, row):
        request = urllib.request.Request(
            f"{address}/v1/judge", json.dumps(body(row)).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    def client(address):
        held.clear()
        with ThreadPoolExecutor(12) as pool:
            asked = [pool.submit(call, address, row) for row in ROWS]
            until(lambda: len(service.batcher.rows) == len(ROWS))
            os.kill(os.getpid(), signal.SIGTERM)
            until(lambda: service.stopping)
            late.append(call(address, ROWS[0]))
            began.append(time.monotonic())
            if not left:
                held.set()
            statuses.extend(each.result() for each in asked)
            held.set()

    server.serve(service, "127.0.0.1", 0, lambda address: threading.Thread(target=client, args=(address,)).start())
    assert set(statuses) == expected and len(statuses) == len(ROWS) and late == [503]
    assert service.taken == 0 and time.monotonic() - began[0] < 10


def test_parts():
    assert parts(8, (1, 4)) == (4, 4) and parts(7, (1, 4)) == (4, 1, 1, 1) and parts(3, (4,)) is None


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--sizes=1,x"], "--sizes=1,x: give numbers of votes"),
        (["--batch_size=0"], "--batch_size=0: must be at least 1"),
        (["--votes=many"], "--votes=many: give a whole number, or auto"),
        (["--token_file=/nowhere"], "--token_file=/nowhere: cannot be read"),
        (["--timeout=nan"], "--timeout=nan: must be at least"),
    ],
)
def test_the_command_refuses(flags, said, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(["--model=nothing", *flags])
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_the_command_serves_with_its_flags(judge, monkeypatch, tmp_path, capsys):
    (tmp_path / "token").write_text("secret-9\n")
    monkeypatch.setattr(command, "load", lambda *args, **kwargs: judge)
    served = []
    monkeypatch.setattr(server, "serve", lambda *args: served.append(args))
    command.main(["--model=m", "--host=0.0.0.0", "--votes=3", f"--token_file={tmp_path / 'token'}", "--wait_ms=2"])
    service, host, port, _ = served[0]
    assert (host, port) == ("0.0.0.0", 8080) and service.settings.sizes == (1, 3, 4)
    assert service.settings.wait == 0.002 and service.settings.token == "secret-9"
    command.main(["--model=m"])
    assert served[1][1] == "127.0.0.1" and "secret" not in capsys.readouterr().out
    monkeypatch.setenv("DWRL_JAX_TOKEN", "")
    command.main(["--model=m", "--host=0.0.0.0"])
    assert "without a token" in capsys.readouterr().out


def test_a_taken_port_is_named(judge):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=re.escape(f"--port={port}: Address already in use")):
            server.serve(make_service(judge, SETTINGS, "random"), "127.0.0.1", port)


def test_a_caller_who_sends_too_much_reads_why(served):
    """Over a real socket: the answer comes although the caller sends megabytes before it looks."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        running = uvicorn.Server(uvicorn.Config(served[0].app, lifespan="off", log_level="error"))
        thread = threading.Thread(target=running.run, args=([listening],))
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1/judge"
        request = urllib.request.Request(url, b" " * (8 << 20), {"Content-Type": "application/json"})
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=30)
        running.should_exit = True
        thread.join()
    assert refused.value.code == 413
