"""What a thousand sessions leave behind when they are over: their record, and nothing else.

Time moves by the sweep's clock where the database's counts, and by short settings where the store's own does.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import cast

import pytest
import redis
import stamina
from channels.db import database_sync_to_async
from django.conf import settings
from django.test import override_settings
from django.utils import timezone

from guardrails.findings import AppliesTo
from guardrails.policy import Policy
from guardrails.selectors import active_policy
from streaming import registry, tasks
from streaming.chat import Asked, Own, start_chat
from streaming.conf import conf
from streaming.core.events import ProviderEvent, TextDelta
from streaming.frames import StartFrame
from streaming.guarded.service import Beginning, Streams
from streaming.log_redis import close_shared_log, shared_log
from streaming.models import AuditSession, DeferredCheck, GuardedStream, Message
from streaming.providers.base import Provider, ProviderRequest
from streaming.reader import follow
from streaming.resilience import TRIES
from streaming.sessions import Visitor
from streaming.sweep import sweep
from tests.streaming.faults.server import faulty
from tests.streaming.faults.test_faults import FAULTS, LARGE, MAKE, PATIENT, RUSHED

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("demo_policy", "valkey_url")]
SESSIONS, ENDED = 1_000, 100
"""Streams that are opened, and those of them that their client finishes."""
CHATS = 30
ROUND = 500
"""Streams that a sweep ends at once."""
SMALL = [fault for fault in FAULTS if fault not in LARGE]
"""Ways to fail that take no megabytes."""
VISITOR = Visitor(client="sg_leaks")
PIECES = ("The lock chamber fills slowly, and the boat rises. ", "Call 536-22-8145 before noon. ", "Then it le")
LONGEST_S, TOMBSTONE_S = 3_600, 300
SHORT = override_settings(
    SLUICEGATE_STREAM_EXPIRY_S=0.001, SLUICEGATE_LOG_TTL_S=1, SLUICEGATE_TOMBSTONE_S=1, SLUICEGATE_ABANDON_S=0.2
)
LIMIT_S = 600.0


@pytest.fixture(autouse=True)
async def alone(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """An empty store, and workers that never come."""

    async def queue(session_id: str) -> None:
        return None

    monkeypatch.setattr(tasks, "queue_session", queue)
    with store() as emptied:
        emptied.flushall()
    yield
    await close_shared_log()


def store() -> redis.Redis:
    return redis.Redis.from_url(settings.REDIS_URL)


class Mallinfo(ctypes.Structure):
    """What the C library tells of its heap."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks",
                     "keepcost")
    ]  # fmt: skip


def malloc_bytes() -> int:
    """What is in use of the C library's heap, in bytes: all that is larger than Python's own small blocks. 0 where that
    library does not tell."""
    asked = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if asked is None:
        return 0
    asked.restype = Mallinfo
    told = asked()
    return int(told.uordblks + told.hblkhd)


@dataclass(frozen=True, slots=True)
class Held:
    """What is held at one moment, by this process and by the store.

    ``blocks``: small objects, whatever they are; ``malloc_bytes``: the size of all larger ones
    together. ``types``: those that may hold others, by type: where to look.
    """

    blocks: int
    malloc_bytes: int
    files: int
    tasks: int
    pumps: int
    keys: int
    store_bytes: int
    types: Counter[str]

    @classmethod
    def now(cls) -> Held:
        gc.collect()
        with store() as asked:
            memory = int(asked.info("memory")["used_memory"])
        return cls(
            blocks=sys.getallocatedblocks(),
            malloc_bytes=malloc_bytes(),
            files=len(list(Path("/proc/self/fd").iterdir())),
            tasks=len(asyncio.all_tasks()),
            pumps=len(registry.running()),
            keys=len(left_in_the_store()),
            store_bytes=memory,
            types=Counter(type(each).__qualname__ for each in gc.get_objects()),
        )


async def until(what: str, true: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT_S
    while not true():
        assert time.monotonic() < end, f"{what}: not within {LIMIT_S:g} s"
        await asyncio.sleep(0.02)


def left_in_the_store() -> list[str]:
    """Keys, but for those of the installation: one of each provider, and one of the last sweep."""
    others = (b"sg:breaker:", b"sg:swept")
    with store() as asked:
        return [name.decode() for name in asked.scan_iter(count=1_000) if not name.startswith(others)]


def called_off() -> list[asyncio.TimerHandle]:
    """Alarms that will not ring and that the event loop still keeps, each with its context, until their time."""
    loop = cast("asyncio.BaseEventLoop", asyncio.get_running_loop())
    return [each for each in loop._scheduled if each.cancelled()]  # type: ignore[attr-defined]


# -- what sessions do --------------------------------------------------------------------------------------------------


async def opened(number: int, policy: Policy) -> list[str]:
    """Streams that hold text: two deltas, the last of which ends amid what may become a number."""
    streams = Streams(shared_log(), conf())
    ids = []
    for _ in range(number):
        began = await streams.start(Beginning(VISITOR, policy, AppliesTo.RESPONSE, delta=PIECES[0]))
        ids.append(str(began["session_id"]))
        await streams.update(VISITOR, ids[-1], 2, PIECES[1])
    return ids


async def finished(ids: list[str]) -> None:
    streams = Streams(shared_log(), conf())
    for session_id in ids:
        await streams.finish(VISITOR, session_id, None, PIECES[2])


class Stuck(Provider):
    """Begins to speak and never goes on."""

    label = "Stuck"

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> None:
        """Never offered."""

    @property
    def default_model(self) -> str:
        return "stuck-1"

    async def stream(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        yield TextDelta(PIECES[0])
        await asyncio.Event().wait()


async def abandoned(number: int) -> None:
    """Chats whose reader sees the first words and goes."""
    for _ in range(number):
        asked = Asked(VISITOR, "basic", own=Own(Stuck(), flagged=False))
        started = await start_chat(StartFrame(type="start", prompt="go on"), asked, shared_log())
        async with aclosing(follow(shared_log(), started.session_id, 0, conf(), correlation_id="")) as batches:
            async for batch in batches:
                if any(event["type"] == "message_stream" for event in batch):
                    break


async def swept(now: datetime) -> int:
    """Sessions that one round ended."""
    done = await sweep(now, shared_log(), lambda _: None)
    return len(done.lost) + len(done.expired) + len(done.completed)


async def lived(number: int, ended: int, chats: int) -> None:
    """A whole life: opened under the usual settings; then finished, or left until they expire; then forgotten."""
    policies = [await database_sync_to_async(active_policy)(name) for name in ("basic", "demo")]
    ids = await opened(number - ended // 2, policies[0]) + await opened(ended // 2, policies[1])
    every_key_expires(LONGEST_S)
    await close_shared_log()
    with SHORT:
        await finished(ids[-ended:])
        await abandoned(chats)
        await until("chats that nobody reads end", lambda: not registry.running())
        rows = AuditSession.objects.filter(client=VISITOR.client)
        assert await rows.filter(state="MONITORING").acount() == ended // 2
        assert await rows.filter(state="ACTIVE").acount() == number - ended
        later = timezone.now() + timedelta(hours=1)
        rounds = -(-(number - ended) // ROUND)
        assert sum([await swept(later) for _ in range(rounds)]) == number - ended // 2
        assert await swept(later) == 0
        await until("all keys expire", lambda: not left_in_the_store())
        await close_shared_log()
    await until("the loop drops alarms that were called off", lambda: not called_off())


def every_key_expires(within_s: int) -> None:
    with store() as asked:
        left = {name: asked.ttl(name) for name in asked.scan_iter(count=1_000)}
    assert left
    assert {name: ttl for name, ttl in left.items() if not 0 <= ttl <= within_s} == {}


async def failed(order: Sequence[str], draw: random.Random) -> None:
    """Whole chats, one behind the other, each with an endpoint that fails in one of these ways; some are stopped."""
    for number, fault in enumerate(order):
        if number % 4 == 0:  # the others find the breaker as those before have left it
            with store() as asked:
                asked.delete(*asked.scan_iter("sg:breaker:*"), "none")
        adapter = draw.choice(list(MAKE))
        limits = RUSHED if fault in ("stalls", "silent") else PATIENT
        async with faulty(adapter, fault) as there:
            own = Own(MAKE[adapter](there.url, limits), flagged=False)
            frame = StartFrame(type="start", prompt="go on", tools=draw.random() < 0.5)
            started = await start_chat(frame, Asked(VISITOR, "basic", own=own), shared_log())
            if draw.random() < 0.3:
                await asyncio.sleep(draw.random() * 0.02)
                await shared_log().interrupt(started.session_id)
            await until("the chat ends", lambda: not registry.running())
        session = await AuditSession.objects.aget(pk=started.session_id)
        assert session.state == "COMPLETE", fault
        assert session.outcome in ("allowed", "error", "interrupted", "abandoned"), fault


# -- tests -------------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(1_800)  # a minute of work; a busy machine takes many times that
async def test_it_works() -> None:
    """A thousand sessions, and all that this process and the store hold is what they held before."""
    await lived(60, 20, 6)  # what is loaded, connected and remembered once is no session's
    before = Held.now()
    rows = await AuditSession.objects.acount()
    await lived(SESSIONS, ENDED, CHATS)
    after = Held.now()

    assert after.keys == before.keys
    assert after.store_bytes - before.store_bytes < 500_000, "half a kilobyte for each; open ones took six"
    assert (after.tasks, after.pumps) == (before.tasks, 0)
    assert after.files <= before.files + 2
    grown = (after.types - before.types).most_common(12)
    assert after.blocks - before.blocks < SESSIONS, f"not one small object for each, and there are {grown}"
    # Not the resident size: what the allocators keep of it, and where it is torn, is no session's doing.
    assert after.malloc_bytes - before.malloc_bytes < 2_000_000, after.malloc_bytes - before.malloc_bytes

    assert await AuditSession.objects.acount() == rows + SESSIONS + CHATS, "the record stays"
    assert not await AuditSession.objects.exclude(state="COMPLETE").aexists()
    assert not await AuditSession.objects.filter(ended_at=None).aexists()
    assert not await GuardedStream.objects.exclude(sealed_state=None).aexists()
    assert not await DeferredCheck.objects.exclude(sealed_text=None).aexists()
    assert not await Message.objects.filter(status__in=["pending", "streaming"], sessions_answered=None).aexists()


@pytest.mark.parametrize("sessions", [len(SMALL), pytest.param(1_000, marks=pytest.mark.long)])
@pytest.mark.timeout(3_600)
async def test_chats_whose_providers_fail_in_every_way_leave_nothing_behind(
    sessions: int, request: pytest.FixtureRequest
) -> None:
    logging.disable(logging.CRITICAL)  # what pytest keeps of retries' log lines is not a leak of ours
    request.addfinalizer(lambda: logging.disable(logging.NOTSET))
    stamina.set_testing(True, attempts=TRIES, cap=True)
    request.addfinalizer(lambda: stamina.set_testing(False))
    draw = random.Random(20_264)
    faults = SMALL if sessions == len(SMALL) else list(FAULTS)

    async def settled() -> Held:
        await until("all keys expire", lambda: not left_in_the_store())
        await close_shared_log()
        await until("the loop drops alarms that were called off", lambda: not called_off())
        with store() as asked:
            asked.delete(*asked.scan_iter("sg:breaker:*"), "none")
        return Held.now()

    with SHORT:
        await failed(draw.sample(faults, len(faults)), draw)
        before = await settled()
        await failed([faults[n % len(faults)] for n in range(sessions)], draw)
        after = await settled()
    assert (after.tasks, after.pumps, after.keys) == (before.tasks, 0, before.keys)
    assert after.files <= before.files + 2
    grown = (after.types - before.types).most_common(12)
    # A chat that stays is thousands of them; a few are what each kind of failure brings with it the first time.
    assert after.blocks - before.blocks < 2_000 + sessions, f"there are {grown}"
    assert after.malloc_bytes - before.malloc_bytes < 4_000_000, after.malloc_bytes - before.malloc_bytes
    assert not await AuditSession.objects.exclude(state="COMPLETE").aexists()


async def test_the_instrument_sees_one_small_object_for_each_session() -> None:
    before = Held.now()
    kept = [f"session {n}" for n in range(SESSIONS)]
    task = asyncio.create_task(asyncio.Event().wait())
    after = Held.now()
    assert after.blocks - before.blocks >= len(kept)
    assert after.tasks == before.tasks + 1
    large = bytearray(3_000_000)
    assert after.malloc_bytes == 0 or malloc_bytes() - after.malloc_bytes > 0.9 * len(large)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_what_is_finished_is_kept_for_minutes_and_its_events_for_an_hour() -> None:
    policy = await database_sync_to_async(active_policy)("basic")
    (session_id,) = await opened(1, policy)
    await finished([session_id])
    every_key_expires(LONGEST_S)
    with store() as asked:
        assert TOMBSTONE_S - 10 < asked.ttl(f"sg:guarded:{{{session_id}}}") <= TOMBSTONE_S
        assert 0 < asked.ttl(f"sg:log:{{{session_id}}}") <= LONGEST_S


async def test_a_chat_that_runs_has_no_key_that_stays_for_ever() -> None:
    await abandoned(2)
    every_key_expires(LONGEST_S)
    await registry.shutdown()
    every_key_expires(LONGEST_S)
