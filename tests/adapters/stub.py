"""A server that speaks the judge's protocols without a judge, and fails as it is told to."""

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Stub:
    """`url` of the server, its `requests` as (path, headers, body), and `replies` that go before its usual ones.

    A reply is (status, headers, text), or "hang" for none in time, or "cut" for one that breaks off. `always` is a
    reply that takes the place of all.
    """

    def __init__(self):
        self.url, self.requests, self.replies, self.always = "", [], [], None
        self.lock, self.open, self.most_open, self.pause = threading.Lock(), 0, 0, 0.0


ALONE = (422, {}, json.dumps({"error": "one response, but this judge compares responses"}))


def worth(messages, response):
    """The score that the stub gives; it has its own value for each conversation and response."""
    said = " ".join(turn["content"] for turn in messages)
    return (sum(map(ord, said + "|" + response)) % 89) / 97 + len(response) / 1e4


def usual(path, body):
    if path == "/v1/judge":
        if not body["responses"] or not all(text.strip() for text in body["responses"]):
            return 422, {}, json.dumps({"error": "responses: empty response"})
        if any("too long" in text for text in body["responses"]):
            return 422, {}, json.dumps({"error": "too long: 999 tokens, at most 10"})
        values = [worth(body["messages"], response) for response in body["responses"]]
        reply = {"score": values, "log_odds": [10 * value for value in values]}
        return 200, {}, json.dumps({name: reply[name] for name in body["return"]})
    if path == "/get_reward":
        rewards = [worth([{"content": p}], q[len(p) :]) for q, p in zip(body["query"], body["prompts"])]
        return 200, {}, json.dumps({"rewards": rewards, "scores": rewards, "extra_logs": {}})
    if path == "/compare":
        texts = [r["output"][-1]["content"][0]["text"] for r in body["response_objs"]]
        rewards = [worth(body["conversation_history"], text) for text in texts]
        return 200, {}, json.dumps({"rewards": rewards, "comparison_results": [], "metrics": {}})
    if path == "/verify":
        text = body["response"]["output"][0]["content"]
        return 200, {}, json.dumps(body | {"reward": worth(body["responses_create_params"]["input"], text)})
    if path == "/classify":
        return 200, {}, json.dumps({"data": [{"probs": [worth([{"content": ""}], body["input"])]}]})
    if path == "/v1/embeddings":
        return 200, {}, json.dumps({"data": [{"embedding": [worth([{"content": ""}], body["input"])]}]})
    return 404, {}, '{"error": "no such path"}'


@contextlib.contextmanager
def serving():
    stub = Stub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with stub.lock:
                stub.requests.append((self.path, self.headers, body))
                stub.open += 1
                stub.most_open = max(stub.most_open, stub.open)
                reply = stub.always or (stub.replies.pop(0) if stub.replies else None)
            time.sleep(stub.pause)
            with stub.lock:
                stub.open -= 1  # before the answer, at which the client may send its next request
            self.answer(reply or usual(self.path, body))

        def answer(self, reply):
            if reply == "hang":
                return time.sleep(0.3)
            status, headers, text = (200, {"Content-Length": "999"}, '{"score": [') if reply == "cut" else reply
            self.send_response(status)
            usually = {"Content-Type": "application/json", "Content-Length": str(len(text.encode()))}
            for name, value in (usually | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    stub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
