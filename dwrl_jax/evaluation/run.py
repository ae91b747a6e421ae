"""Score the rows of a benchmark and summarise them, in a folder from which a stopped evaluation goes on.

The folder has `evaluation.json`, which says what is evaluated; `rows.jsonl`, to which each row is appended when it is
scored; and at the end `summary.json`. A row's scores depend on the row alone, so an evaluation that was stopped has the
same rows as one that was not.
"""

import hashlib
import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path

from tqdm import tqdm

from dwrl_jax.core import files, hosts, lock
from dwrl_jax.core.errors import UserError
from dwrl_jax.evaluation import benchmarks, judged
from dwrl_jax.evaluation.benchmarks import Benchmark
from dwrl_jax.evaluation.outcome import summarise, usable
from dwrl_jax.judge.card import as_json
from dwrl_jax.judge.load import LoadedJudge
from dwrl_jax.judge.score import Work, score
from dwrl_jax.judge.votes import Adaptive

ABOUT, ROWS, SUMMARY, CLOCK = "evaluation.json", "rows.jsonl", "summary.json", "clock.json"
NOTES = ("data", "commit")  # in evaluation.json, of the first call; they may differ in a call that goes on
MENDED = 10.0  # seconds between two writings of the clock


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation that was read from its folder."""

    folder: Path
    about: dict
    rows: list[dict]
    summary: dict

    @property
    def benchmark(self) -> Benchmark:
        return benchmarks.load(self.about["benchmark"])

    @property
    def kind(self) -> str:
        return self.about["card"]["kind"]

    @property
    def scored(self) -> list[dict]:
        return usable(self.rows)


def evaluate(
    loaded: LoadedJudge,
    name: str,
    data: str,
    output: Path,
    votes: int | Adaptive = 8,
    *,
    split: str = "",
    limit: int = 0,
    seed: int = 0,
    batch_size: int = 16,
) -> None:
    """Evaluate a judge on the benchmark `name` and write the folder `output`; or go on with it.

    `limit` takes the first rows alone; 0 takes all. All processes must call this. UserError if the folder has another
    evaluation, or if the data cannot be read.
    """
    rows = benchmarks.read(name, data, split)
    rows = rows[:limit] if limit else rows
    about = {
        "benchmark": name,
        "data": data or benchmarks.load(name).hub,
        "rows": hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest(),
        "judge": loaded.name,
        "card": as_json(loaded.card),
        "votes": asdict(votes) if is_dataclass(votes) else votes,
        "seed": seed,
        "commit": commit(),
    }
    about = json.loads(json.dumps(about))
    with lock.held(output / "lock", "choose another --output"):
        hosts.attempt(begin, output, about)
        done = hosts.of_first(sum(1 for _ in files.read_lines(output / ROWS)) if hosts.first() else 0)
        _score(loaded, benchmarks.load(name), rows, output, done, votes, seed, batch_size)
        hosts.attempt(finish, output)


def begin(output: Path, about: dict) -> None:
    """Make the folder, or check that it holds the same evaluation. A half-written last row is dropped."""
    output.mkdir(parents=True, exist_ok=True)
    if not (output / ABOUT).exists():
        files.write_json(output / ABOUT, about)
        files.write_lines(output / ROWS, [])
        return
    earlier = files.read_json(output / ABOUT)
    other = ", ".join(key for key in about if key not in NOTES and earlier.get(key) != about[key])
    if other:
        raise UserError(f"--output={output}: holds another evaluation (other {other}); choose another folder")
    files.write_lines(output / ROWS, list(files.read_lines(output / ROWS)))


def _score(
    loaded: LoadedJudge,
    benchmark: Benchmark,
    rows: Sequence[dict],
    output: Path,
    done: int,
    votes: int | Adaptive,
    seed: int,
    batch_size: int,
) -> None:
    """Score the rows behind the first `done` ones and append each to rows.jsonl."""
    left, work = rows[done:], Work()
    asked = (None if "error" in row else {key: row[key] for key in ("prompt", "responses")} for row in rows)
    scored = score(loaded, asked, votes, seed=seed, batch_size=batch_size, work=work, done=done)
    bar = tqdm(total=len(rows), initial=done, unit="row", desc=benchmark.title, disable=None, dynamic_ncols=True)
    begun, written, right, compared = time.monotonic(), time.monotonic(), 0.0, 0
    for row, columns in zip(left, scored):
        columns = {"error": row["error"]} if "error" in row else columns
        made = row | columns
        if loaded.card.kind == "label" and columns.get("error") is None:
            made["order"] = _orders(len(row["responses"]))
        if hosts.first():
            files.append_lines(output / ROWS, [made])
        if columns.get("error") is None:
            for i, j in benchmarks.pairs_of(benchmark, row):
                right, compared = right + (columns["score"][i] > columns["score"][j]), compared + 1
        bar.set_postfix_str(f"accuracy {100 * right / max(compared, 1):.1f} %", refresh=False)
        bar.update()
        if hosts.first() and time.monotonic() - written > MENDED:
            _tick(output, time.monotonic() - begun, work)
            begun, written, work.tokens, work.positions = time.monotonic(), time.monotonic(), 0, 0
    bar.close()
    if left and hosts.first():
        _tick(output, time.monotonic() - begun, work)


def _orders(count: int) -> list[list[list[int]]]:
    """For each response of a pairwise judge, the orders in which its questions show the responses."""
    return [[[i, j] for j in range(count) if j != i] for i in range(count)]


def _tick(output: Path, seconds: float, work: Work) -> None:
    """Add to the time and the work of all calls together."""
    earlier = clock(output)
    new = {"seconds": seconds, "tokens": work.tokens, "positions": work.positions}
    files.write_json(output / CLOCK, {name: earlier[name] + new[name] for name in new})


def clock(output: Path) -> dict:
    """Seconds of scoring, prefix tokens that were asked, and positions that held them, over all calls."""
    path = output / CLOCK
    return files.read_json(path) if path.exists() else {"seconds": 0.0, "tokens": 0, "positions": 0}


def finish(output: Path) -> None:
    """Write summary.json from the rows."""
    about, rows, used = files.read_json(output / ABOUT), list(files.read_lines(output / ROWS)), clock(output)
    card, scored = about["card"], len(usable(rows))
    if not scored:
        raise UserError(f"{output}: no row could be scored, the first for: {rows[0]['error']}; see rows.jsonl there")
    thinks = card["thoughts"] != "none"
    summary = summarise(benchmarks.load(about["benchmark"]), rows, card["kind"], thinks)
    padding = Work(used["tokens"], used["positions"]).padding
    summary |= {
        "seconds": used["seconds"],
        "rows per second": scored / used["seconds"] if used["seconds"] else 0.0,
        "padding": padding,
        "benchmark": about["benchmark"],
        "data": about["data"],
        "model": about["judge"],
        "kind": card["kind"],
        "seed": about["seed"],
        "asked votes": about["votes"],
        "commit": about["commit"],
    }
    files.write_json(output / SUMMARY, summary)


def commit() -> str | None:
    """The commit of the code, with "+" if files of it have changed; None outside a repository."""

    def git(*arguments):
        return subprocess.run(["git", "-C", Path(__file__).parent, *arguments], capture_output=True, text=True)

    head = git("rev-parse", "--short", "HEAD")
    if head.returncode:
        return None
    return head.stdout.strip() + ("+" if git("status", "--porcelain", "--untracked-files=no").stdout.strip() else "")


def read(folder: Path) -> Evaluation:
    """A finished evaluation. UserError if the folder has none."""
    for name in (ABOUT, ROWS, SUMMARY):
        if not (folder / name).exists():
            raise UserError(f"{folder}: no finished evaluation ({name} is missing); give the --output of evaluate")
    rows = list(files.read_lines(folder / ROWS, needs="id"))
    return Evaluation(folder, files.read_json(folder / ABOUT), rows, files.read_json(folder / SUMMARY))


def read_all(folder: Path) -> Iterator[Evaluation]:
    """The evaluation in a folder, or those in its folders. UserError if there is none."""
    if (folder / ABOUT).exists():
        yield read(folder)
        return
    inside = sorted(path.parent for path in folder.glob(f"*/{SUMMARY}")) if folder.is_dir() else []
    if not inside:
        raise UserError(f"{folder}: no finished evaluation; give the --output of evaluate")
    yield from map(read, inside)


def result_of(evaluation: Evaluation, column: str = "votes"):
    """The benchmark's result, made again from the rows."""
    return evaluation.benchmark.aggregate(judged.for_aggregate(evaluation.scored, evaluation.kind, column))
