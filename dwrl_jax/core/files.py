"""Files that are either complete or absent, and files with one JSON object on each line.

A number that is not finite is not JSON. Writers refuse it; readers accept it from files that others wrote.
"""

import contextlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from dwrl_jax.core.errors import UserError

ENCODING = {"encoding": "utf-8", "errors": "replace"}  # half of a surrogate pair must not make the write fail


def partial_of(path: Path) -> Path:
    """A hidden name beside `path`. This process writes the new file under it and renames it at the end."""
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


@contextlib.contextmanager
def whole(path: Path, binary: bool = False) -> Iterator[IO]:
    """Open a file for text or bytes. It replaces `path` at the end of the block, but not if the block raises."""
    partial = partial_of(path)
    try:
        with open(partial, "wb") if binary else open(partial, "w", **ENCODING) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def sweep(folder: Path) -> None:
    """Remove what killed processes left half-written anywhere in a folder. No process may be writing there."""
    for partial in folder.rglob(".*.partial"):
        if partial.is_dir():
            shutil.rmtree(partial)
        else:
            partial.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a whole file of text."""
    with whole(path) as file:
        file.write(text)


def write_json(path: Path, content: dict, **style) -> None:
    """Write a whole file of JSON. `style` is passed to json.dumps; the default is an indent of 2."""
    write_text(path, dumps(path, content, **style or {"indent": 2}) + "\n")


def read_json(path: Path) -> dict:
    """The object in a JSON file. UserError if the file cannot be read or holds no JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object, not {type(content).__name__}")
    return content


def write_lines(path: Path, rows: Iterable[dict]) -> None:
    """Write a whole file with one JSON object on each line."""
    with whole(path) as file:
        file.writelines(dumps(path, row) + "\n" for row in rows)


def append_lines(path: Path, rows: Iterable[dict]) -> None:
    """Append lines in a single write, because another process may append to the same file.

    A killed process can leave a half-written last line; that line is dropped first.
    """
    text = "".join(dumps(path, row) + "\n" for row in rows)
    with open(path, "a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                _end_last_line(file)
        file.write(text.encode(**ENCODING))


def read_lines(path: Path, needs: str | None = None) -> Iterator[dict]:
    """Yield the objects of a file that has one object on each line. A half-written last line is dropped.

    UserError if the file is absent, or if a line is not an object with the key `needs`; the error names file and line.
    """
    yield from (row for _, row in _lines(path, needs))


def keep_lines(path: Path, keep: Callable[[dict], bool], needs: str | None = None) -> None:
    """Drop the lines for whose object `keep` returns False. The other lines stay exactly as they are."""
    with whole(path) as file:
        file.writelines(text for text, row in _lines(path, needs) if keep(row))


def dumps(path: Path, content: Any, **style) -> str:
    """The JSON text of `content`, to be written to `path`. UserError names the key of a number that is not finite."""
    try:
        return json.dumps(content, ensure_ascii=False, allow_nan=False, **style)
    except ValueError:
        key, value = next(_not_finite(content), ("", None))
        if value is None:
            raise
        raise UserError(f"{path}: {key} would be {value}, which is not JSON; only finite numbers are written") from None


def _lines(path: Path, needs: str | None) -> Iterator[tuple[str, dict]]:
    """Pairs of a line's text and its object."""
    if not path.exists():
        raise UserError(f"{path} does not exist")
    with open(path, **ENCODING) as file:
        for number, line in enumerate(file, 1):
            ended = line.endswith("\n")
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError:
                if not ended:
                    return
                row = None
            if not isinstance(row, dict) or (needs is not None and needs not in row):
                what = f' with a "{needs}"' if needs else ""
                raise UserError(f"{path}:{number}: not a JSON object{what}; remove the line")
            yield line if ended else line + "\n", row


def _end_last_line(file: IO[bytes]) -> None:
    """Repair a last line without a newline: add the newline if the line is whole JSON, else drop the line."""
    file.seek(0)
    content = file.read()
    start = content.rfind(b"\n") + 1
    try:
        json.loads(content[start:])
        file.write(b"\n")
    except ValueError:
        file.truncate(start)


def _not_finite(content: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """The numbers that are not finite, each with its keys joined by dots."""
    if isinstance(content, float) and not math.isfinite(content):
        yield key, content
    elif isinstance(content, dict | list | tuple):
        parts = content.items() if isinstance(content, dict) else enumerate(content)
        for name, part in parts:
            yield from _not_finite(part, f"{key}.{name}" if key else str(name))
