"""Ask a judge that `python -m dwrl_jax.serve` serves, over HTTP, with the standard library.

A request that may succeed later is sent again: where no connection is to be had or the reply does not come in time, and
at the statuses `AGAIN` and from 500 on. A score does not depend on when it is asked for, and a request changes nothing
on the server, so it may be sent twice. Every failure is an exception.
"""

import asyncio
import dataclasses
import functools
import http.client
import json
import math
import os
import random
import time
import urllib.parse
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

DEFAULT_URL = "http://127.0.0.1:8080"
REFUSED = (400, 413, 422)  # the request cannot be scored, now or later
AGAIN = (408, 429)
COMPARES = "this judge compares responses"  # in a reply about a response that was sent alone


class JudgeError(Exception):
    """There is no score: a wrong address, a wrong token, or a reply that has no score in it."""


class Refused(JudgeError):
    """The judge cannot score this conversation or this response, such as an empty one or one that is too long."""


class Alone(Refused):
    """The judge compares responses, so it cannot score one by itself."""


class Unavailable(JudgeError):
    """The server gave no reply, however often it was asked."""


@dataclasses.dataclass(frozen=True)
class Server:
    """Where the judge is, and how it is asked. `server` makes it from settings and the environment.

    `timeout` is in seconds and for each attempt. After attempt n the client waits about `wait` 2^n seconds, or as long
    as the server's Retry-After says, but at most `longest_wait`. A process has at most `connections` open requests.
    """

    url: str = DEFAULT_URL
    token: str | None = dataclasses.field(default=None, repr=False)
    timeout: float = 120.0
    attempts: int = 8
    wait: float = 0.5
    longest_wait: float = 30.0
    connections: int = 64

    def __post_init__(self):
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise JudgeError(f"url={self.url!r}: give an address such as {DEFAULT_URL}")
        if min(self.attempts, self.connections) < 1:
            raise JudgeError(f"attempts={self.attempts}, connections={self.connections}: must be at least 1")


def server(url: str | None = None, token: str | None = None, **settings) -> Server:
    """The server at `url`, else at $DWRL_JAX_URL, else on this machine. The token is else that of $DWRL_JAX_TOKEN."""
    url = url or os.environ.get("DWRL_JAX_URL") or DEFAULT_URL
    return Server(url, token or os.environ.get("DWRL_JAX_TOKEN") or None, **settings)


def judge(
    at: Server,
    messages: Sequence[dict],
    responses: Sequence[str],
    votes: int | str | None = None,
    returned: Sequence[str] = ("score",),
) -> dict[str, Any]:
    """The reply of /v1/judge about responses to a conversation: for each of `returned` a list over the responses.

    `votes` is a number or "auto". Without it the server takes its default. Raises Refused, Unavailable or JudgeError.
    """
    body = {"messages": list(messages), "responses": list(responses), "return": list(returned)}
    reply = post(at, "/v1/judge", body if votes is None else body | {"votes": votes})
    for name in returned:
        check_list(at, reply, name, len(responses), numbers=name in ("score", "log_odds"))
    return reply


def check_list(at: Server, reply: dict[str, Any], name: str, count: int, numbers: bool = True) -> list:
    """The list `name` of a reply, with `count` entries, which with `numbers` are finite numbers. Else JudgeError."""
    values = reply.get(name)
    if not isinstance(values, list) or len(values) != count:
        raise JudgeError(f"{at.url}: the reply has no list {name!r} of {count}, but {str(values)[:100]}")
    if numbers and not all(type(value) in (int, float) and math.isfinite(value) for value in values):
        raise JudgeError(f"{at.url}: {name!r} in the reply must have finite numbers, not {str(values)[:100]}")
    return values


def post(at: Server, path: str, body: dict) -> dict[str, Any]:
    """The JSON object that the server replies. Raises Refused, Unavailable or JudgeError."""
    content, pause, why = json.dumps(body).encode(), 0.0, ""
    for attempt in range(at.attempts):
        if attempt:
            time.sleep(pause)
        status, text, after = _send(at, path, content)
        if status == 200:
            return _object(at, text)
        why = text[:300] if status is None else f"status {status}: {text[:300]}"
        if status in REFUSED:
            raise (Alone if COMPARES in why else Refused)(f"{at.url}{path}: {why}")
        if status is not None and status < 500 and status not in AGAIN:
            raise JudgeError(f"{at.url}{path}: {why}")
        pause = min(max(at.wait * 2**attempt * random.uniform(0.5, 1), after), at.longest_wait)
    raise Unavailable(f"{at.url}{path}: no score after {at.attempts} attempts; the last one: {why}")


def _send(at: Server, path: str, content: bytes) -> tuple[int | None, str, float]:
    """Status, text and Retry-After in seconds of a reply. Without a reply the status is None, and the text says why."""
    parts = urllib.parse.urlsplit(at.url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    headers = {"Content-Type": "application/json", "Connection": "close"}
    if at.token:
        headers["Authorization"] = f"Bearer {at.token}"
    connection = kind(parts.hostname, parts.port, timeout=at.timeout)
    try:
        connection.request("POST", parts.path.rstrip("/") + path, content, headers)
        reply = connection.getresponse()
        text, after = reply.read().decode(errors="replace"), reply.headers.get("Retry-After", "")
        return reply.status, text, float(after) if after.isdecimal() else 0.0
    except (OSError, http.client.HTTPException) as error:
        return None, f"{type(error).__name__}: {error}", 0.0
    finally:
        connection.close()


def _object(at: Server, text: str) -> dict[str, Any]:
    try:
        reply = json.loads(text)
    except ValueError:
        reply = None
    if not isinstance(reply, dict):
        raise JudgeError(f"{at.url}: the reply is no JSON object, but {text[:100]!r}")
    return reply


def outcome(call: Callable, *arguments) -> Any:
    """The result of a call, or the JudgeError that it raises."""
    try:
        return call(*arguments)
    except JudgeError as error:
        return error


def at_once(at: Server, calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """The outcomes of calls, in their order, with at most `connections` open at a time."""
    return list(_pool(at.connections, os.getpid()).map(outcome, calls))


async def in_thread(at: Server, call: Callable, *arguments) -> Any:
    """`call(*arguments)` beside the event loop, with at most `connections` open at a time."""
    pool = _pool(at.connections, os.getpid())
    return await asyncio.get_running_loop().run_in_executor(pool, functools.partial(call, *arguments))


@functools.cache
def _pool(connections: int, process: int) -> ThreadPoolExecutor:
    """Threads that wait for replies. A forked process gets its own."""
    return ThreadPoolExecutor(connections, thread_name_prefix="dwrl_jax")
