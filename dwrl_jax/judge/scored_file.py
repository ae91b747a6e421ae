"""Score a file of rows, in the order of the input. After an interruption the same call goes on from the last row."""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from tqdm import tqdm

from dwrl_jax.core import files, hosts, lock
from dwrl_jax.core.errors import UserError
from dwrl_jax.core.terminal import say
from dwrl_jax.data.containers import identity, open_table
from dwrl_jax.judge.card import as_json
from dwrl_jax.judge.load import LoadedJudge
from dwrl_jax.judge.score import score
from dwrl_jax.judge.votes import Adaptive


def score_file(
    loaded: LoadedJudge, source: Path, output: Path, votes: int | Adaptive = 8, *, seed: int = 0, batch_size: int = 16
) -> None:
    """Score the rows of a file that training reads too, and write them to `output`, a file of JSON lines.

    Until all rows are finished, a hidden file beside `output` holds the finished rows. UserError if `source` cannot be
    read, if `output` exists, or if its folder does not exist.
    """
    if hosts.of_first(output.exists()):
        raise UserError(f"--output={output}: already there; remove it or choose another name")
    if not output.parent.is_dir():
        raise UserError(f"--output={output}: its folder is not there; make it first")
    with lock.held(output.with_name(f".{output.name}.lock"), "choose another --output"):
        _score_file(loaded, source, output, votes, seed, batch_size)
    hosts.by_first(Path.unlink)(output.with_name(f".{output.name}.lock"), missing_ok=True)


def _score_file(
    loaded: LoadedJudge, source: Path, output: Path, votes: int | Adaptive, seed: int, batch_size: int
) -> None:
    total, digest = measure(source)
    asked = dataclasses.asdict(votes) if isinstance(votes, Adaptive) else votes
    head = {"judge": loaded.name, "card": as_json(loaded.card), "input": digest, "votes": asked, "seed": seed}
    partial = output.with_name(f".{output.name}.partial")
    done = hosts.of_first(_begin(partial, head) if hosts.first() else 0)
    scored = score(loaded, read_rows(source), votes, seed=seed, batch_size=batch_size, done=done)
    bar = tqdm(scored, total=total, initial=done, unit="row", disable=None, dynamic_ncols=True)
    for row in bar:
        if hosts.first():
            files.append_lines(partial, [row])
    hosts.attempt(_finish, partial, output)


def read_rows(source: Path) -> Iterator[dict | str]:
    """The rows of a file; a string says why a row cannot be read."""
    return (row for _, row in open_table(str(source), "train").rows())


def measure(source: Path) -> tuple[int, str]:
    """The number of rows, and the SHA-256 of the bytes of all files that have them."""
    count, digest = len(open_table(str(source), "train")), hashlib.sha256()
    for path, *_ in identity(str(source))[1:]:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return count, digest.hexdigest()


def _begin(partial: Path, head: dict) -> int:
    """The number of rows that an earlier call with the same `head` has finished. Without such a call, start anew: 0."""
    if partial.exists():
        lines = list(files.read_lines(partial))
        if lines and lines[0] == json.loads(json.dumps(head)):
            files.write_lines(partial, lines)  # drops a half-written last line
            return len(lines) - 1
        say(f"{partial} has other rows or another judge's rows: starting anew")
    files.write_lines(partial, [head])
    return 0


def _finish(partial: Path, output: Path) -> None:
    rows: Iterable[dict] = itertools.islice(files.read_lines(partial), 1, None)
    files.write_lines(output, rows)
    partial.unlink()
