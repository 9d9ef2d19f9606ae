"""Clients that stop reading, and answers that stop: whoever reads on learns that it is over."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import cast

import pytest

from guardrails.findings import Outcome
from streaming.api.gateway.openai import FRONT
from streaming.api.gateway.wire import Reader
from streaming.gateway import relay as relaying
from streaming.gateway.gates import Gates
from streaming.gateway.record import Record
from streaming.gateway.relay import Relay
from streaming.gateway.walker import Json
from tests.streaming.gateway.test_goes_away import Stand
from tests.streaming.gateway.test_walkers import openai
from tests.streaming.gateway.walked import OPEN, WALKERS


class Asked:
    """One answer of ten words, behind which the upstream says nothing more or fails in a way that nobody expects."""

    def __init__(self, *, fails: Exception | None = None) -> None:
        self.said_all, self.freed = asyncio.Event(), False
        self.record = Stand(10)

        async def source() -> AsyncGenerator[Json, None]:
            for number in range(10):
                yield openai({"content": f"word {number} "})
            self.said_all.set()
            if fails is not None:
                raise fails
            await asyncio.Event().wait()

        async def free() -> None:
            self.freed = True

        gates = Gates(OPEN)
        walker, record = WALKERS["openai"](gates), cast("Record", self.record)
        self.relay = Relay(source(), walker, gates, record, streaming=True, freed=free)
        self.task = asyncio.create_task(self.relay.run())
        self.reader = Reader(self.relay, self.task, FRONT)

    async def rest(self) -> str:
        """All that is still to be read."""
        async with asyncio.timeout(5):
            frames = self.reader.frames(await self.reader.first(may_wait_on=True))
            return b"".join([frame async for frame in frames]).decode()


def error_in(said: str) -> str:
    last = said.strip().splitlines()[-1].removeprefix("data: ")
    return str(json.loads(last)["error"]["message"])


async def test_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who takes nothing for a minute and then reads on gets what lay there, and why it ends."""
    monkeypatch.setattr(relaying, "UNREAD", 4)
    monkeypatch.setattr(relaying, "READER_S", 0.02)
    asked = Asked()
    async with asyncio.timeout(20):
        await asyncio.wait({asked.task})
    assert asked.task.exception() is None
    assert asked.freed
    assert asked.record.outcomes == [Outcome.ABANDONED]
    said = await asked.rest()
    assert "word 3" in said
    assert "word 4" not in said
    assert error_in(said) == "Nothing of the answer was read for 0.02 seconds."


async def test_who_waits_when_the_server_is_stopped_waits_no_longer() -> None:
    asked = Asked()
    reading = asyncio.create_task(asked.rest())
    await asked.said_all.wait()
    asked.task.cancel()
    said = await reading
    assert "word 9" in said
    assert error_in(said) == "The server was stopped while the answer streamed."
    assert asked.record.outcomes == [Outcome.ERROR]


async def test_a_failure_that_nobody_reads_is_on_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relaying, "UNREAD", 10)
    monkeypatch.setattr(relaying, "READER_S", 0.02)
    asked = Asked(fails=RuntimeError("nobody knows why"))
    async with asyncio.timeout(20):
        await asyncio.wait({asked.task})
    assert asked.record.outcomes == [Outcome.ERROR]


async def test_a_time_limit_of_others_is_no_client_that_reads_nothing() -> None:
    asked = Asked(fails=TimeoutError("of whatever was asked"))
    said = await asked.rest()
    await asyncio.wait({asked.task}, timeout=20)
    assert "word 9" in said
    assert error_in(said) == "Something went wrong on the server."
    assert asked.record.outcomes == [Outcome.ERROR]
