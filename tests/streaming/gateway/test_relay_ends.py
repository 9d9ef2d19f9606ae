"""However an answer ends, its place is free at once and its end is stored."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from guardrails.findings import Outcome
from streaming.gateway.relay import Relay, Told
from streaming.gateway.walker import Json

LIMIT_S = 20


class Record:
    """Stores ends, as soon as it may."""

    def __init__(self) -> None:
        self.may, self.ends = asyncio.Event(), list[tuple[object, object]]()
        self.started = SimpleNamespace(session_id="s")
        self.prompted = SimpleNamespace(later=())
        self.stop_reason = ""

    def alive(self, gates: object) -> None:
        """Nothing to say."""

    async def end(self, gates: object, usage: object, *, outcome: object, code: str, **more: object) -> None:
        await self.may.wait()
        self.ends.append((outcome, code))


async def _nothing() -> AsyncGenerator[Json, None]:
    for chunk in ():
        yield chunk


def relay(record: Record, freed: Any) -> Relay:
    walker = SimpleNamespace(usage={}, stop_reason="")
    gates = SimpleNamespace(let_go=lambda: None)
    return Relay(_nothing(), cast("Any", walker), cast("Any", gates), cast("Any", record), streaming=True, freed=freed)


async def test_a_place_is_free_before_the_end_is_stored() -> None:
    """A client that gave up asks again; the record may take as long as the database is away."""
    record, freed = Record(), asyncio.Event()

    async def free() -> None:
        freed.set()

    ending = asyncio.create_task(relay(record, free)._surely(Outcome.ABANDONED, "", ""))
    async with asyncio.timeout(LIMIT_S):
        await freed.wait()
        assert record.ends == []
        record.may.set()
        await ending
    assert record.ends == [(Outcome.ABANDONED, "")]


async def test_a_place_is_free_though_whoever_frees_it_is_cancelled() -> None:
    """What was asked of the store may not have been sent yet."""
    may, freed = asyncio.Event(), asyncio.Event()

    async def free() -> None:
        await may.wait()
        freed.set()

    freeing = asyncio.create_task(relay(Record(), free).free())
    await asyncio.sleep(0)
    freeing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await freeing
    may.set()
    async with asyncio.timeout(LIMIT_S):
        await freed.wait()


async def test_a_place_that_cannot_be_given_back_costs_no_record() -> None:
    """The failure was told in place of the record's own, and nobody waited for the record."""
    record = Record()

    async def free() -> None:
        raise RuntimeError("something of ours")

    ending = asyncio.create_task(relay(record, free)._surely(Outcome.BLOCKED, "", ""))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not ending.done()
    record.may.set()
    async with asyncio.timeout(LIMIT_S):
        await ending
    assert record.ends == [(Outcome.BLOCKED, "")]


async def test_a_client_that_goes_while_it_is_told_of_a_failure_loses_no_record(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It takes nothing any more, and the relay waits for room."""
    record, telling = Record(), asyncio.Event()
    record.may.set()

    async def free() -> None:
        pass

    async def breaks(self: Relay) -> None:
        raise RuntimeError("something of ours")

    async def waits(self: Relay, told: Told) -> None:
        telling.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(Relay, "_relayed", breaks)
    monkeypatch.setattr(Relay, "_tell", waits)
    made = relay(record, free)
    running = asyncio.create_task(made.run())
    async with asyncio.timeout(LIMIT_S):
        await telling.wait()
        made.abandon()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert record.ends == [(Outcome.ERROR, "internal")]
