"""One batcher behind all protocols: it gathers the questions of single requests into the sampler's batches.

A question waits for others of the same padded length and the same votes, until they fill a batch or `wait` seconds have
passed. Threads read rows into tokens and ask the judge, one more of them than batches on the device, so that one reads
while the others wait. They wake the event loop once for each batch. A row's scores do not depend on the rows beside it
(`judge.score`).
"""

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from dwrl_jax.dialogue.tokenizers import one_line
from dwrl_jax.judge import votes as voting
from dwrl_jax.judge.batching import Answers, joined
from dwrl_jax.judge.load import LoadedJudge
from dwrl_jax.judge.rows import Question
from dwrl_jax.judge.score import Prepared, ask_batch, finished, longest_prefix, prepare
from dwrl_jax.judge.votes import Adaptive
from dwrl_jax.serving.failures import Refused
from dwrl_jax.serving.metrics import Metrics
from dwrl_jax.serving.settings import ServeSettings, parts

STOPPING = "the server stops"
PATIENCE = 20  # so much longer questions wait for others while there are rows to read
RETRY = 5  # seconds, where nothing better is known


@dataclass(eq=False)
class Row:
    """A row that waits for answers. Its `steps` are (number of votes, whether a round of votes ends with them).

    `refusal` makes an error of the reason why the row cannot be scored. `left` is True if nobody waits for it any more.
    """

    content: dict
    steps: list[tuple[int, bool]]
    rule: Adaptive | None
    refusal: Callable[[str], Exception]
    future: asyncio.Future
    prepared: Prepared | None = None
    left: bool = False
    answers: Answers = field(default_factory=dict)
    step: int = 0
    missing: int = 0

    @property
    def asked(self) -> int:
        """Votes before this step."""
        return sum(size for size, _ in self.steps[: self.step])


Key = tuple[int, int, int]  # padded length, number of votes, number of the first vote


@dataclass(eq=False)
class Batcher:
    """The rows that wait, and the threads that read and ask. `close` ends the threads.

    Everything but the model and the tokenizer is changed under the lock `changed`.
    """

    loaded: LoadedJudge
    settings: ServeSettings
    metrics: Metrics
    changed: threading.Condition = field(default_factory=threading.Condition)
    reading: threading.Lock = field(default_factory=threading.Lock)  # tokenizers are not for several threads at once
    incoming: deque[Row] = field(default_factory=deque)  # rows that are not read yet
    being_read: int = 0  # rows between `incoming` and `waiting`; each has its place in the queue
    waiting: dict[Key, deque[tuple[float, Row, Question]]] = field(default_factory=dict)
    rows: set[Row] = field(default_factory=set)
    programs: set[tuple[int, int]] = field(default_factory=set)  # compiled ones: padded length, number of votes
    compiling: set[tuple[int, int]] = field(default_factory=set)
    seconds: float = 0.0  # of a question, lately
    at_work: int = 0  # batches on the device
    warm: bool = False
    failure: str = ""
    closed: bool = False

    def start(self) -> None:
        threading.Thread(target=self._work, name="batcher", daemon=True).start()

    def submit(self, content: dict, votes: int | Adaptive, refusal: Callable[[str], Exception]) -> Row:
        """Take a row, whose `future` gets the scored row, or the reason why there is none. Called in the event loop."""
        row = Row(content, *self._steps(votes), refusal, asyncio.get_running_loop().create_future())
        with self.changed:
            if self.closed:
                raise Refused(503, STOPPING, retry_after=RETRY)
            self._check_room(1)
            self.rows.add(row)
            self.incoming.append(row)
            self.changed.notify()
        row.future.add_done_callback(lambda _: self._forget(row))
        return row

    def close(self) -> None:
        """Refuse all that is not answered yet, and end the threads after what they do now."""
        with self.changed:
            self.closed = True
            left = list(self.rows)
            self.waiting.clear()
            self.changed.notify_all()
        self._tell([(row, Refused(503, STOPPING, retry_after=RETRY)) for row in left])

    def _tell(self, outcomes: list[tuple[Row, dict | Exception]]) -> None:
        """Give rows their outcomes, in the event loop and with a single call to it."""
        if outcomes:
            outcomes[0][0].future.get_loop().call_soon_threadsafe(_settle, outcomes)

    def _read(self, row: Row) -> None:
        """A row into questions, which then wait."""
        error = None
        try:
            if not row.left:
                row.prepared = prepare(self.loaded, row.content)
                if row.prepared.error is not None:
                    error = row.refusal(row.prepared.error)
        except Exception as failed:
            error = failed
        with self.changed:
            self.being_read -= 1
            if error is None and not self.closed and not row.left:
                try:
                    self._check_room(len(row.prepared.questions))
                    self._queue(row)
                except Refused as refused:
                    error = refused
        if error is not None:
            self._tell([(row, error)])

    def _check_room(self, more: int) -> None:
        """Refused if the queue does not have room for so many questions."""
        most, waiting = self.settings.queue, self._count()
        if more > most:
            raise Refused(413, f"{more} questions; the queue holds {most}")
        if waiting + len(self.incoming) + self.being_read + more > most:
            seconds = max(1, math.ceil(waiting * self.seconds))
            raise Refused(429, f"{waiting} questions wait already", retry_after=seconds)

    def _steps(self, votes: int | Adaptive) -> tuple[list[tuple[int, bool]], Adaptive | None]:
        if self.loaded.card.thoughts == "none":
            return [(1, True)], None
        rounds = votes.asked if isinstance(votes, Adaptive) else (votes,)
        steps = []
        for size in rounds:
            made = parts(size, self.settings.sizes)
            if made is None:
                sizes = ", ".join(map(str, self.settings.sizes))
                raise Refused(422, f"{size} votes cannot be put together from programs of {sizes} votes", "votes")
            steps += [(part, place == len(made) - 1) for place, part in enumerate(made)]
        return steps, votes if isinstance(votes, Adaptive) else None

    def _count(self) -> int:
        return sum(map(len, self.waiting.values()))

    def _queue(self, row: Row) -> None:
        row.missing, now = len(row.prepared.questions), time.monotonic()
        for length, question in row.prepared.questions:
            key = length, row.steps[row.step][0], row.asked
            self.waiting.setdefault(key, deque()).append((now, row, question))
        self._show()

    def _forget(self, row: Row) -> None:
        """A row that is finished, or whose caller has left."""
        with self.changed:
            row.left = True
            self.rows.discard(row)
            if row.missing:
                for key, queued in list(self.waiting.items()):
                    kept = deque(entry for entry in queued if entry[1] is not row)
                    self.waiting[key] = kept
                    if not kept:
                        del self.waiting[key]
            self._show()

    def _show(self) -> None:
        self.metrics.waiting.set(self._count())
        self.metrics.open.set(len(self.rows))

    def _work(self) -> None:
        try:
            if not self.warm:
                self._warm_up()
                self.warm = True
                for _ in range(self.settings.in_flight):  # with this one a thread more than batches on the device
                    self.start()
            while (taken := self._take()) is not None:
                self._ask(*taken)
        except Exception as error:  # /ready and /health say so, and requests are refused
            self.failure = one_line(error)
            self.close()

    def _warm_up(self) -> None:
        card, limit = self.loaded.card, longest_prefix(self.loaded)
        for length in sorted({min(bucket, limit) for bucket in card.buckets}):
            for size in self.settings.sizes if card.thoughts != "none" else (1,):
                if self.closed:
                    return
                self._compile(length, size)

    def _compile(self, length: int, size: int) -> None:
        """Run a program once, on a prefix of a single token."""
        nothing = Question((0,), np.array([self.loaded.judge.pad], np.int32))
        ask_batch(self.loaded, [nothing], length, batch_size=self.settings.batch_size, votes=size, first=0, seed=0)
        with self.changed:
            self.programs.add((length, size))
            self.compiling.discard((length, size))
            self.changed.notify_all()

    def _compile_beside(self, length: int, size: int) -> None:
        """Compile in a thread of its own, so that other questions do not wait."""
        try:
            self._compile(length, size)
        except Exception as error:
            with self.changed:
                self.compiling.discard((length, size))
                lost = [self.waiting.pop(key) for key in list(self.waiting) if key[:2] == (length, size)]
            self._tell([(row, error) for queued in lost for _, row, _ in queued])

    def _take(self) -> tuple[Key, list[tuple[float, Row, Question]]] | None:
        """The next batch; None at the end. Rows that came meanwhile are read while no batch is full."""
        while True:
            with self.changed:
                if self.closed:
                    return None
                key, pause = self._due()
                if self.at_work == self.settings.in_flight:
                    key, pause = None, None  # until one of them ends
                if key is not None:
                    self.at_work += 1
                    queued = self.waiting[key]
                    batch = [queued.popleft() for _ in range(min(self.settings.batch_size, len(queued)))]
                    if not queued:
                        del self.waiting[key]
                    return key, batch
                if not self.incoming:
                    self.changed.wait(pause)
                    continue
                row = self.incoming.popleft()
                self.being_read += 1
            with self.reading:
                self._read(row)

    def _due(self) -> tuple[Key | None, float | None]:
        """The batch whose first question has waited longest, once it is full or has waited long enough.

        If there is none, the seconds until there is. Questions wait longer while rows are to be read.
        """
        now, ready = time.monotonic(), []
        for key, queued in self.waiting.items():
            if key[:2] in self.programs:
                ready.append((queued[0][0], key))
            elif key[:2] not in self.compiling:
                self.compiling.add(key[:2])
                threading.Thread(target=self._compile_beside, args=key[:2], daemon=True).start()
        wait = self.settings.wait * (PATIENCE if self.incoming else 1)
        full = self.settings.batch_size
        due = [(since, key) for since, key in ready if len(self.waiting[key]) >= full or now - since >= wait]
        return min(due)[1] if due else None, min(ready)[0] + wait - now if ready else None

    def _ask(self, key: Key, batch: list[tuple[float, Row, Question]]) -> None:
        length, size, first = key
        began = time.perf_counter()
        try:
            answers = ask_batch(
                self.loaded,
                [question for _, _, question in batch],
                length,
                batch_size=self.settings.batch_size,
                votes=size,
                first=first,
                seed=self.settings.seed,
            )
        except Exception as error:  # the device's errors have no common type
            self._tell([(row, error) for _, row, _ in batch])
            return
        finally:
            with self.changed:
                self.at_work -= 1
                self.changed.notify()
        took = time.perf_counter() - began
        complete = []
        with self.changed:
            self._count_batch(batch, answers, took)
            for (_, row, question), answer in zip(batch, answers):
                row.answers[question.responses] = joined(row.answers.get(question.responses), answer)
                row.missing -= 1
                if not row.missing:
                    complete.append(row)
        outcomes = [(row, self._advanced(row)) for row in complete]
        self._tell([(row, outcome) for row, outcome in outcomes if outcome is not None])

    def _count_batch(self, batch: list, answers: list, took: float) -> None:
        each = took / len(batch)
        self.seconds = 0.9 * self.seconds + 0.1 * each if self.seconds else each
        self.metrics.batch.observe(len(batch))
        self.metrics.device.observe(took)
        self.metrics.count_answers(answers)
        self.metrics.tokens.labels("prefix").inc(sum(len(question.prefix) for _, _, question in batch))

    def _advanced(self, row: Row) -> dict | Exception | None:
        """The scored row, or why there is none. None if the row's next votes were queued."""
        try:
            values = {which: answer.values for which, answer in row.answers.items()}
            ended = row.steps[row.step][1]
            if row.step + 1 < len(row.steps) and not (ended and row.rule and voting.settled(row.rule, values)):
                with self.changed:
                    row.step += 1
                    if not self.closed and not row.left:
                        self._queue(row)
                        self.changed.notify()
                return None
            scored = finished(self.loaded, row.prepared, row.answers, False)
            return Refused(500, scored["error"]) if "error" in scored else scored
        except Exception as error:
            return error


def _settle(outcomes: list[tuple[Row, dict | Exception]]) -> None:
    for row, outcome in outcomes:
        if row.future.done():
            continue
        if isinstance(outcome, Exception):
            row.future.set_exception(outcome)
        else:
            row.future.set_result(outcome)
