"""Read the files of a benchmark: those that training reads too, folders of them, hub names."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from dwrl_jax.core.errors import UserError
from dwrl_jax.data import containers
from dwrl_jax.data.formats import Malformed
from dwrl_jax.data.row_files import ROWS, is_row_file


def read(
    data: str, split: str, splits: tuple[str, ...], rows_of: Callable[[dict, str], Iterable[dict]]
) -> Iterator[dict]:
    """The rows of `data`, each with `id` and `where`. `data` may be several names, joined by "+".

    `rows_of(raw, name)` makes rows of a raw row in the file or data set `name`, or raises Malformed. A row without an
    `id` gets its place as one, and a second row with the same `id` gets the place behind it.
    """
    seen: Counter = Counter()
    for name, where, raw in _raw_rows(data, (split,) if split else splits):
        try:
            if not isinstance(raw, dict):
                raise Malformed(raw)
            rows = list(rows_of(raw, name))
        except Malformed as reason:
            rows = [{"error": str(reason)}]
        for row in rows:
            identity = str(row.get("id", where))
            seen[identity] += 1
            unique = identity if seen[identity] == 1 else f"{identity} ({where}, {seen[identity]})"
            yield {**row, "id": unique, "where": where}


def _raw_rows(data: str, splits: tuple[str, ...]) -> Iterator[tuple[str, str, dict | str]]:
    for name in [data] if Path(data).exists() else data.split("+"):
        path = Path(name).expanduser()
        if path.is_dir() and not _is_saved(path):
            files = sorted(file for file in path.rglob("*") if is_row_file(str(file)))
            if not files:
                raise UserError(f"--data={name}: no file {', '.join(ROWS)} in this folder")
        else:
            files = [path] if path.is_file() else []
        for file in files:
            # the place is short, so that the same row has the same id wherever the folder is
            rows = containers.open_table(str(file), "train").rows()
            yield from ((str(file), f"{_short(file, path)}:{place.rpartition(':')[2]}", raw) for place, raw in rows)
        if not files:
            if path.is_absolute() or is_row_file(name):
                raise UserError(f"--data={name}: there is no such file or folder")
            for split in splits:
                rows = containers.open_table(str(name), split).rows()
                yield from ((f"{name}/{split}", f"{split}:{place.rpartition(':')[2]}", raw) for place, raw in rows)


def _is_saved(path: Path) -> bool:
    """Whether `datasets` wrote the folder."""
    return any((path / marker).is_file() for marker in containers.MARKERS)


def _short(file: Path, given: Path) -> str:
    return str(file.relative_to(given)) if given.is_dir() else file.name


def need(raw: dict, *columns: str) -> list:
    """The values of these columns. Raises Malformed if one is missing."""
    for column in columns:
        if raw.get(column) is None:
            raise Malformed(f"missing column: {column}")
    return [raw[column] for column in columns]


def stem(name: str) -> str:
    """A file's name without its ending; for "dataset.json", "train.jsonl" and the like its folder's name."""
    path = Path(name)
    short = path.name.split(".")[0]
    return (
        path.parent.name if short in ("dataset", "train", "test", "validation", "data") and path.parent.name else short
    )
