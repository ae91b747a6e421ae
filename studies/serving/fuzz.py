"""Bodies that nobody should send, and callers that behave badly.

An answer is a 4xx, or a 200 with finite numbers where the body happens to be a request. It is never a 5xx.
Bodies are made with hypothesis: valid requests of every POST path of the OpenAPI description with changes in random
places, JSON of any form, and bytes that are no JSON.
"""

import copy
import functools
import json
import math
import socket
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable

from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis import strategies as st

PROMPT, RESPONSE = "s1 o1 o2 o3 o4 o5", "s2 warm"
TURNS = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": RESPONSE}]
SHOWN = f"<bos> <user> {PROMPT} <end> <assistant>"
OBJECT = {"output": [{"type": "message", "content": [{"type": "output_text", "text": RESPONSE}]}]}
VALID = {
    "/v1/judge": {"messages": TURNS[:1], "responses": [RESPONSE], "votes": 1, "return": ["score", "interval"]},
    "/get_reward": {"query": [f"{SHOWN} {RESPONSE} <end>"], "prompts": [SHOWN], "labels": ["x"]},
    "/slime": {"prompt": PROMPT, "response": RESPONSE, "label": None},
    "/classify": {"model": "m", "input": f"{SHOWN} {RESPONSE} <end> ", "use_activation": False},
    "/v1/embeddings": {"model": "m", "messages": TURNS},
    "/v1/score": {"model": "m", "query": PROMPT, "items": [RESPONSE]},
    "/score": {"model": "m", "query": PROMPT, "items": [RESPONSE]},
    "/compare": {"conversation_history": TURNS[:1], "response_objs": [OBJECT] * 2, "principle": None},
    "/verify": {"responses_create_params": {"input": TURNS[:1]}, "response": OBJECT},
    "/v1/chat/completions": {"model": "m", "messages": TURNS, "n": 1},
}
_CHUNK = b"10000\r\n" + b" " * 65536 + b"\r\n"
Answer = tuple[int, bytes]
Send = Callable[[str, bytes, str], Answer]  # (path, body, content type) -> status and body

_WORDS = ["", " ", "\0", "s1\0", "s3 curt", "s1 hello", "s4 o2 o3", "yes", "<end>", "<bos> <user>", "s1 " * 400]
_TEXTS = st.one_of(st.text(max_size=20), st.sampled_from([*_WORDS, "\u202e", "\U0001f9ff", "\ud800"]))
_NUMBERS = st.one_of(st.integers(), st.floats(), st.sampled_from([0, -1, 10**30, 1e308, math.inf, -math.inf, math.nan]))
_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), _NUMBERS, _TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(_TEXTS, inner, max_size=4)),
    max_leaves=8,
)


def _places(value, path=()):
    """The paths to all parts of a JSON value."""
    yield path
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from _places(part, (*path, key))


@st.composite
def _changed(draw, path: str) -> bytes:
    """A valid request with one to three parts that are replaced, removed, repeated or nested."""
    body = copy.deepcopy(VALID[path])
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        place = draw(st.sampled_from(list(_places(body))))
        if not place:
            body = draw(_VALUES)
            continue
        inside = body
        for key in place[:-1]:
            inside = inside[key]
        inside[place[-1]] = draw(_other(inside[place[-1]]))
        if draw(st.integers(0, 9)) == 0:
            del inside[place[-1]]
    return _as_json(body)


@st.composite
def _reworded(draw, path: str) -> bytes:
    """A valid request with other texts. Its form stays right."""

    def changed(value):
        if isinstance(value, dict):
            return {key: changed(part) for key, part in value.items()}
        if isinstance(value, list):
            return [changed(part) for part in value]
        return draw(_TEXTS) if isinstance(value, str) and draw(st.booleans()) else value

    return _as_json(changed(VALID[path]))


def _other(value) -> st.SearchStrategy:
    """What may stand in the place of a value."""
    nested = functools.reduce(lambda inner, _: [inner], range(50), value)
    if isinstance(value, str):
        return st.one_of(_TEXTS, _TEXTS, _VALUES, st.just(nested))
    repeated = [value * 300, value * 2, []] if isinstance(value, list) else []
    extended = [value | {"s1": "s2"}] if isinstance(value, dict) else []
    return st.one_of(st.sampled_from([nested, *repeated, *extended]), _VALUES)


def _as_json(value) -> bytes:
    return json.dumps(value).encode()  # NaN, Infinity and halves of surrogate pairs are written too


def _bodies(path: str) -> st.SearchStrategy[bytes]:
    whole = _as_json(VALID[path])
    return st.one_of(
        *[_changed(path)] * 4,
        *[_reworded(path)] * 4,
        _VALUES.map(_as_json),
        st.binary(max_size=40),
        st.integers(0, len(whole) - 1).map(lambda size: whole[:size]),
        st.tuples(st.sampled_from([b"[", b'{"messages":', b'[{"a":']), st.integers(1, 60_000)).map(
            lambda deep: deep[0] * (deep[1] // len(deep[0]))
        ),
    )


_TYPES = st.sampled_from(["application/json"] * 30 + ["text/plain", "application/x-www-form-urlencoded", "", "\tx"])


def check(send: Send, bodies: int, paths=tuple(VALID)) -> Counter:
    """Send bodies and count the statuses. AssertionError with the smallest body that is answered wrongly."""
    counts: Counter = Counter()

    @settings(
        max_examples=bodies, deadline=None, database=None, derandomize=True, phases=(Phase.generate, Phase.shrink),
        verbosity=Verbosity.quiet,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.sampled_from(paths).flatmap(lambda path: st.tuples(st.just(path), _bodies(path), _TYPES)))
    def run(case):
        path, body, kind = case
        status, said = send(path, body, kind)
        counts[status] += 1
        assert status == 200 or 400 <= status < 500, (path, len(body), body[:300], status, said[:300])
        content = json.loads(said)
        assert (status == 200) == ("error" not in content if isinstance(content, dict) else True)
        assert all(map(math.isfinite, _numbers(content))), (path, len(body), body[:300], said[:300])

    run()
    return counts


def _numbers(value):
    if isinstance(value, float):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _numbers(part)


def over_http(url: str, seconds: float = 60) -> Send:
    """A sender to a server."""

    def send(path: str, body: bytes, kind: str) -> Answer:
        request = urllib.request.Request(url + path, body, {"Content-Type": kind.strip()})
        try:
            with urllib.request.urlopen(request, timeout=seconds) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()
        except OSError as error:
            raise AssertionError(f"no answer from {path} to {len(body)} bytes {body[:300]!r}: {error}") from None

    return send


def odd_callers(host: str, port: int) -> dict[str, str]:
    """Callers that send too slowly, too much or nonsense, or that leave. Returns the first line each is told."""
    head = b"POST /v1/judge HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    body = _as_json(VALID["/v1/judge"])
    length = b"Content-Length: %d\r\n\r\n"
    cases = {
        "leaves before the body": head + length % len(body),
        "leaves in the body": head + length % len(body) + body[:10],
        "leaves after the body": head + length % len(body) + body,
        "oversize by its length": head + length % (1 << 40),
        "oversize in chunks": head + b"Transfer-Encoding: chunked\r\n\r\n" + _CHUNK * 40,
        "no HTTP": b"\x16\x03\x01\x00\xff" * 20,
        "long header": b"GET /health HTTP/1.1\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
        "two lengths": head + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
    }
    told = {}
    for name, sent in cases.items():
        with socket.create_connection((host, port), timeout=30) as caller:
            try:
                caller.sendall(sent)
                if not name.startswith("leaves"):
                    told[name] = caller.recv(200).split(b"\r\n")[0].decode("latin-1")
            except OSError as error:
                told[name] = type(error).__name__
            told.setdefault(name, "left")
    return told


def slow_callers(host: str, port: int, count: int, seconds: float) -> None:
    """Callers that send a byte from time to time and never a whole request. They leave after that many seconds."""
    head = b"POST /v1/judge HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
    callers = [socket.create_connection((host, port), timeout=30) for _ in range(count)]
    end = time.monotonic() + seconds
    for caller in callers:
        caller.sendall(head)
    while time.monotonic() < end:
        for caller in callers:
            try:
                caller.sendall(b" ")
            except OSError:
                continue
        time.sleep(0.5)
    for caller in callers:
        caller.close()


def row(url: str, bodies: int) -> str:
    """Send everything to a server and say what came back."""
    host, port = url.removeprefix("http://").split(":")
    slow = threading.Thread(target=slow_callers, args=(host, int(port), 50, 20.0))
    slow.start()
    began = time.monotonic()
    counts = check(over_http(url), bodies)
    told = odd_callers(host, int(port))
    slow.join()
    status, _ = over_http(url)("/v1/judge", _as_json(VALID["/v1/judge"]), "application/json")
    assert status == 200, "the server does not answer any more"
    statuses = ", ".join(f"{count} x {status}" for status, count in sorted(counts.items()))
    took = time.monotonic() - began
    return f"{sum(counts.values())} bodies in {took:.0f} s: {statuses}; 0 x 5xx; odd callers {told}; works after it"
