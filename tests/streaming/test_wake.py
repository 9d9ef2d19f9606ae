"""The light flag and the light line: nothing is lost, however it falls between looking and waiting."""

from __future__ import annotations

import asyncio

import pytest

from streaming.wake import Line, Wake

LIMIT_S = 30.0


async def test_it_works() -> None:
    wake, order = Wake(), list[str]()

    async def waits(name: str) -> None:
        async with asyncio.timeout(LIMIT_S):
            assert await wake.wait()
        order.append(name)

    waiting = [asyncio.create_task(waits(name)) for name in ("first", "second")]
    await asyncio.sleep(0)
    assert not order
    wake.set()
    await asyncio.gather(*waiting)
    assert (order, wake.is_set()) == (["first", "second"], True)
    assert await wake.wait()


async def test_what_is_set_before_anybody_looks_is_seen() -> None:
    wake, called = Wake(is_set=True), list[int]()
    assert await wake.wait(0.0)
    wake.then(lambda: called.append(1))
    assert called == [1]


async def test_a_limit_that_passes_says_so_and_leaves_nothing_behind() -> None:
    wake = Wake()
    assert not await wake.wait(0.0)
    assert wake._calls == ()
    wake.set()
    assert await wake.wait(0.0)


async def test_set_and_cleared_at_once_still_wakes_who_waited() -> None:
    wake = Wake()
    waiting = asyncio.create_task(wake.wait(LIMIT_S))
    await asyncio.sleep(0)
    wake.set()
    wake.clear()
    assert await waiting
    assert not wake.is_set()


async def test_who_is_cancelled_is_not_woken_later() -> None:
    wake = Wake()
    waiting = asyncio.create_task(wake.wait(LIMIT_S))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert wake._calls == ()


async def test_a_call_is_made_once() -> None:
    wake, called = Wake(), list[int]()
    wake.then(lambda: called.append(1))
    wake.set()
    wake.clear()
    wake.set()
    assert called == [1]


async def test_a_line_keeps_its_order_whoever_is_first() -> None:
    line, taken = Line[int](), list[int]()

    async def take() -> None:
        for _ in range(4):
            taken.append(await line.get())

    line.put_nowait(1)
    taking = asyncio.create_task(take())
    await asyncio.sleep(0)
    assert (taken, line.empty()) == ([1], True)
    line.put_nowait(2)
    line.put_nowait(3)  # before the taker has run
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    line.put_nowait(4)
    async with asyncio.timeout(LIMIT_S):
        await taking
    assert taken == [1, 2, 3, 4]


async def test_a_taker_that_is_cancelled_takes_nothing() -> None:
    line = Line[int]()
    taking = asyncio.create_task(line.get())
    await asyncio.sleep(0)
    taking.cancel()
    line.put_nowait(1)
    with pytest.raises(asyncio.CancelledError):
        await taking
    assert line.get_nowait() == 1
    assert line.empty()
