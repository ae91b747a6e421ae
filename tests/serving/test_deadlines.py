"""Exact: each wait ends after its own time, with one timer for all."""

import asyncio

import pytest

from dwrl_jax.serving.deadlines import Deadlines


def test_waits_end_in_time():
    async def scene():
        loop, deadlines = asyncio.get_running_loop(), Deadlines(0.05)
        begun, first, second, told = loop.time(), loop.create_future(), loop.create_future(), loop.create_future()
        waits = [asyncio.ensure_future(deadlines.wait(future)) for future in (first, told)]
        await asyncio.sleep(0.03)
        waits.append(asyncio.ensure_future(deadlines.wait(second)))
        told.set_result("a score")
        assert await waits[1] == "a score"
        for wait, seconds in ((waits[0], 0.05), (waits[2], 0.08)):
            with pytest.raises(TimeoutError):
                await wait
            assert seconds <= loop.time() - begun < seconds + 0.02
        assert isinstance(first.exception(), TimeoutError) and not deadlines.begun and deadlines.timer is None
        later = loop.create_future()
        loop.call_later(0.01, later.set_result, "another")  # a timer of its own begins again
        assert await deadlines.wait(later) == "another"

    asyncio.run(asyncio.wait_for(scene(), 5))


def test_what_is_over_is_not_kept():
    async def scene():
        loop, deadlines = asyncio.get_running_loop(), Deadlines(100.0)
        for number in range(1000):
            future = loop.create_future()
            future.set_result(number)
            assert await deadlines.wait(future) == number
        assert len(deadlines.begun) == 1

    asyncio.run(scene())
