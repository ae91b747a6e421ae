"""Pair files to batches, on the host: read and check rows, tokenise, and address batches by their step.

A batch is a pure function of (seed, step): nothing is remembered between calls, so a restart needs no data
position, and every host can make any batch.
"""

import functools
import gzip
import json
import math
import queue
import re
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet

from dwrl_jax.dialogue import encode_thoughts, fit_prefixes, has_control_token, prefix_ids_batch
from dwrl_jax.errors import UserError
from dwrl_jax.types import PreferenceBatch, ThoughtBatch

_CHUNK = 2048  # pairs that are rendered and tokenised by one call


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
            _skip(skipped, where, str(reason), strict)
    if not pairs:
        raise UserError(f"{name}: no usable row, {skipped.summary()}; give columns prompt, chosen, rejected")
    return pairs, skipped


def _skip(skipped, where, reason, strict) -> None:
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


@dataclass(frozen=True)
class Example:
    """A tokenised pair; sides in the order (chosen, rejected)."""

    pair_id: int
    prefix: tuple[np.ndarray, np.ndarray]  # int32 ids up to the place where the thought begins
    answer: tuple[int, int]  # target tokens of the second turn
    thoughts: tuple[list[int], list[int]] | None = None  # written thoughts, through the end token
    pair: Pair | None = None


@dataclass(frozen=True)
class Examples:
    """A finite source of examples. One without an end has the method `examples` and no length."""

    rows: tuple[Example, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def examples(self, start, stop) -> list[Example]:
        return list(self.rows[start:stop])


@dataclass(frozen=True)
class FitReport:
    """What tokenising did to the pairs."""

    kept: int
    shortened: int  # of those kept
    turns_dropped: int  # from the shortened ones together
    skipped: Skipped  # control tokens, and too long even in the shortest form

    def summary(self) -> str:
        lost = f"{self.shortened} of them without their oldest turns, {self.turns_dropped} in all"
        return f"{self.kept} pairs kept ({lost}), {self.skipped.summary()}"


def tokenise(pairs, dialogue, max_length, *, strict=False) -> tuple[Examples, FitReport]:
    """Examples with prefixes of at most `max_length` tokens; `pair_id` is the index in `pairs`.

    The answer target is the good answer for both sides unless the pair has verdicts. A pair that does not
    fit is left out, or a UserError with `strict`; nothing left is always one.
    """
    rows, drops, skipped = [], [], Skipped()
    for start in range(0, len(pairs), _CHUNK):
        clean = []
        for pair_id, pair in enumerate(pairs[start : start + _CHUNK], start):
            if any(has_control_token(dialogue, text) for text in _contents(pair)):
                _skip(skipped, pair.where, "control token in text", strict)
            else:
                clean.append((pair_id, pair))
        flat = prefix_ids_batch(dialogue, [(p.prompt, y) for _, p in clean for y in (p.chosen, p.rejected)])
        written = iter(encode_thoughts(dialogue, [t for _, p in clean for t in p.thoughts or ()]))
        for (pair_id, pair), chosen, rejected in zip(clean, flat[::2], flat[1::2]):
            thoughts = (next(written), next(written)) if pair.thoughts else None
            fitted = (chosen, rejected, 0)
            if max(len(chosen), len(rejected)) > max_length:
                fitted = fit_prefixes(dialogue, pair.prompt, (pair.chosen, pair.rejected), max_length)
            if fitted is None:
                _skip(skipped, pair.where, "too long", strict)
                continue
            prefix = tuple(np.asarray(ids, np.int32) for ids in fitted[:2])
            answer = tuple(dialogue.answer_ids[verdict] for verdict in pair.verdicts or (0, 0))
            rows.append(Example(pair_id, prefix, answer, thoughts, pair))
            drops.append(fitted[2])
    if not rows:
        raise UserError(f"no pair is left, {skipped.summary()}: raise data.buckets ({max_length} tokens)?")
    report = FitReport(len(rows), sum(d > 0 for d in drops), sum(drops), skipped)
    return Examples(tuple(rows)), report


def _contents(pair) -> list[str]:
    return [*(turn["content"] for turn in pair.prompt), pair.chosen, pair.rejected, *(pair.thoughts or ())]


@dataclass(frozen=True)
class Batches:
    """`batches(step)` is the batch of that step: a pure function of the source, the seed and the step."""

    source: Any
    batch_size: int
    buckets: tuple[int, ...]
    max_thought: int | None
    pad_id: int
    steps_per_epoch: int | None  # None where the source has no end
    order: Callable[[int], np.ndarray] | None  # epoch -> Int[steps, B] indices, -1 where there is none

    def __call__(self, step) -> tuple[PreferenceBatch, ThoughtBatch | None]:
        """Numpy arrays; a ThoughtBatch where the examples have written thoughts."""
        size = self.batch_size
        if self.order is None:
            return assemble(self.source.examples(step * size, (step + 1) * size), self)
        indices = self.order(step // self.steps_per_epoch)[step % self.steps_per_epoch]
        found = [self.source.examples(i, i + 1)[0] for i in indices[indices >= 0].tolist()]
        return assemble(found, self)


def make_batches(source, *, batch_size, buckets, pad_id, seed=0, shuffle=True, window=16, max_thought=None) -> Batches:
    """Batches of a source: Examples, or anything else with `examples(start, stop)`.

    A finite source is permuted anew in every epoch; `window` batches at a time are sorted by length, cut, and
    shuffled as batches, so that little is padding. Without `shuffle` the order is by length, for evaluation;
    `pair_id` says who is who. A source without a length is read in its own order. L is the smallest of
    `buckets` that holds a batch. UserError when sizes do not fit.
    """
    buckets = tuple(buckets)
    if not buckets or buckets[0] < 1 or any(a >= b for a, b in zip(buckets, buckets[1:])):
        raise UserError(f"data.buckets: {buckets} must be positive lengths in ascending order")
    if not hasattr(source, "__len__"):
        return Batches(source, batch_size, buckets, max_thought, pad_id, None, None)
    rows = source.examples(0, len(source))
    if shuffle and batch_size > len(rows):
        raise UserError(f"data.batch_size: {batch_size} is more than the {len(rows)} pairs there are")
    _check_examples(rows, buckets, max_thought)
    lengths = np.array([max(map(len, row.prefix)) for row in rows])
    order = functools.partial(_epoch_order, lengths, batch_size, seed, window if shuffle else None)
    steps = -(-len(rows) // batch_size)
    order = functools.lru_cache(maxsize=2)(order)
    return Batches(source, batch_size, buckets, max_thought, pad_id, steps, order)


def _epoch_order(lengths, batch_size, seed, window, epoch) -> np.ndarray:
    """Int[steps, B]: every index once, -1 at the end of the last batch where it is not full."""
    if window is None:
        perm = np.argsort(lengths, kind="stable")
    else:
        rng = np.random.default_rng((seed, epoch))
        perm = rng.permutation(len(lengths))
        full = len(perm) - len(perm) % batch_size
        for start in range(0, full, window * batch_size):
            chunk = perm[start : min(start + window * batch_size, full)]
            chunk = chunk[np.argsort(lengths[chunk], kind="stable")].reshape(-1, batch_size)
            perm[start : start + chunk.size] = rng.permutation(chunk).reshape(-1)
    return np.pad(perm, (0, -len(perm) % batch_size), constant_values=-1).reshape(-1, batch_size)


def _where(example) -> str:
    return example.pair.where if example.pair else f"pair {example.pair_id}"


def _check_examples(examples, buckets, max_thought) -> None:
    bare = [example for example in examples if example.thoughts is None]
    if bare and len(bare) < len(examples):
        raise UserError(f"{_where(bare[0])}: no thoughts, but other rows have them; give them to all or none")
    for example in examples:
        longest = max(map(len, example.prefix))
        if longest > buckets[-1]:
            raise UserError(f"data.buckets: {buckets[-1]} is the largest, {_where(example)} has {longest} tokens")
        longest = max(map(len, example.thoughts or ((),)))
        if longest > (max_thought or 0):
            raise UserError(f"sampler.max_thought: {max_thought}, {_where(example)} has {longest} tokens")


def assemble(examples, layout) -> tuple[PreferenceBatch, ThoughtBatch | None]:
    """Pad 1 to B examples to a batch of `layout`, a Batches; rows past them repeat the first, not `valid`."""
    _check_examples(examples, layout.buckets, layout.max_thought)
    rows = examples + examples[:1] * (layout.batch_size - len(examples))
    longest = max(len(ids) for row in rows for ids in row.prefix)
    length = next(bucket for bucket in layout.buckets if bucket >= longest)
    prefix, prefix_len = _pad([row.prefix for row in rows], length, layout.pad_id)
    batch = PreferenceBatch(
        prefix=prefix,
        prefix_len=prefix_len,
        answer=np.array([row.answer for row in rows], np.int32),
        valid=np.arange(len(rows)) < len(examples),
        pair_id=np.array([row.pair_id for row in rows], np.int32),
    )
    if rows[0].thoughts is None:
        return batch, None
    thought, thought_len = _pad([row.thoughts for row in rows], layout.max_thought, layout.pad_id)
    thought, thought_len = thought[:, :, None], thought_len[:, :, None]
    return batch, ThoughtBatch(thought, thought_len, old_logp=np.zeros(thought.shape, np.float32))


def _pad(rows, length, pad_id) -> tuple[np.ndarray, np.ndarray]:
    """Int[B S length] and Int[B S] of B pairs of id lists."""
    padded = np.full((len(rows), 2, length), pad_id, np.int32)
    lengths = np.array([[len(ids) for ids in row] for row in rows], np.int32)
    for b, row in enumerate(rows):
        for s, ids in enumerate(row):
            padded[b, s, : len(ids)] = ids
    return padded, lengths


def padding_share(batch) -> float:
    """Share of the prefix positions of a PreferenceBatch that hold no token of a valid pair."""
    return 1.0 - float(batch.prefix_len[batch.valid].sum()) / batch.prefix.size


def prefetch(batches, start, stop, depth=2):
    """Yield `batches(step)` for start <= step < stop, made up to `depth` (at least 1) ahead by one thread.

    An exception in the thread is raised here; the thread ends when the generator is closed.
    """
    ready, closed = queue.Queue(maxsize=depth), threading.Event()

    def offer(item):
        while not closed.is_set():
            try:
                return ready.put(item, timeout=0.05)
            except queue.Full:
                continue

    def make():
        for step in range(start, stop):
            try:
                item = (batches(step), None)
            except BaseException as error:
                item = (None, error)
            offer(item)
            if item[1] is not None or closed.is_set():
                return

    thread = threading.Thread(target=make, name="prefetch", daemon=True)
    thread.start()
    try:
        for _ in range(start, stop):
            batch, error = ready.get()
            if error is not None:
                raise error
            yield batch
    finally:
        closed.set()
        thread.join()
