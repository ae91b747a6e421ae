"""Figures of the server: python -m studies.serving.run load --model=runs/tiny

load    many requests at once, one by one, and `score` on the same rows
soak    all protocols for some minutes, with 5 % broken requests: memory, statuses, scores
fuzz    malformed bodies and odd callers
stop    SIGTERM under load

Each prints a row, and all of them with `all`. Everything stays on this machine and ends by itself.
"""

import argparse
import asyncio
import contextlib
import io
import json
import random
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path

import uvloop

from dwrl_jax.core import files
from dwrl_jax.judge import LoadedJudge, load, score
from dwrl_jax.judge.card import read_card
from dwrl_jax.judge.scored_file import score_file
from studies.serving import fuzz
from studies.serving.parts import Caller, Running, as_body, percentile, rows_of, server

TOLERANCE = 1e-6


def load_row(given: argparse.Namespace, loaded: LoadedJudge) -> str:
    """All requests at once and `score` on the same rows, in turn and each several times; then some one by one."""
    rows = rows_of(loaded, given.requests)
    bodies = [as_body({"messages": row["prompt"], "responses": [row["response"]]}) for row in rows]
    with server(_flags(given)) as running:
        expected, _ = _score(given, loaded, rows)  # compiles
        before = running.metrics()
        bursts, offline = [], []
        for _ in range(given.repeats):
            bursts.append(uvloop.run(_burst(running, bodies)))
            offline.append(len(rows) / _score(given, loaded, rows)[1])
        after = running.metrics()
        lone = bodies[: max(4, given.requests // 20)]
        alone = len(lone) / uvloop.run(_one_by_one(running, lone))
        code, _ = running.stop()
    wrong = sum(abs(s - e) > TOLERANCE for _, said, _ in bursts for s, e in zip(said, expected))
    rates = [len(rows) / seconds for seconds, *_ in bursts]
    rate, share = statistics.median(rates), statistics.median(r / s for r, s in zip(rates, offline))
    latency = [value for *_, each in bursts for value in each]
    asked = after["dwrl_jax_batch_questions_sum"] - before["dwrl_jax_batch_questions_sum"]
    batches = after["dwrl_jax_batch_questions_count"] - before["dwrl_jax_batch_questions_count"]
    return (
        f"{len(rows)} at once, k = {given.votes}: mean batch {asked / batches:.1f}; {rate:.1f} requests/s, "
        f"{rate / alone:.1f} x one by one ({alone:.1f}/s), {share:.0%} of score ({statistics.median(offline):.1f}/s); "
        f"p50 {percentile(latency, 50):.2f} s, p99 {percentile(latency, 99):.2f} s; {wrong} wrong scores; exit {code}"
    )


def _score(given: argparse.Namespace, loaded: LoadedJudge, rows: list[dict]) -> tuple[list[float], float]:
    """The scores that the command `score` writes, and its seconds without loading."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):  # its bar
        source, output = Path(folder) / "rows.jsonl", Path(folder) / "scored.jsonl"
        files.write_lines(source, rows)
        began = time.perf_counter()
        score_file(loaded, source, output, given.votes, batch_size=given.batch_size)
        return [row["score"] for row in files.read_lines(output)], time.perf_counter() - began


async def _burst(running: Running, bodies: list[bytes]) -> tuple[float, list[float], list[float]]:
    """Seconds, scores and latencies of requests at once, each on a kept connection of its own that has been used."""
    callers = [Caller(running.port) for _ in bodies]
    await asyncio.gather(*(caller.ask("/v1/judge", b"{}") for caller in callers))  # 400, once the server has let it in
    began = time.perf_counter()
    answers = await asyncio.gather(*(caller.ask("/v1/judge", body) for caller, body in zip(callers, bodies)))
    seconds = time.perf_counter() - began
    for caller in callers:
        caller.close()
    refused = Counter(status for status, *_ in answers if status != 200)
    assert not refused, f"not answered: {dict(refused)}"
    return seconds, [json.loads(said)["score"][0] for _, said, _ in answers], [each for *_, each in answers]


async def _one_by_one(running: Running, bodies: list[bytes]) -> float:
    """Seconds of requests that wait for each other."""
    caller = Caller(running.port)
    await caller.ask("/v1/judge", bodies[0])
    began = time.perf_counter()
    for body in bodies:
        await caller.ask("/v1/judge", body)
    caller.close()
    return time.perf_counter() - began


def soak_row(given: argparse.Namespace, loaded: LoadedJudge) -> str:
    """Twelve callers with all protocols; every score is compared with `score`."""
    rows = rows_of(loaded, 60)
    expected = [row["score"] for row in score(loaded, rows, given.votes, batch_size=given.batch_size)]
    statuses, wrong, latency, memory = Counter(), [], [], []
    with server(_flags(given)) as running:
        uvloop.run(_soak(running, loaded, rows, expected, given.seconds, statuses, wrong, latency, memory))
        code, _ = running.stop()
    calm = [size for at, size in memory if at >= min(60, given.seconds / 4)]
    grown = max(calm) / calm[0] - 1
    server_errors = sum(count for status, count in statuses.items() if status >= 500)
    return (
        f"{sum(statuses.values())} requests in {given.seconds} s, by status {dict(sorted(statuses.items()))}: "
        f"{server_errors} x 5xx, {len(wrong)} wrong scores; memory {calm[0]:.0f} MB after the first minute, at most "
        f"{grown:+.1%} later; p99 {percentile(latency, 99):.2f} s; exit {code}"
    )


async def _soak(running, loaded, rows, expected, seconds, statuses, wrong, latency, memory) -> None:
    begun, end = time.monotonic(), time.monotonic() + seconds

    async def call(number: int) -> None:
        rng, caller = random.Random(number), Caller(running.port)
        while time.monotonic() < end:
            which = rng.randrange(len(rows))
            path, body, read = _request(loaded, rows[which], rng)
            broken = rng.random() < 0.05
            status, said, took = await caller.ask(path, body[: len(body) // 2] if broken else body)
            statuses[status] += 1
            latency.append(took)
            if (status != 200) != broken or (not broken and abs(read(json.loads(said)) - expected[which]) > TOLERANCE):
                wrong.append((path, status, said[:200]))
        caller.close()

    async def watch() -> None:
        while time.monotonic() < end:
            memory.append((time.monotonic() - begun, running.memory()))
            await asyncio.sleep(1)

    await asyncio.gather(watch(), *map(call, range(12)))


def _request(loaded: LoadedJudge, row: dict[str, str], rng: random.Random) -> tuple:
    """A path, a request about the row, and how to read its score."""
    turns = [{"role": "user", "content": row["prompt"]}]
    both = [*turns, {"role": "assistant", "content": row["response"]}]
    shown = loaded.dialogue.tokenizer.apply_chat_template(both, tokenize=False, chat_template=loaded.dialogue.template)
    response = {"output": [{"type": "message", "content": row["response"]}]}
    choices = [
        ("/v1/judge", {"messages": turns, "responses": [row["response"]]}, lambda said: said["score"][0]),
        ("/get_reward", {"query": [shown]}, lambda said: said["rewards"][0]),
        ("/slime", {"prompt": row["prompt"], "response": row["response"], "label": None}, lambda said: said),
        ("/classify", {"input": shown}, lambda said: said["data"][-1]["probs"][-1]),
        ("/v1/embeddings", {"input": shown}, lambda said: said["data"][-1]["embedding"][-1]),
        ("/v1/score", {"query": row["prompt"], "items": [row["response"]]}, lambda said: said["scores"][0][0]),
        ("/compare", {"conversation_history": turns, "response_objs": [response]}, lambda said: said["rewards"][0]),
    ]
    path, body, read = rng.choice(choices)
    return path, as_body(body), read


def stop_row(given: argparse.Namespace, loaded: LoadedJudge) -> str:
    """Fifty callers that do not cease; SIGTERM in the midst."""
    rows = rows_of(loaded, 60)
    with server(_flags(given)) as running:
        counts, code, seconds = uvloop.run(_stop(running, rows))
    return f"SIGTERM under load: {dict(counts)}; exit {code} after {seconds:.1f} s"


async def _stop(running: Running, rows: list[dict[str, str]]) -> tuple[Counter, int, float]:
    counts: Counter = Counter()

    async def call(number: int) -> None:
        rng = random.Random(number)
        while True:
            caller, row = Caller(running.port), rng.choice(rows)
            body = as_body({"messages": row["prompt"], "responses": [row["response"]]})
            try:
                status, *_ = await caller.ask("/v1/judge", body)
            except ConnectionRefusedError:
                return  # the server listens no more
            except (OSError, EOFError):
                counts["accepted and not answered"] += 1
                return
            counts[f"answered {status}"] += 1
            caller.close()
            if status == 503:
                await asyncio.sleep(0.05)

    calls = [asyncio.ensure_future(call(number)) for number in range(50)]
    await asyncio.sleep(3)
    code, seconds = await asyncio.to_thread(running.stop)
    await asyncio.wait_for(asyncio.gather(*calls), 60)
    return counts, code, seconds


def fuzz_row(given: argparse.Namespace, _: LoadedJudge) -> str:
    with server([*_flags(given), "--sizes=1,4", "--read_timeout=3"]) as running:
        said = fuzz.row(running.url, given.bodies)
        code, _ = running.stop()
    return f"{said}; exit {code}"


def _flags(given: argparse.Namespace) -> list[str]:
    flags = [f"--model={given.model}", f"--votes={given.votes}", f"--sizes={given.votes}"]
    return [*flags, f"--batch_size={given.batch_size}", *([f"--judge={given.judge}"] if given.judge else [])]


ROWS = {"load": load_row, "soak": soak_row, "fuzz": fuzz_row, "stop": stop_row}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*ROWS, "all"])
    parser.add_argument("--model", required=True)
    parser.add_argument("--judge", type=Path)
    parser.add_argument("--votes", type=int, default=4)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--requests", type=int, default=500, help="of load")
    parser.add_argument("--repeats", type=int, default=5, help="of load")
    parser.add_argument("--seconds", type=int, default=600, help="of soak")
    parser.add_argument("--bodies", type=int, default=20_000, help="of fuzz")
    given = parser.parse_args(arguments)
    loaded = load(given.model, card=read_card(given.judge) if given.judge else None)
    for name in ROWS if given.what == "all" else [given.what]:
        print(f"{name}: {ROWS[name](given, loaded)}", flush=True)


if __name__ == "__main__":
    main()
