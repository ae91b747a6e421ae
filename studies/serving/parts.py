"""A server in a process of its own, rows to ask about, and callers that cost little."""

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dwrl_jax.judge.load import LoadedJudge

HOST = "127.0.0.1"


@dataclass
class Running:
    """A server that is ready."""

    process: subprocess.Popen
    port: int

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def metrics(self) -> dict[str, float]:
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=30) as answer:
            lines = (line for line in answer.read().decode().splitlines() if not line.startswith("#"))
            return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    def memory(self) -> float:
        """Resident memory in MB."""
        with open(f"/proc/{self.process.pid}/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) / 1024

    def stop(self) -> tuple[int, float]:
        """SIGTERM; the exit code and the seconds until then."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=120), time.monotonic() - began


@contextlib.contextmanager
def server(flags: Sequence[str]) -> Iterator[Running]:
    """A server on a free port. It is stopped at the end of the block, if it still runs."""
    command = [sys.executable, "-m", "dwrl_jax.serve", "--port=0", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as process:
        try:
            line = next((line for line in process.stdout if line.startswith("ready at")), None)
            if line is None:
                raise SystemExit(f"the server did not start: {' '.join(command)}")
            yield Running(process, int(line.rsplit(":", 1)[1]))
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    process.kill()


def rows_of(loaded: LoadedJudge, count: int) -> list[dict[str, str]]:
    """Different single-response rows: of the built-in world if the judge knows only its words, else small sums."""
    rng = random.Random(0)
    if loaded.dialogue.words is None:
        sums = ((rng.randrange(1000), rng.randrange(1000)) for _ in range(count))
        return [
            {"prompt": f"What is {a} + {b}?", "response": f"It is {a + b + rng.choice([0, 0, 1, 10])}."}
            for a, b in sums
        ]
    return [
        {
            "prompt": " ".join([f"s{rng.randrange(6)}", *(f"o{rng.randrange(5)}" for _ in range(5))]),
            "response": f"s{rng.randrange(6)} {rng.choice(['warm', 'plain', 'curt'])}",
        }
        for _ in range(count)
    ]


@dataclass
class Caller:
    """A connection that is kept, with as little work in Python as possible."""

    port: int
    reader: asyncio.StreamReader | None = None
    writer: asyncio.StreamWriter | None = None

    async def open(self) -> None:
        self.reader, self.writer = await asyncio.open_connection(HOST, self.port)

    async def ask(self, path: str, body: bytes) -> tuple[int, bytes, float]:
        """Status, body and seconds. OSError or EOFError if there is no answer."""
        began = time.perf_counter()
        if self.writer is None:
            await self.open()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self.writer.write(head.encode() + body)
        lines = (await self.reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
        size = next(int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length"))
        said = await self.reader.readexactly(size)
        if b"connection: close" in lines:
            self.close()
        return int(lines[0].split()[1]), said, time.perf_counter() - began

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None


def percentile(values: Sequence[float], q: float) -> float:
    return float(np.percentile(values, q)) if len(values) else float("nan")


def as_body(content) -> bytes:
    return json.dumps(content).encode()
