"""The gate before all protocols: who may ask, how large a request may be, and when it is given up."""

import asyncio
import contextlib
import hmac
import time
from collections.abc import Coroutine
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dwrl_jax.serving.batcher import RETRY, STOPPING
from dwrl_jax.serving.direct import Direct
from dwrl_jax.serving.failures import Refused, as_response
from dwrl_jax.serving.service import Service

OPEN = ("/", "/health", "/ready", "/openapi.json")  # paths that need no token
PATIENCE = 2.0  # seconds for the rest of a request that is refused
ALWAYS = (*OPEN, "/metrics")  # paths that are answered while the server stops


@dataclass
class Guard:
    """An ASGI app around another one. A request's body is read whole before its answer begins."""

    app: ASGIApp
    service: Service
    paths: dict[str, Direct]  # POST paths that are answered here; all others are those of `app`

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        service, began, status = self.service, time.perf_counter(), 499  # 499: the caller left

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if service.stopping:
                    message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        caller = Caller(receive)
        direct = self.paths.get(scope["path"]) if scope["method"] == "POST" else None
        service.taken += 1
        try:
            self._admit(scope)
            body = await _read(scope, caller, service.settings.max_bytes, service.settings.read_timeout)
            if body is not None:
                answering = self._answer(direct, scope, body, counted)
                await _until_left(answering, receive)
        except Refused as refused:
            if refused.status != 408:
                await _throw_away(caller, PATIENCE)
            response = as_response(refused)
            if caller.more:
                response.headers["Connection"] = "close"
            await response(scope, receive, counted)
        finally:
            service.taken -= 1
            route = scope.get("route")
            path = scope["path"] if direct else getattr(route, "path", None) or "other"
            service.metrics.requests.labels(path, str(status)).inc()
            service.metrics.seconds.labels(path).observe(time.perf_counter() - began)

    async def _answer(self, direct: Direct | None, scope: Scope, body: bytes, send: Send) -> None:
        if direct is not None:
            response = await direct.answer(self.service, scope, body)
            await response(scope, _nothing_more, send)
            return
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def replayed() -> Message:
            return messages.pop() if messages else await _nothing_more()

        await self.app(scope, replayed, send)

    def _admit(self, scope: Scope) -> None:
        token = self.service.settings.token
        if token and scope["path"] not in OPEN:
            kind, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
            right = hmac.compare_digest(given.strip().encode(), token.encode())
            if kind.lower() != "bearer" or not right:
                raise Refused(401, "send the header Authorization: Bearer TOKEN", "Authorization")
        if self.service.stopping and scope["path"] not in ALWAYS:
            raise Refused(503, STOPPING, retry_after=RETRY)


@dataclass
class Caller:
    """The other end. `more` says whether a part of its body may still come."""

    receive: Receive
    more: bool = True

    async def next(self) -> Message:
        message = await self.receive()
        self.more = message.get("more_body", False)
        return message


async def _read(scope: Scope, caller: Caller, most: int, seconds: float) -> bytes | None:
    """The body; None if the caller left. Refused if it is too large or too slow."""
    length = Headers(scope=scope).get("content-length", "")
    size = int(length[:20]) if length.isdecimal() else 0
    pieces, got = [], 0
    try:
        async with asyncio.timeout(seconds):
            while max(size, got) <= most:
                message = await caller.next()
                if message["type"] == "http.disconnect":
                    return None
                pieces.append(message.get("body", b""))
                got += len(pieces[-1])
                if not caller.more and got <= most:
                    return b"".join(pieces)
    except TimeoutError:
        raise Refused(408, f"the request did not arrive within {seconds:g} s", "body") from None
    raise Refused(413, f"at most {most} bytes", "body")


async def _throw_away(caller: Caller, seconds: float) -> None:
    """The rest of a body. A caller that is cut short in the middle of sending would read no answer."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while caller.more:
                await caller.next()


async def _until_left(answer: Coroutine, receive: Receive) -> None:
    """Answer a request, or give it up when its caller leaves."""
    answering, left = asyncio.current_task(), asyncio.ensure_future(_disconnected(receive))
    left.add_done_callback(lambda done: done.cancelled() or answering.cancel())
    try:
        await answer
    except asyncio.CancelledError:
        if not left.done() or answering.uncancel():  # somebody else gave it up
            raise
    finally:
        left.cancel()


async def _nothing_more() -> Message:
    return await asyncio.Future()  # only `_until_left` listens to the caller


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
