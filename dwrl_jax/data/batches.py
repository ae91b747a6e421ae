"""Make batches from examples, on the host.

A batch is a pure function of (seed, step). No state is kept between calls, so a restart needs no data position, and
every host can make any batch.
"""

import functools
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dwrl_jax.core.errors import UserError
from dwrl_jax.core.types import PreferenceBatch, ThoughtBatch


@dataclass(frozen=True)
class Batches:
    """`batches(step)` is the batch of a step: a pure function of the source, the seed and the step."""

    source: Any
    batch_size: int
    buckets: tuple[int, ...]
    max_thought: int | None
    pad_id: int
    steps_per_epoch: int | None  # None if the source has no end
    order: Callable[[int], np.ndarray] | None  # epoch -> Int[steps, B] indices, -1 for an empty row
    margins: bool = False  # whether batches have the margins of their pairs

    def __call__(self, step) -> tuple[PreferenceBatch, ThoughtBatch | None]:
        """The batch as NumPy arrays, and a ThoughtBatch if the examples have written thoughts."""
        size = self.batch_size
        if self.order is None:
            return assemble(self.source.examples(step * size, (step + 1) * size), self)
        indices = self.order(step // self.steps_per_epoch)[step % self.steps_per_epoch]
        rows = [self.source.examples(i, i + 1)[0] for i in indices[indices >= 0].tolist()]
        return assemble(rows, self)


def make_batches(
    source, *, batch_size, buckets, pad_id, seed=0, shuffle=True, window=16, max_thought=None, margins=False
) -> Batches:
    """Batches of a source. A source is Examples, or any other object with `examples(start, stop)`.

    A source with a length is permuted anew in every epoch. To save padding, the pairs of `window` batches at a time are
    sorted by length and cut into batches, and then these batches are shuffled. Without `shuffle`, as in an evaluation,
    all pairs are sorted by length. A source without a length is read in its own order. L is the smallest of `buckets`,
    in tokens, that holds the batch. UserError if sizes do not fit, or if `margins` is True and a pair has no margin.
    """
    buckets = tuple(buckets)
    if not buckets or buckets[0] < 1 or any(a >= b for a, b in zip(buckets, buckets[1:])):
        raise UserError(f"data.buckets: {buckets} must be positive lengths in ascending order")
    if not hasattr(source, "__len__"):
        return Batches(source, batch_size, buckets, max_thought, pad_id, None, None, margins)
    rows = source.examples(0, len(source))
    if shuffle and batch_size > len(rows):
        raise UserError(f"data.batch_size: {batch_size} is more than the {len(rows)} pairs there are")
    _check_examples(rows, buckets, max_thought, margins)
    lengths = np.array([max(map(len, row.prefix)) for row in rows])
    order = functools.partial(_epoch_order, lengths, batch_size, seed, window if shuffle else None)
    steps = -(-len(rows) // batch_size)
    order = functools.lru_cache(maxsize=2)(order)
    return Batches(source, batch_size, buckets, max_thought, pad_id, steps, order, margins)


def _epoch_order(lengths, batch_size, seed, window, epoch) -> np.ndarray:
    """Int[steps, B]: every index once, and -1 in the empty rows at the end of the last batch."""
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


def _check_examples(examples, buckets, max_thought, margins) -> None:
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
        if margins and (example.pair.margin is None or example.pair.margin < 0):
            raise UserError(
                f"{_where(example)}: margin is {'missing' if example.pair.margin is None else example.pair.margin}; "
                "give every pair one that is not negative, or set objective.bradley_terry to 'regular' "
                "(irpm: objective.strength to 'same')"
            )


def assemble(examples, layout) -> tuple[PreferenceBatch, ThoughtBatch | None]:
    """Pad 1 to B examples to a batch with the sizes of `layout`, a Batches.

    The rows after the examples repeat the first example, and their `valid` is False. UserError if sizes do not fit.
    """
    _check_examples(examples, layout.buckets, layout.max_thought, layout.margins)
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
        margin=np.array([row.pair.margin for row in rows], np.float32) if layout.margins else None,
    )
    if rows[0].thoughts is None:
        return batch, None
    thought, thought_len = _pad([row.thoughts for row in rows], layout.max_thought, layout.pad_id)
    thought, thought_len = thought[:, :, None], thought_len[:, :, None]
    return batch, ThoughtBatch(thought, thought_len, old_logp=np.zeros(thought.shape, np.float32))


def _pad(rows, length, pad_id) -> tuple[np.ndarray, np.ndarray]:
    """B pairs of id lists as Int[B S length], padded at the right, and their lengths as Int[B S]."""
    padded = np.full((len(rows), 2, length), pad_id, np.int32)
    lengths = np.array([[len(ids) for ids in row] for row in rows], np.int32)
    for b, row in enumerate(rows):
        for s, ids in enumerate(row):
            padded[b, s, : len(ids)] = ids
    return padded, lengths


def padding_share(batch) -> float:
    """The share, from 0 to 1, of the prefix positions of a PreferenceBatch without a token of a valid pair."""
    return 1.0 - float(batch.prefix_len[batch.valid].sum()) / batch.prefix.size


def prefetch(batches, start, stop, depth=2):
    """Yield `batches(step)` for start <= step < stop. A thread makes up to `depth` (at least 1) batches ahead.

    An exception in the thread is raised here. The thread ends when the generator is closed.
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
