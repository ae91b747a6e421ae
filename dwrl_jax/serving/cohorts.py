"""Responses to the same conversation that arrive one by one and are judged together."""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field


@dataclass(eq=False)
class Cohort:
    """`entries` are the responses of each caller and its future. `begin` ends the waiting, and `timer` calls it."""

    begin: Callable[[], None]
    entries: list[tuple[Sequence[str], asyncio.Future]] = field(default_factory=list)
    timer: asyncio.TimerHandle | None = None

    @property
    def size(self) -> int:
        return sum(len(responses) for responses, _ in self.entries)


@dataclass
class Cohorts:
    """The cohorts that are not complete, by conversation. None waits longer than `wait` seconds."""

    wait: float
    open: dict[str, Cohort] = field(default_factory=dict)
    running: set[asyncio.Task] = field(default_factory=set)

    async def join(self, key: str, responses: Sequence[str], size: int, ask: Callable[[list[str]], Awaitable]) -> tuple:
        """`ask` of all responses of the cohort, and the place of the caller's first response among them.

        The cohort is asked about as soon as it has `size` responses, or with those that it has when its time is over.
        A caller that leaves takes its responses along.
        """
        loop = asyncio.get_running_loop()
        cohort = self.open.get(key)
        if cohort is None:
            cohort = self.open[key] = Cohort(functools.partial(self._begin, key, ask))
            cohort.timer = loop.call_later(self.wait, cohort.begin)
        entry = responses, loop.create_future()
        cohort.entries.append(entry)
        if cohort.size >= size:
            cohort.begin()
        try:
            return await entry[1]
        except asyncio.CancelledError:
            if self.open.get(key) is cohort:
                cohort.entries.remove(entry)
                if not cohort.entries:
                    cohort.timer.cancel()
                    del self.open[key]
            raise

    def finish(self) -> None:
        """Ask about all cohorts with the responses that they have."""
        for begin in [cohort.begin for cohort in self.open.values()]:
            begin()

    def _begin(self, key: str, ask: Callable[[list[str]], Awaitable]) -> None:
        cohort = self.open.pop(key)
        cohort.timer.cancel()
        task = asyncio.ensure_future(self._tell(cohort, ask))
        self.running.add(task)
        task.add_done_callback(self.running.discard)

    async def _tell(self, cohort: Cohort, ask: Callable[[list[str]], Awaitable]) -> None:
        together = [response for responses, _ in cohort.entries for response in responses]
        try:
            result, error = await ask(together), None
        except Exception as failure:
            result, error = None, failure
        place = 0
        for responses, future in cohort.entries:
            if not future.done():
                if error is None:
                    future.set_result((result, place))
                else:
                    future.set_exception(error)
            place += len(responses)
