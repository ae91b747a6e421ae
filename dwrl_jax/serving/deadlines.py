"""Waits of equal length that share a timer: a timer for each request costs as much as to read one."""

import asyncio
from collections import deque
from dataclasses import dataclass, field


@dataclass(eq=False)
class Deadlines:
    """Waits that end after `seconds`. They end in the order in which they began, so one timer is enough."""

    seconds: float
    begun: deque[tuple[float, asyncio.Future]] = field(default_factory=deque)
    timer: asyncio.TimerHandle | None = None

    async def wait(self, future: asyncio.Future):
        """The result of a future; TimeoutError, in the future too, if it has none after `seconds`."""
        while self.begun and self.begun[0][1].done():
            self.begun.popleft()
        self.begun.append((future.get_loop().time() + self.seconds, future))
        if self.timer is None:
            self._set(future.get_loop())
        return await future

    def _set(self, loop: asyncio.AbstractEventLoop) -> None:
        self.timer = loop.call_at(self.begun[0][0], self._end, loop)

    def _end(self, loop: asyncio.AbstractEventLoop) -> None:
        self.timer, now = None, loop.time()
        while self.begun and (self.begun[0][1].done() or self.begun[0][0] <= now):
            future = self.begun.popleft()[1]
            if not future.done():
                future.set_exception(TimeoutError())
        if self.begun:
            self._set(loop)
