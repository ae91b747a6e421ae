"""Places that rows come from: files, patterns of files, folders, and all that `datasets` can load."""

import contextlib
import functools
import glob
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dwrl_jax.core.errors import UserError
from dwrl_jax.data.row_files import PACKED, ROWS, RowFile, is_row_file

KINDS = f"a {', '.join(ROWS)} file (also {', '.join(PACKED)}), a folder or pattern of such files"
MARKERS = ("state.json", "dataset_dict.json")  # files of a data set that `save_to_disk` wrote
WORDS = {  # a split, and the words for it in names of files
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_CONFIG = re.compile(r"(.+[^:/\\]):([\w.-]+)")  # NAME:CONFIG
_PIECE = re.compile(r"([\w.-]*)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?")


@dataclass(frozen=True)
class DataSet:
    """Rows that the library `datasets` has loaded. They are numbered from 1."""

    path: str
    loaded: Any

    def count(self) -> int:
        return len(self.loaded)

    def rows(self, indices: Collection[int] | None = None) -> Iterator[tuple[int, dict]]:
        wanted = range(len(self.loaded)) if indices is None else sorted(indices)
        rows = self.loaded if indices is None else self.loaded.select(wanted)
        yield from ((i + 1, row) for i, row in zip(wanted, rows))


@dataclass(frozen=True)
class Piece:
    """A part of a table: places one after another, and from which to which row; % are shares of all their rows."""

    places: tuple[RowFile | DataSet, ...]
    start: str | None = None
    stop: str | None = None

    @functools.cached_property
    def counts(self) -> list[int]:
        return [place.count() for place in self.places]

    def picked(self) -> range | None:
        """The indices of the rows; None for all rows."""
        if self.start is None and self.stop is None:
            return None
        total = sum(self.counts)
        return range(total)[_bound(self.start, total) : _bound(self.stop, total)]


@dataclass(frozen=True)
class Table:
    """The rows of a file or data set: their number, and the rows themselves. UserError if they cannot be read."""

    name: str
    split: str
    pieces: tuple[Piece, ...]

    def __len__(self) -> int:
        with _readable(self.name, self.split):
            return sum(
                sum(piece.counts) if (picked := piece.picked()) is None else len(picked) for piece in self.pieces
            )

    def rows(self, indices: Collection[int] | None = None) -> Iterator[tuple[str, dict | str]]:
        """("file:line", row) of all rows or of the rows with these indices, in the order of the file.

        Lines are counted from 1. Indices count rows from 0 and skip blank lines. A row that cannot be read is a string,
        which says why.
        """
        with _readable(self.name, self.split):
            first = 0
            for piece in self.pieces:
                picked, wanted = piece.picked(), None
                if indices is not None:
                    count = sum(piece.counts) if picked is None else len(picked)
                    mine = (index - first for index in indices if first <= index < first + count)
                    wanted = frozenset(mine if picked is None else (picked[index] for index in mine))
                    first += count
                elif picked is not None:
                    wanted = frozenset(picked)
                yield from _rows_of(piece, wanted)


def _rows_of(piece: Piece, wanted: frozenset[int] | None) -> Iterator[tuple[str, dict | str]]:
    before = 0
    for i, place in enumerate(piece.places):
        mine = wanted
        if wanted is not None and len(piece.places) > 1:
            mine = frozenset(index - before for index in wanted if before <= index < before + piece.counts[i])
            before += piece.counts[i]
        if mine is None or mine:
            yield from ((f"{place.path}:{number}", row) for number, row in place.rows(mine))


def open_table(name: str, split: str) -> Table:
    """The rows of `KINDS`, of a folder that `save_to_disk` wrote, or of a hub id, alone or as NAME:CONFIG.

    `split` names the split of a folder or data set; a file has none. It may be cut, as in train[:50%] or train[-100:],
    and added up, as in train+test.
    """
    with _readable(name, split):
        return Table(name, split, tuple(_piece(name, part.strip()) for part in split.split("+")))


def _piece(name: str, part: str) -> Piece:
    match = _PIECE.fullmatch(part)
    if match is None:
        raise ValueError(f"split {part!r}: write it as train, train[:50%] or train[100:200]")
    base, start, stop = match.groups()
    return Piece(tuple(_places(name, base or "train")), start, stop)


def _bound(text: str | None, total: int) -> int | None:
    if text is None or not text.endswith("%"):
        return None if text is None else int(text)
    return round(int(text[:-1]) * total / 100)


def _places(name: str, split: str) -> list[RowFile | DataSet]:
    path = Path(name).expanduser()
    if path.is_dir():
        return _in_folder(path, name, split)
    if not path.exists() and any(sign in name for sign in "*?["):
        files = sorted(file for file in glob.glob(str(path), recursive=True) if is_row_file(file))
        if not files:
            raise FileNotFoundError("no file of this pattern")
        return [RowFile(file) for file in files]
    if is_row_file(name):
        return [RowFile(str(path) if name.startswith("~") else name)]
    if path.is_file():
        raise ValueError("the name does not say what kind of file it is")
    return [DataSet(name, _load(name, split))]


def _in_folder(path: Path, name: str, split: str) -> list[RowFile | DataSet]:
    if any((path / marker).is_file() for marker in MARKERS):
        import datasets  # slow to import

        loaded = datasets.load_from_disk(str(path))
        if isinstance(loaded, datasets.DatasetDict):
            if split not in loaded:
                raise ValueError(f"it has the splits {', '.join(loaded)}")
            loaded = loaded[split]
        return [DataSet(name, loaded)]
    card = path / "README.md"
    if card.is_file() and re.search(r"^configs:", card.read_text(encoding="utf-8", errors="replace"), re.MULTILINE):
        return [DataSet(name, _load(str(path), split))]
    files = [file for file in sorted(path.rglob("*")) if _is_visible(file, path) and is_row_file(str(file))]
    splits = {file: _split_of(file.relative_to(path)) for file in files}
    if not any(splits.values()):
        splits = dict.fromkeys(files, "train")
    wanted = next((word for word, others in WORDS.items() if split in others), split)
    chosen = [file for file in files if wanted == splits[file] or _speaks_of(split, file.relative_to(path))]
    if not chosen:
        there = ", ".join(sorted(filter(None, set(splits.values())))) or "no files with rows"
        raise FileNotFoundError(f"the folder has {there}")
    return [RowFile(str(file)) for file in chosen]


def _is_visible(file: Path, folder: Path) -> bool:
    return file.is_file() and not any(part.startswith(".") for part in file.relative_to(folder).parts)


def _speaks_of(word: str, relative: Path) -> bool:
    """Whether the path has this word in it, between signs that are neither letters nor digits."""
    return re.search(rf"(?<![a-z0-9]){re.escape(word.lower())}(?![a-z0-9])", relative.as_posix().lower()) is not None


def _split_of(relative: Path) -> str:
    """The split that the path of a file speaks of, or ""."""
    return next((split for split, words in WORDS.items() if any(_speaks_of(word, relative) for word in words)), "")


def _load(name: str, split: str):
    import datasets

    match = _CONFIG.fullmatch(name)
    path, config = match.groups() if match and not Path(name).exists() else (name, None)
    return datasets.load_dataset(path, config, split=split)


def identity(name: str) -> list:
    """The name, and path, size and time of change of all its files. A name that is not a path has no files."""
    path = Path(name).expanduser()
    files = sorted(path.rglob("*")) if path.is_dir() else [path] if path.is_file() else []
    files = files or [Path(file) for file in sorted(glob.glob(str(path), recursive=True))]
    return [name, *([str(file), os.stat(file).st_size, os.stat(file).st_mtime_ns] for file in files if file.is_file())]


@contextlib.contextmanager
def _readable(name, split) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # three libraries and the network have no common base class
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(
            f"{name} (split {split!r}) cannot be read: give {KINDS}, or the name of a data set ({why})"
        ) from error
