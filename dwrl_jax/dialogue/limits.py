"""Limits for a chat template, which is a program from somebody else.

transformers runs it in jinja's sandbox, where it reaches no file, no module and no attribute of the interpreter. It may
still loop for ever. So one thread watches all threads that render, and stops a template that takes too much of its
thread's own time, or of memory. Only between two steps of the template can it be stopped. Products and powers are the
steps that could take hours each, so a template may only multiply by a small number that it says itself. Without Linux's
clocks of threads nothing is watched.
"""

import ctypes
import functools
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import jinja2

from dwrl_jax.core.errors import UserError

SECONDS, SECONDS_EACH = 10.0, 0.1  # of a thread's own time, for all conversations and for each more
MEMORY = 2 << 30  # bytes by which the process may grow while a template is at work
SLOW = 0.05  # of the time, before which nobody looks at the memory: other threads allocate too
FACTOR = 1000  # by which a template may multiply
PAGE = os.sysconf("SC_PAGE_SIZE")
EVERY = 0.1  # seconds between two looks


class TooMuch(BaseException):
    """Raised inside a thread that renders, once: whoever catches exceptions in between does not catch this one."""


@dataclass(frozen=True)
class _Work:
    clock: int  # of the thread's own time
    begun: float
    seconds: float
    memory: int

    def too_much(self) -> bool:
        try:
            spent = time.clock_gettime(self.clock) - self.begun
        except OSError:  # the thread has ended meanwhile
            return False
        return spent > self.seconds or (spent > SLOW * self.seconds and _resident() - self.memory > MEMORY)


_at_work: dict[int, _Work] = {}  # by thread
_deciding = threading.Lock()
_watchers: list[threading.Thread] = []  # at most one


def limited(render: Callable, conversations: int = 1):
    """The result of `render()`, which renders so many conversations. UserError if that takes too much."""
    if sys.platform != "linux":
        return render()
    seconds = SECONDS + SECONDS_EACH * conversations
    try:
        return _watched(render, seconds)
    except (TooMuch, MemoryError):
        raise UserError(
            f"the chat template is not usable: it took more than {seconds:.0f} s or {MEMORY >> 30} GiB; "
            "look at the template, it may never end"
        ) from None


def _watched(render: Callable, seconds: float):
    thread = threading.get_ident()
    clock = time.pthread_getcpuclockid(thread)
    work = _Work(clock, time.clock_gettime(clock), seconds, _resident())
    with _deciding:
        _at_work[thread] = work
        if not _watchers:
            _watchers.append(threading.Thread(target=_watch, name="limits of chat templates", daemon=True))
            _watchers[0].start()
    try:
        return render()
    finally:
        with _deciding:
            stopped = _at_work.pop(thread, None) is None
        if stopped:
            for _ in range(100):  # an exception that comes after the last step of the template is raised here
                pass


def check(template: str) -> None:
    """UserError for a product or a power that may never be computed."""
    try:
        tokens = [(kind, value) for _, kind, value in jinja2.Environment().lex(template) if kind != "whitespace"]
    except jinja2.TemplateSyntaxError:
        return  # it is refused with its own message when it is first used
    for place, (kind, value) in enumerate(tokens):
        if kind != "operator" or value not in ("*", "**"):
            continue
        beside = [int(text) for kind, text in tokens[max(place - 1, 0) : place + 2] if kind == "integer"]
        if value == "**" or not any(number <= FACTOR for number in beside):
            raise UserError(
                f"the chat template is not usable: it computes with {value!r}; it may only multiply by a number up to "
                f"{FACTOR} that stands in it"
            )


def _watch() -> None:
    while True:
        time.sleep(EVERY)
        with _deciding:
            if not _at_work:
                _watchers.clear()
                return
            for thread in [thread for thread, work in _at_work.items() if work.too_much()]:
                del _at_work[thread]
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(TooMuch))


def _resident() -> int:
    """Bytes of memory that the process holds."""
    return int(os.pread(_statm(), 200, 0).split()[1]) * PAGE


@functools.cache
def _statm() -> int:
    return os.open("/proc/self/statm", os.O_RDONLY)  # stays open
