"""Files and data sets that contain rows: JSON lines, Parquet, and everything that `datasets` can load."""

import contextlib
import gzip
import json
import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from dwrl_jax.core.errors import UserError


@dataclass(frozen=True)
class Table:
    """The rows of a file or data set: their number, and the rows themselves. UserError if they cannot be read."""

    name: str
    split: str
    count: Callable[[], int]
    read: Callable[[Collection[int] | None], Iterator]  # indices (None: all) -> (line number, row) of each

    def __len__(self) -> int:
        with _readable(self.name, self.split):
            return self.count()

    def rows(self, indices: Collection[int] | None = None) -> Iterator[tuple[str, dict | None]]:
        """("file:line", row) of all rows or of the rows with these indices, in the order of the file.

        Lines are counted from 1. Indices count rows from 0 and skip blank lines. If a line is not a JSON object, its
        row is None.
        """
        with _readable(self.name, self.split):
            for number, row in self.read(None if indices is None else frozenset(indices)):
                yield f"{self.name}:{number}", row


def open_table(name: str, split: str) -> Table:
    """The rows of a .jsonl, .jsonl.gz or .parquet file, or of a `datasets` name or folder (its `split`)."""
    with _readable(name, split):
        if name.endswith((".jsonl", ".jsonl.gz")):
            return Table(name, split, lambda: _count_lines(name), lambda indices: _json_lines(name, indices))
        if name.endswith(".parquet"):
            return Table(name, split, lambda: _open_parquet(name).metadata.num_rows, lambda i: _parquet_rows(name, i))
        loaded = _data_set(name, split)
        return Table(name, split, lambda: len(loaded), lambda indices: _data_set_rows(loaded, indices))


def identity(name: str) -> list:
    """The name, and path, size and time of change of all its files. A name that is not a path has no files."""
    path = Path(name)
    files = sorted(path.rglob("*")) if path.is_dir() else [path] if path.is_file() else []
    return [name, *([str(file), os.stat(file).st_size, os.stat(file).st_mtime_ns] for file in files if file.is_file())]


@contextlib.contextmanager
def _readable(name, split) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # three libraries and the network have no common base class
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(
            f"{name} (split {split!r}) cannot be read: give a .jsonl, .jsonl.gz or .parquet file, "
            f"or the name of a data set ({why})"
        ) from error


def _open_lines(name):
    return (gzip.open if name.endswith(".gz") else open)(name, "rb")


def _count_lines(name) -> int:
    with _open_lines(name) as file:
        return sum(1 for line in file if line.strip())


def _json_lines(name, indices):
    with _open_lines(name) as file:
        lines = ((number, line) for number, line in enumerate(file, 1) if line.strip())
        for index, (number, line) in enumerate(lines):
            if indices is None or index in indices:
                yield number, _json_object(line)


def _json_object(line) -> dict | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _open_parquet(name):
    import pyarrow.parquet  # slow to import, like `datasets`; only readers of such files need it

    return pyarrow.parquet.ParquetFile(name)


def _parquet_rows(name, indices):
    first = 1
    for batch in _open_parquet(name).iter_batches():
        wanted = [i for i in range(len(batch)) if indices is None or first + i - 1 in indices]
        yield from ((first + i, row) for i, row in zip(wanted, batch.take(wanted).to_pylist() if wanted else ()))
        first += len(batch)


def _data_set(name, split):
    import datasets

    if any((Path(name) / marker).is_file() for marker in ("state.json", "dataset_dict.json")):
        loaded = datasets.load_from_disk(name)
        return loaded[split] if isinstance(loaded, datasets.DatasetDict) else loaded
    return datasets.load_dataset(name, split=split)


def _data_set_rows(loaded, indices):
    wanted = range(len(loaded)) if indices is None else sorted(indices)
    yield from ((i + 1, row) for i, row in zip(wanted, loaded if indices is None else loaded.select(wanted)))
