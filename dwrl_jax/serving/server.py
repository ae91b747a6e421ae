"""The HTTP server: the app with all protocols, and its end."""

import asyncio
import base64
import contextlib
import gc
import hashlib
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, Response

from dwrl_jax.core.errors import UserError
from dwrl_jax.core.terminal import say
from dwrl_jax.dialogue.tokenizers import one_line
from dwrl_jax.serving import protocols
from dwrl_jax.serving.batcher import RETRY
from dwrl_jax.serving.direct import direct_paths
from dwrl_jax.serving.failures import Refused, as_response
from dwrl_jax.serving.guard import Guard
from dwrl_jax.serving.service import Service, Used

PAGE = Path(__file__).with_name("page.html")
# the page's own script may run, and no other; it may ask this server alone
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{}'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
UNAVAILABLE = (
    f"HTTP/1.1 503 Service Unavailable\r\nRetry-After: {RETRY}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
).encode()
LOCAL = ("127.0.0.1", "::1", "localhost")


def make_app(service: Service, started: Callable[[], None] = lambda: None) -> Guard:
    """The app of a service. The batcher runs while the app does; `started` is called when requests may come."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI):
        service.batcher.start()
        started()
        yield
        service.cohorts.finish()
        service.batcher.close()

    app = FastAPI(title="dwrl_jax", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    for router in protocols.routers():
        app.router.routes.extend(router.routes)  # without the further matching of included routers
    _add_state(app)
    app.add_exception_handler(HTTPException, _no_such_path)
    app.add_exception_handler(Exception, lambda _, error: as_response(Refused(500, one_line(error))))
    return Guard(app, service, direct_paths())


def _add_state(app: FastAPI) -> None:
    """The paths about the server itself."""

    @app.get("/health")
    async def health(service: Used) -> JSONResponse:
        """Whether the process works."""
        failure = service.batcher.failure
        return JSONResponse({"status": failure or "ok"}, 500 if failure else 200)

    @app.get("/ready")
    async def ready(service: Used) -> JSONResponse:
        """Whether requests are answered."""
        fit = service.batcher.warm and not service.stopping and not service.batcher.failure
        about = {"ready": fit, "model": service.name, "kind": service.loaded.card.kind}
        return JSONResponse(about, 200 if fit else 503)

    @app.get("/metrics")
    async def metrics(service: Used) -> Response:
        """All counts, for Prometheus."""
        return Response(generate_latest(service.metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        """A page to try the judge."""
        text = PAGE.read_text("utf-8")
        script = text.partition("<script>")[2].partition("</script>")[0]
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        return HTMLResponse(text, headers={"Content-Security-Policy": POLICY.format(digest)})


def _no_such_path(request: Request, error: HTTPException) -> JSONResponse:
    response = as_response(Refused(error.status_code, f"{error.detail}: {request.method} {request.url.path[:80]}"))
    response.headers.update(error.headers or {})
    return response


def serve(service: Service, host: str, port: int, ready: Callable[[str], None] = say) -> None:
    """Serve until SIGTERM or SIGINT. `ready` is told the address as soon as requests are answered.

    UserError if the address cannot be had, or if the judge fails at its first programs.
    """
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise UserError(f"--host={host} --port={port}: {error.strerror or error}; choose another one") from None
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listening.getsockname()[1]}"
    with asyncio.Runner(loop_factory=uvicorn.Config("").get_loop_factory()) as runner:
        runner.run(_serve(service, listening, lambda: ready(address)))
    if service.batcher.failure:
        raise UserError(f"the judge failed: {service.batcher.failure}")


async def _serve(service: Service, listening: socket.socket, ready: Callable[[], None]) -> None:
    tasks = []

    def started() -> None:
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):  # in the place of uvicorn's, which end with the signal
            loop.add_signal_handler(
                name, lambda: tasks.append(asyncio.ensure_future(_stop(service, server, listening)))
            )
        tasks.append(asyncio.ensure_future(_announce(service, server, ready)))

    config = uvicorn.Config(
        make_app(service, started),
        lifespan="on",
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=4096,
        timeout_keep_alive=75,  # longer than the pools of clients keep connections
        timeout_graceful_shutdown=5,
    )
    server = uvicorn.Server(config)
    await server.serve([listening])
    gc.unfreeze()
    for task in tasks:
        task.cancel()


async def _announce(service: Service, server: uvicorn.Server, ready: Callable[[], None]) -> None:
    while not service.batcher.warm and not service.batcher.failure:
        await asyncio.sleep(0.02)
    if service.batcher.warm:
        gc.collect()
        gc.freeze()  # JAX and the model have so many objects that looking through them costs more than a request
        ready()
    while not service.batcher.failure:
        await asyncio.sleep(1)
    server.should_exit = True


async def _stop(service: Service, server: uvicorn.Server, listening: socket.socket) -> None:
    """Refuse new requests, finish those that were taken, and end. A second signal ends at once."""
    if service.stopping:
        server.should_exit = server.force_exit = True
        return
    service.stopping = True
    service.cohorts.finish()
    end = time.monotonic() + service.settings.stop
    await asyncio.sleep(service.settings.linger)
    while service.taken and time.monotonic() < end:
        await asyncio.sleep(0.02)
    service.batcher.close()  # what is left is refused
    last = _last(listening)
    for each in server.servers:
        each.close()
    listening.close()
    wait = service.settings.linger
    await asyncio.gather(asyncio.sleep(wait), *(_refuse(caller, wait) for caller in last))
    server.should_exit = True


def _last(listening: socket.socket) -> list[socket.socket]:
    """The callers who are at the door already, and whom nobody has let in."""
    last = []
    with contextlib.suppress(OSError):  # until there are no more
        while True:
            last.append(listening.accept()[0])
    return last


async def _refuse(caller: socket.socket, seconds: float) -> None:
    """Tell a caller that nobody serves it."""
    reader, writer = await asyncio.open_connection(sock=caller)
    with contextlib.suppress(OSError, EOFError, TimeoutError, ValueError):
        async with asyncio.timeout(seconds):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(UNAVAILABLE)
            await writer.drain()
    writer.close()
