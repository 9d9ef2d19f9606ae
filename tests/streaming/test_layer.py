"""The channel layer that waits: no clock wakes its process, and it comes back when its connection is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import cast

import pytest
from channels.layers import BaseChannelLayer, get_channel_layer
from redis.asyncio import Redis

from streaming.layer import PatientLayer

WAKE = {"type": "log.wake", "session": "s"}


@pytest.fixture
async def layer(valkey_url: str) -> AsyncIterator[BaseChannelLayer]:
    made = PatientLayer(hosts=[valkey_url], prefix="patient")
    yield made
    await made.flush()


async def comes(layer: BaseChannelLayer, channel: str, name: str) -> None:
    """Wait until a message of this name comes; sent again and again, because one that nobody hears is lost."""

    async def listen() -> None:
        while (await layer.receive(channel))["session"] != name:
            pass

    listening = asyncio.create_task(listen())
    async with asyncio.timeout(20):
        while not listening.done():
            await layer.send(channel, {**WAKE, "session": name})
            await asyncio.wait([listening], timeout=0.05)
    listening.result()


async def test_it_works(layer: BaseChannelLayer) -> None:
    assert isinstance(get_channel_layer(), PatientLayer)
    one, other = [await layer.new_channel() for _ in range(2)]
    await layer.send(other, {**WAKE, "session": "other"})
    await layer.send(one, WAKE)
    async with asyncio.timeout(20):
        assert await layer.receive(one) == WAKE
        assert await layer.receive(other) == {**WAKE, "session": "other"}


async def test_who_waits_for_a_message_is_woken_by_no_clock(layer: BaseChannelLayer) -> None:
    await comes(layer, await layer.new_channel(), "first")
    loop = cast("asyncio.BaseEventLoop", asyncio.get_running_loop())
    soon = loop.time() + 3
    alarms = [each for each in loop._scheduled if not each.cancelled()]  # type: ignore[attr-defined]
    assert [each for each in alarms if each.when() < soon] == []


async def test_a_connection_that_is_cut_is_replaced(
    layer: BaseChannelLayer, valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleep = asyncio.sleep
    monkeypatch.setattr(asyncio, "sleep", lambda _: sleep(0))  # the library's second before it connects again
    channel = await layer.new_channel()
    await comes(layer, channel, "first")
    async with Redis.from_url(valkey_url) as store:
        assert await store.client_kill_filter(_type="pubsub") >= 1
        await comes(layer, channel, "second")
        subscribed = await store.pubsub_numsub(channel)
    assert [count for _, count in subscribed] == [1]
