"""Preference pairs out of files, in the formats of the field; what is malformed is left out, counted and listed."""

import gzip
import json
import math
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import pyarrow.parquet

from dwrl_jax.core.errors import UserError


@dataclass(frozen=True)
class Pair:
    """One comparison: `chosen` and `rejected` are the assistant's answers to the conversation `prompt`."""

    prompt: tuple[dict[str, str], ...]  # {"role", "content"}: [system,] user, assistant, ..., user
    chosen: str
    rejected: str
    margin: float | None = None
    source: str = ""
    where: str = ""  # "file:line", counted from 1
    thoughts: tuple[str, str] | None = None  # written thoughts about (chosen, rejected)
    verdicts: tuple[int, int] | None = None  # right answers about (chosen, rejected): 0 good, 1 bad


@dataclass(frozen=True)
class Skipped:
    """Rows that were left out, as (where, reason)."""

    rows: list[tuple[str, str]] = field(default_factory=list)

    @property
    def counts(self) -> Counter:
        return Counter(reason for _, reason in self.rows)

    def summary(self) -> str:
        reasons = ", ".join(f"{reason} {n}" for reason, n in self.counts.most_common())
        return f"{len(self.rows)} left out ({reasons})" if self.rows else "0 left out"


class _Malformed(Exception):
    """Why a row cannot be used."""


def read_pairs(name, *, split="train", strict=False) -> tuple[list[Pair], Skipped]:
    """Pairs of a .jsonl, .jsonl.gz or .parquet file, or of a `datasets` name or folder (its `split`).

    `chosen` and `rejected` are strings or message lists: answers to the column `prompt`, or whole
    conversations that differ in the last turn only; raw "\\n\\nHuman: ...\\n\\nAssistant: ..." strings too.
    Optional columns: margin, source, thoughts, verdicts. A malformed row is left out and listed; it is a
    UserError with `strict`, as are always a file that cannot be read and one without a usable row.
    """
    pairs, skipped = [], Skipped()
    for where, row in _rows(str(name), split):
        try:
            pairs.append(_parse(row, where, default_source=Path(str(name)).name.split(".")[0]))
        except _Malformed as reason:
            skip(skipped, where, str(reason), strict)
    if not pairs:
        raise UserError(f"{name}: no usable row, {skipped.summary()}; give columns prompt, chosen, rejected")
    return pairs, skipped


def skip(skipped, where, reason, strict) -> None:
    if strict:
        raise UserError(f"{where}: {reason}; mend the row, or leave it out by turning strict off")
    skipped.rows.append((where, reason))


def _rows(name, split):
    """(where, row) of every row; a line that is not a JSON object comes as None."""
    try:
        if name.endswith((".jsonl", ".jsonl.gz")):
            with (gzip.open if name.endswith(".gz") else open)(name, "rb") as file:
                for i, line in enumerate(file, 1):
                    if line.strip():
                        yield f"{name}:{i}", _json_object(line)
            return
        if name.endswith(".parquet"):
            file = pyarrow.parquet.ParquetFile(name)
            rows = (row for batch in file.iter_batches() for row in batch.to_pylist())
        elif any((Path(name) / marker).is_file() for marker in ("state.json", "dataset_dict.json")):
            rows = datasets.load_from_disk(name)
            rows = rows[split] if isinstance(rows, datasets.DatasetDict) else rows
        else:
            rows = datasets.load_dataset(name, split=split)
        yield from ((f"{name}:{i}", row) for i, row in enumerate(rows, 1))
    except Exception as error:  # three libraries and the network: no common parent
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(
            f"{name} (split {split!r}) cannot be read: give a .jsonl, .jsonl.gz or .parquet file, "
            f"or the name of a data set ({why})"
        ) from error


def _json_object(line) -> dict | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _parse(row, where, default_source) -> Pair:
    """The pair in one row; raises _Malformed."""
    if row is None:
        raise _Malformed("not json")
    for key in ("chosen", "rejected"):
        if row.get(key) is None:
            raise _Malformed(f"missing column: {key}")
    prompt = None if row.get("prompt") is None else _turns(row["prompt"], "user")
    if prompt and len(prompt) > 1 and prompt[-1]["role"] == "assistant" and not prompt[-1]["content"].strip():
        prompt = prompt[:-1]  # "...\n\nAssistant:" at the end of a prompt opens the answer
    sides = [_turns(row[key], "assistant") for key in ("chosen", "rejected")]
    chosen, rejected = (_conversation(turns, prompt) for turns in sides)
    if not chosen[-1]["role"] == rejected[-1]["role"] == "assistant":
        raise _Malformed("last turn not assistant")
    if not (chosen[-1]["content"].strip() and rejected[-1]["content"].strip()):
        raise _Malformed("empty final turn")
    if chosen[:-1] != rejected[:-1]:
        raise _Malformed("prompts differ")
    _check_roles(chosen)
    if chosen[-1]["content"].strip() == rejected[-1]["content"].strip():
        raise _Malformed("chosen equals rejected")
    source = row.get("source")
    thoughts = _two(row, "thoughts", lambda text: isinstance(text, str) and text.strip())
    return Pair(
        prompt=tuple(chosen[:-1]),
        chosen=chosen[-1]["content"],
        rejected=rejected[-1]["content"],
        margin=_margin(row.get("margin")),
        source=source if isinstance(source, str) else default_source,
        where=where,
        # outer blanks could melt into the last token of the prompt
        thoughts=thoughts and (thoughts[0].strip(), thoughts[1].strip()),
        verdicts=_two(row, "verdicts", lambda answer: type(answer) is int and answer in (0, 1)),
    )


def _turns(value, role) -> list[dict[str, str]]:
    """Messages of a column: a string is one turn of `role`, or a raw "\\n\\nHuman: ..." dialogue."""
    if isinstance(value, str) and value.startswith("\n\nHuman:"):
        parts = re.split(r"\n\n(Human|Assistant):", value)[1:]
        names = {"Human": "user", "Assistant": "assistant"}
        return [{"role": names[n], "content": text.strip()} for n, text in zip(parts[::2], parts[1::2])]
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, list) or not value or not all(isinstance(turn, dict) for turn in value):
        raise _Malformed("not a string or message list")
    if not all(isinstance(turn.get(key), str) for turn in value for key in ("role", "content")):
        raise _Malformed("not a string or message list")
    return [{"role": turn["role"], "content": turn["content"]} for turn in value]


def _conversation(turns, prompt) -> list[dict[str, str]]:
    """The whole conversation of a side, whether its column holds all of it or the answer alone."""
    if turns[0]["role"] == "assistant":
        if prompt is None:
            raise _Malformed("missing column: prompt")
        return prompt + turns
    # Some sets have the last question as `prompt` beside whole conversations that open with a system turn.
    if prompt is not None and turns[:-1][-len(prompt) :] != prompt:
        raise _Malformed("prompts differ")
    return turns


def _check_roles(conversation) -> None:
    """[system,] user, assistant, ..., user, assistant, none of them empty: what every chat template takes."""
    if not all(turn["content"].strip() for turn in conversation):
        raise _Malformed("empty prompt turn")
    roles = [turn["role"] for turn in conversation]
    if unknown := set(roles) - {"system", "user", "assistant"}:
        raise _Malformed(f"unknown role: {min(unknown)[:20]}")
    if any(a == b for a, b in zip(roles, roles[1:])):
        raise _Malformed("consecutive same role")
    body = roles[1:] if roles[0] == "system" else roles
    if "system" in body:
        raise _Malformed("system turn not first")
    if body[0] != "user":
        raise _Malformed("first turn not user")


def _margin(value) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _Malformed("bad margin")
    return float(value)


def _two(row, key, fits) -> tuple | None:
    """An optional column with one value for each side."""
    value = row.get(key)
    if value is not None and not (isinstance(value, list) and len(value) == 2 and all(map(fits, value))):
        raise _Malformed(f"bad {key}")
    return None if value is None else tuple(value)
