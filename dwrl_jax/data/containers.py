"""The files and data sets that rows come from: JSON lines, Parquet, and everything that `datasets` can load."""

import contextlib
import gzip
import json
from collections.abc import Iterator
from pathlib import Path

from dwrl_jax.core.errors import UserError


def rows(name: str, split: str) -> Iterator[tuple[str, dict | None]]:
    """("file:line", row) of every row, counted from 1; a line that is not a JSON object comes as None.

    UserError when the file or data set cannot be read.
    """
    with _readable(name, split):
        if name.endswith((".jsonl", ".jsonl.gz")):
            read = _json_lines(name)
        elif name.endswith(".parquet"):
            read = _parquet(name)
        else:
            read = enumerate(_data_set(name, split), 1)
        for number, row in read:
            yield f"{name}:{number}", row


@contextlib.contextmanager
def _readable(name, split) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # three libraries and the network: no common parent
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(
            f"{name} (split {split!r}) cannot be read: give a .jsonl, .jsonl.gz or .parquet file, "
            f"or the name of a data set ({why})"
        ) from error


def _json_lines(name):
    """(number, row) of every line that is not blank."""
    with (gzip.open if name.endswith(".gz") else open)(name, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, _json_object(line)


def _json_object(line) -> dict | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _parquet(name):
    import pyarrow.parquet  # slow to import, as is `datasets`: paid for by those who read such files

    batches = pyarrow.parquet.ParquetFile(name).iter_batches()
    return enumerate((row for batch in batches for row in batch.to_pylist()), 1)


def _data_set(name, split):
    import datasets

    if any((Path(name) / marker).is_file() for marker in ("state.json", "dataset_dict.json")):
        loaded = datasets.load_from_disk(name)
        return loaded[split] if isinstance(loaded, datasets.DatasetDict) else loaded
    return datasets.load_dataset(name, split=split)
