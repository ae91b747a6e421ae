"""Files that contain rows: JSON, JSON lines, CSV, Parquet and Arrow, also compressed.

Each kind of file is a reader: `read(path, indices)` yields (line number, row) of all rows, or of the rows with these
indices. Lines are counted from 1, or the rows of a file without lines. Indices count rows from 0 and skip blank lines.
A row that cannot be read is a string, which says why.
"""

import bz2
import csv
import functools
import gzip
import io
import itertools
import json
import lzma
import os
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from dwrl_jax.data.json_rows import HOLDER, NOT_JSON, decoder_of_rows, held, row_of, values_of

ROWS = (".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow")
PACKED = (".gz", ".zst", ".bz2", ".xz")
LONGEST = 16 * 2**20  # bytes of a row: a longer one costs itself and not the memory
TOO_LONG = f"a row of more than {LONGEST // 2**20} MiB"
Rows = Iterator[tuple[int, dict | str]]


@dataclass(frozen=True)
class RowFile:
    """A file with rows. Its methods raise whatever the library raises that cannot read it."""

    path: str

    def count(self) -> int:
        """The number of rows."""
        return _count(self.path)

    def rows(self, indices: Collection[int] | None = None) -> Rows:
        """(line number, row) of all rows, or of the rows with these indices, in the order of the file."""
        read = {".csv": _csv, ".tsv": _csv, ".parquet": _parquet, ".arrow": _arrow}.get(_kind(self.path))
        if read is not None:
            return read(self.path, indices)
        if (listed := _listed(self.path)) is not None:
            return _picked(iter(listed), indices)
        return _json_lines(self.path, indices)


def is_row_file(path: str) -> bool:
    """Whether the name of a file says that it has rows."""
    return _kind(path) in ROWS


def _kind(path: str) -> str:
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    if suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def open_bytes(path: str) -> IO[bytes]:
    """The unpacked bytes of a file."""
    packed = Path(path).suffix.lower()
    if packed == ".zst":
        import pyarrow  # slow to import; it has the codec that the standard library lacks

        return io.BufferedReader(pyarrow.input_stream(path, compression="zstd"))
    return {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}.get(packed, open)(path, "rb")


def _count(path: str) -> int:
    kind = _kind(path)
    if kind == ".parquet":
        return _open_parquet(path).metadata.num_rows
    if kind in (".csv", ".tsv", ".arrow"):
        return sum(1 for _ in RowFile(path).rows())
    if (listed := _listed(path)) is not None:
        return len(listed)
    with open_bytes(path) as file:
        return sum(1 for _ in _lines(file))


def _lines(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """(line number, line) of all lines that are not blank. One of more than LONGEST bytes comes cut."""
    number = 0
    while line := file.readline(LONGEST + 1):
        blank = not (line if number else line.removeprefix(b"\xef\xbb\xbf")).strip()
        number += 1
        part = line
        while len(part) > LONGEST and not part.endswith(b"\n"):
            part = file.readline(LONGEST + 1)
            blank = blank and not part.strip()
        if not blank:
            yield number, line


def _picked(rows: Iterator, indices) -> Iterator:
    return rows if indices is None else (row for index, row in enumerate(rows) if index in indices)


def _json_lines(path: str, indices) -> Rows:
    with open_bytes(path) as file:
        for number, line in _picked(_lines(file), indices):
            yield number, _json_object(line)


def _json_object(line: bytes) -> dict | str:
    if len(line) > LONGEST:
        return TOO_LONG
    try:
        decoder, doubled = decoder_of_rows()
        return row_of(decoder.decode(line.decode(json.detect_encoding(line), "surrogatepass")), doubled)
    except (ValueError, RecursionError):
        return NOT_JSON


def _listed(path: str) -> list[tuple[int, dict | str]] | None:
    state = os.stat(path)
    return _read_listed(path, state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=1)  # the rows are counted and then read
def _read_listed(path: str, changed: int, size: int) -> list[tuple[int, dict | str]] | None:
    """The rows of a file whose objects do not each have a line of their own; None for JSON lines.

    It is an array, one object that holds the array, or objects of several lines. ValueError for an array that breaks
    off.
    """
    with open_bytes(path) as file:
        lines = _lines(file)
        _, first = next(lines, (0, b""))
        if first[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise ValueError("UTF-16 text: save it as UTF-8")
        begin = first.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
        a_row = begin == b"{" and (isinstance(_json_object(first), dict) or len(first) > LONGEST)
        if begin not in (b"[", b"{") or (a_row and next(lines, None) is not None):
            return None
    if begin == b"{" and not _fits_as_a_whole(path):
        return None  # it need not be held in memory to see that it has lines
    with open_bytes(path) as file:
        text = file.read().decode("utf-8-sig", errors="surrogateescape")
    decoder, doubled = decoder_of_rows()
    try:
        values = list(values_of(text, decoder))
    except ValueError:
        if begin == b"[" and not _lists_of_lines(first):
            raise
        return None  # lines, of which the first is not whole
    rows = [(line, TOO_LONG if length > LONGEST else value) for line, length, value in values]
    if len(values) == 1 and (inside := held(values[0][2])) is not None:
        rows = [(values[0][0], value) for value in inside]
    if len({number for number, _ in rows}) < len(rows):  # rows share a line
        rows = list(enumerate((value for _, value in rows), 1))
    return [(number, value if isinstance(value, str) else row_of(value, doubled)) for number, value in rows]


def _fits_as_a_whole(path: str) -> bool:
    """Whether a file that begins with an object is short, or has objects of several lines or one that holds rows."""
    with open_bytes(path) as file:
        head = file.read(LONGEST + 1)
    if len(head) <= LONGEST or HOLDER.search(head):
        return True
    try:
        json.JSONDecoder().raw_decode(head.decode("utf-8-sig", errors="surrogateescape").lstrip())
    except (ValueError, RecursionError):
        return False
    return True


def _lists_of_lines(first: bytes) -> bool:
    """Whether the first line is a whole list, so that the file has a list on each line."""
    try:
        return isinstance(json.loads(first), list)
    except (ValueError, RecursionError):
        return False


def _csv(path: str, indices) -> Rows:
    """Bytes that are not UTF-8 become lone surrogates, so that only their rows cannot be used."""
    csv.field_size_limit(LONGEST)
    with (
        open_bytes(path) as opened,
        io.TextIOWrapper(opened, "utf-8-sig", errors="surrogateescape", newline="") as file,
    ):
        head = file.readline(LONGEST + 1)
        comma = "\t" if _kind(path) == ".tsv" else max(",;\t", key=head.count)
        cut: list[int] = []
        lines = csv.reader(itertools.chain([head], _text_lines(file, cut)), delimiter=comma)
        names = next(lines, [])
        check_names(names)
        yield from _picked(_csv_rows(lines, names, cut), indices)


def _text_lines(file: IO[str], cut: list[int]) -> Iterator[str]:
    """The lines of a file. One of more than LONGEST characters comes cut, and its length is added to `cut`."""
    while line := file.readline(LONGEST + 2):
        part = line
        while len(part) > LONGEST + 1 and not part.endswith(("\n", "\r")):
            part = file.readline(LONGEST + 2)
        if part is not line:
            cut.append(len(line))
        yield line


def check_names(names) -> None:
    """ValueError if two columns have the same name: one of them would be lost."""
    twice, count = Counter(filter(None, names)).most_common(1)[0] if any(names) else ("", 0)
    if count > 1:
        raise ValueError(f"two columns have the name {ascii(twice[:40])}: rename one of them")


def _csv_rows(lines, names: list[str], cut: list[int]) -> Rows:
    before = lines.line_num
    while True:
        try:
            cells = next(lines)
        except StopIteration:
            return
        except csv.Error:
            cells = None
        number, before = before + 1, lines.line_num
        if cells is None or cut or sum(map(len, cells)) > LONGEST:
            cut.clear()
            yield number, TOO_LONG
        elif cells:
            row = {name: cell for name, cell in zip(names, cells) if cell}
            yield number, row if len(cells) == len(names) else f"{len(cells)} cells, not {len(names)}"


def _open_parquet(path: str):
    import pyarrow.parquet  # slow to import, like `datasets`; only readers of such files need it

    return pyarrow.parquet.ParquetFile(path)


def _parquet(path: str, indices) -> Rows:
    return _of_batches(_open_parquet(path).iter_batches(), indices)


def _arrow(path: str, indices) -> Rows:
    import pyarrow

    with pyarrow.memory_map(path) as source:
        try:
            batches = pyarrow.ipc.open_stream(source)
        except pyarrow.ArrowInvalid:
            file = pyarrow.ipc.open_file(source)
            batches = map(file.get_batch, range(file.num_record_batches))
        yield from _of_batches(batches, indices)


def _of_batches(batches, indices) -> Rows:
    first = 1
    for batch in batches:
        check_names(batch.schema.names)
        wanted = [i for i in range(len(batch)) if indices is None or first + i - 1 in indices]
        yield from ((first + i, row) for i, row in zip(wanted, batch.take(wanted).to_pylist() if wanted else ()))
        first += len(batch)
