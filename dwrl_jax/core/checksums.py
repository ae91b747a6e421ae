"""Checksums of all files of a folder. They show later whether the folder is still what was written."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dwrl_jax.core import files
from dwrl_jax.core.errors import UserError

NAME, FORMAT = "checksums.json", 1


def write(folder: Path, leave_out: tuple[str, ...] = ()) -> None:
    """Read all files of a folder back and write their sizes and SHA-256 into it. `leave_out` are names of files."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in (NAME, *leave_out)]
    with ThreadPoolExecutor() as threads:  # hashing releases the interpreter
        sums = list(threads.map(_sum, paths))
    names = [path.relative_to(folder).as_posix() for path in paths]
    files.write_json(folder / NAME, {"format": FORMAT, "files": dict(zip(names, sums))})


def damage(folder: Path, part: str = "") -> str | None:
    """How a folder differs from what `write` saw, in words; None if it does not, or if it has no checksums.

    Only files whose names begin with `part` are read. UserError for checksums of a later version.
    """
    if not (folder / NAME).exists():
        return None
    try:
        kept = files.read_json(folder / NAME)
        sums = {name: tuple(given) for name, given in kept["files"].items() if name.startswith(part)}
    except (UserError, KeyError, AttributeError, TypeError):
        return f"{NAME} is not readable"
    if kept.get("format") != FORMAT:
        raise UserError(f"{folder / NAME}: written by a newer dwrl_jax; upgrade to read it")
    lengths = {name: path.stat().st_size if (path := folder / name).is_file() else None for name in sums}
    for name, length in lengths.items():
        if length is None:
            return f"{name} is missing"
        if length != sums[name][0]:
            return f"{name} has {length} bytes, not {sums[name][0]}"
    with ThreadPoolExecutor() as threads:
        found = threads.map(lambda name: _sum(folder / name), sums)
        return next((f"{name} was changed" for name, other in zip(sums, found) if tuple(other) != sums[name]), None)


def _sum(path: Path) -> list[int | str]:
    """The size of a file in bytes and its SHA-256. OSError if it cannot be read."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return [file.tell(), digest]
