"""The light flag: no set is lost, however it falls between looking and waiting."""

from __future__ import annotations

import asyncio

import pytest

from streaming.wake import Wake

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
