"""Examples in a file. A run that goes on then neither reads nor renders its pairs again."""

import dataclasses
import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from dwrl_jax.core import files
from dwrl_jax.data.examples import Example, Examples
from dwrl_jax.data.pairs import Pair

FORM = 2  # raise it when the same pairs and texts give other tokens, or when the layout of the file changes


def key_of(*parts: Any) -> str:
    """A hash of everything that determines the tokens."""
    return hashlib.sha256(json.dumps([FORM, *parts]).encode()).hexdigest()


def write(path: Path, key: str, examples: Examples, note: str) -> None:
    """Write a whole file: the examples, their pairs, and a note about them."""
    rows = examples.rows
    pairs = [{field.name: getattr(row.pair, field.name) for field in dataclasses.fields(Pair)} for row in rows]
    prefix, prefix_len = _flat([row.prefix for row in rows])
    thought, thought_len = _flat([row.thoughts or ((), ()) for row in rows])
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.whole(path, binary=True) as file:
        np.savez(
            file,
            key=np.array(key),
            note=np.array(note),
            pair_id=np.array([row.pair_id for row in rows], np.int64),
            answer=np.array([row.answer for row in rows], np.int32),
            prefix=prefix,
            prefix_len=prefix_len,
            thought=thought,  # length 0 means no thought, because a written thought has an end token
            thought_len=thought_len,
            pairs=np.frombuffer("\n".join(map(json.dumps, pairs)).encode(), np.uint8),
        )


def read(path: Path, key: str | None = None) -> tuple[Examples, str] | None:
    """The examples and the note that `write` wrote. None if the file cannot be read or has another key."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            if key is not None and str(kept["key"]) != key:
                return None
            arrays = {name: kept[name] for name in kept.files}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    pairs = [_pair(json.loads(line)) for line in arrays["pairs"].tobytes().decode().split("\n")]
    prefixes = _cut(arrays["prefix"], arrays["prefix_len"])
    thoughts = [
        tuple(ids.tolist() for ids in both) if len(both[0]) else None
        for both in _cut(arrays["thought"], arrays["thought_len"])
    ]
    columns = (arrays["pair_id"].tolist(), prefixes, map(tuple, arrays["answer"].tolist()), thoughts, pairs)
    return Examples(tuple(Example(*row) for row in zip(*columns, strict=True))), str(arrays["note"])


def _flat(rows) -> tuple[np.ndarray, np.ndarray]:
    """All ids of N pairs of id lists, one after another, and the lengths of the lists [N 2]."""
    lengths = np.array([[len(ids) for ids in row] for row in rows], np.int32)
    return np.concatenate([np.asarray(ids, np.int32) for row in rows for ids in row]), lengths


def _cut(ids, lengths) -> list[tuple[np.ndarray, np.ndarray]]:
    ends = np.cumsum(lengths.reshape(-1)).tolist()
    parts = [ids[start:end] for start, end in zip([0, *ends], ends)]
    return list(zip(parts[::2], parts[1::2]))


def _pair(row) -> Pair:
    tuples = {name: row[name] and tuple(row[name]) for name in ("prompt", "thoughts", "verdicts")}
    return Pair(**row | tuples)
