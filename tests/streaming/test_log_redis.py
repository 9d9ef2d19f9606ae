"""The session log in a real store: order, caps, wake-ups across processes, and a store that goes away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from uuid import uuid4

import pytest
from channels.layers import get_channel_layer

from guardrails.findings import Action, Finding, Mode
from streaming import log_redis as logs
from streaming.conf import Conf
from streaming.core.events import Done, FindingEvent, ServerEvent, StateChange
from streaming.log import LogUnavailable, MemoryLog, SessionLog
from streaming.log_redis import MAX_CONNECTIONS, RedisLog
from streaming.models import AuditSession
from streaming.reader import follow

State = AuditSession.State

FAST = Conf(log_poll_s=0.05, idle_check_s=0.1)
PATIENT = Conf(log_poll_s=30, idle_check_s=60)


@pytest.fixture
async def redis_log(valkey_url: str) -> AsyncIterator[RedisLog]:
    log = RedisLog(valkey_url, get_channel_layer(), PATIENT)
    yield log
    await log.aclose()


@pytest.fixture(params=["memory", "redis"])
def log(request: pytest.FixtureRequest, redis_log: RedisLog) -> SessionLog:
    return MemoryLog() if request.param == "memory" else redis_log


def chunk(text: str) -> dict[str, object]:
    return {
        "type": "message_stream",
        "message_id": "m",
        "channel": "text",
        "choice": 0,
        "chunk": text,
        "is_final": False,
    }


async def test_it_works(log: SessionLog) -> None:
    session = str(uuid4())
    assert await log.append(session, [chunk("a"), chunk("b")], ms=5) == 2
    assert await log.append(session, [chunk("c")], ms=9) == 3
    events = await log.read(session, 0)
    assert [(e["seq"], e["chunk"], e["ms"], e["session_id"]) for e in events] == [
        (1, "a", 5, session), (2, "b", 5, session), (3, "c", 9, session)
    ]  # fmt: skip
    assert [e["seq"] for e in await log.read(session, 2)] == [3]
    assert await log.read(session, 3) == []


async def test_two_writers_never_share_a_seq(valkey_url: str, redis_log: RedisLog) -> None:
    session, other = str(uuid4()), RedisLog(valkey_url, None, FAST)
    try:
        writes = [writer.append(session, [chunk(str(n))] * 3, ms=0) for n in range(50) for writer in (redis_log, other)]
        last = await asyncio.gather(*writes)
    finally:
        await other.aclose()
    assert max(last) == 300
    assert [e["seq"] for e in await redis_log.read(session, 0, 1_000)] == list(range(1, 301))


async def test_store_that_lost_everything_counts_on_above_the_floor(log: SessionLog) -> None:
    session = str(uuid4())
    assert await log.append(session, [chunk("x")], ms=0, floor=1_040) == 1_041
    assert await log.append(session, [chunk("y")], ms=0, floor=5_000) == 1_042


async def test_store_that_was_put_back_gives_no_seq_twice(log: SessionLog) -> None:
    session = str(uuid4())
    assert await log.append(session, [chunk("seen by nobody any more")], ms=0) == 1
    assert await log.append(session, [chunk("x")], ms=0, floor=40, known=40) == 41, "its writer had told 40 events"
    assert await log.append(session, [chunk("y")], ms=0, floor=41, known=41) == 42
    assert await log.append(session, [chunk("z")], ms=0, floor=9_000, known=40) == 43, "a worker knows of fewer"
    assert [event["seq"] for event in await log.read(session, 40)] == [41, 42, 43]


async def test_log_is_capped_and_expires(valkey_url: str) -> None:
    session = str(uuid4())
    log = RedisLog(valkey_url, None, replace(FAST, log_max_events=100, log_ttl_s=77))
    try:
        await log.append(session, [chunk("x")] * 1_000, ms=0)
        kept = await log.read(session, 0, 2_000)
        assert 100 <= len(kept) < 400
        assert kept[-1]["seq"] == 1_000
        for name in ("log", "seq"):
            assert 0 < await log._redis.ttl(f"sg:{name}:{{{session}}}") <= 77
    finally:
        await log.aclose()


async def test_reader_in_another_process_is_woken_without_polling(valkey_url: str, redis_log: RedisLog) -> None:
    session = str(uuid4())
    other = RedisLog(valkey_url, get_channel_layer(), PATIENT)
    try:
        async with other.attend(session) as wake:
            assert await redis_log.attended(session)
            wake.clear()
            await redis_log.append(session, [chunk("a")], ms=0)
            await asyncio.wait_for(wake.wait(), 5)
        assert not await redis_log.attended(session)
    finally:
        await other.aclose()


async def test_a_reader_is_there_whatever_the_clock_of_another_process_says(
    valkey_url: str, redis_log: RedisLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that is read would be ended as one that nobody reads, and its reader not be woken."""
    session, now = str(uuid4()), time.time()
    other = RedisLog(valkey_url, get_channel_layer(), PATIENT)
    try:
        async with other.attend(session) as wake:
            monkeypatch.setattr(time, "time", lambda: now + 60)
            assert await redis_log.attended(session)
            wake.clear()
            await redis_log.append(session, [chunk("a")], ms=0)
            await asyncio.wait_for(wake.wait(), 5)
    finally:
        await other.aclose()


async def test_interrupt_reaches_the_process_that_runs_the_session(valkey_url: str, redis_log: RedisLog) -> None:
    session = str(uuid4())
    other = RedisLog(valkey_url, get_channel_layer(), PATIENT)
    try:
        async with redis_log.run(session) as stop:
            await other.interrupt(session)
            await asyncio.wait_for(stop.wait(), 5)
            assert await redis_log.interrupted(session)
    finally:
        await other.aclose()


async def test_store_that_cannot_be_reached_is_a_typed_error_and_quick() -> None:
    log = RedisLog("redis://127.0.0.1:1/0", None, FAST)
    session = str(uuid4())
    async with asyncio.timeout(5):
        with pytest.raises(LogUnavailable):
            await log.append(session, [chunk("a")], ms=0)
        with pytest.raises(LogUnavailable):
            await log.read(session, 0)
        with pytest.raises(LogUnavailable):
            await log.ping()
        async with log.attend(session), log.run(session) as stop:
            await log.interrupt(session)
            assert stop.is_set(), "a session of this process stops also without the store"
    await log.aclose()


async def drain(log: SessionLog, session: str, after: int, **kwargs: object) -> list[dict[str, object]]:
    out: list[dict[str, object]] = []
    async with asyncio.timeout(10):
        async for batch in follow(log, session, after, FAST, correlation_id="order-4711", **kwargs):
            out += batch
    return out


async def never(session_id: str) -> tuple[State, list[ServerEvent]]:
    return State.ACTIVE, []


async def test_reader_reads_on_from_any_seq_and_ends_with_the_session(log: SessionLog) -> None:
    session = str(uuid4())
    await log.append(session, [chunk(text) for text in "abcdef"], ms=0)
    await log.append(session, [{"type": "state", "state": "COMPLETE"}], ms=1)
    for after in range(7):
        events = await drain(log, session, after, session_over=never)
        assert "".join(str(e.get("chunk", "")) for e in events) == "abcdef"[after:]
        assert events[-1]["state"] == "COMPLETE"


async def test_reader_is_told_when_events_are_gone() -> None:
    log = MemoryLog(max_events=3)
    await log.append("s", [*[chunk(text) for text in "abcdef"], {"type": "state", "state": "COMPLETE"}], ms=0)
    events = await drain(log, "s", 1, session_over=never)
    assert (events[0]["type"], events[0]["code"], events[0]["seq"]) == ("error", "events_lost", 0)


async def test_reader_learns_the_end_that_was_in_the_lost_part_of_the_log() -> None:
    async def over(session_id: str) -> tuple[State, list[ServerEvent]]:
        return State.COMPLETE, [Done("a", "allowed"), StateChange("COMPLETE", "allowed")]

    complete = {"type": "state", "state": "COMPLETE"}
    emptied = MemoryLog()
    await emptied.append("s", [complete], ms=0, floor=1_000)  # told by a worker, after the store had lost the rest
    events = await drain(emptied, "s", 0, session_over=over)
    assert [(e["type"], e["seq"]) for e in events] == [("error", 0), ("done", 0), ("state", 1_001)]
    whole = MemoryLog(max_events=3)
    await whole.append("s", [chunk("a"), chunk("b"), Done("ab", "allowed").payload(), complete], ms=0)
    told = [e["type"] for e in await drain(whole, "s", 0, session_over=over)]
    assert told.count("done") == 1, "what the log has is not told twice"


async def test_reader_without_wake_and_without_last_event_still_ends() -> None:
    class Mute(MemoryLog):
        """Appends never wake anybody, and the last step was never told."""

        async def append(self, session_id: str, payloads: object, *, ms: int, floor: int = 0, known: int = 1) -> int:
            readers, self._readers = self._readers, type(self._readers)()
            seq = await super().append(session_id, payloads, ms=ms, floor=floor)  # type: ignore[arg-type]
            self._readers = readers
            return seq

    async def over(session_id: str) -> tuple[State, list[ServerEvent]]:
        return State.COMPLETE, [Done("a", "allowed"), StateChange("COMPLETE", "allowed")]

    log = Mute()
    await log.append("s", [chunk("a")], ms=0)
    events = await drain(log, "s", 0, session_over=over)
    assert [e["type"] for e in events] == ["message_stream", "done", "state"]


@pytest.mark.parametrize("has", ["nothing", "a part", "the end"])
async def test_reader_of_an_answer_that_is_over_does_not_wait_for_its_checks(has: str) -> None:
    """Whoever stored the end could not tell it; a check that nobody makes may take ten minutes to say so."""
    log = MemoryLog()
    if has != "nothing":
        last = [Done("a", "allowed").payload()] if has == "the end" else []
        await log.append("s", [chunk("a"), *last], ms=0)
    looks: list[str] = []

    async def over(session_id: str) -> tuple[State, list[ServerEvent]]:
        looks.append(session_id)
        if len(looks) == 4:
            await log.append("s", [{"type": "state", "state": "COMPLETE"}], ms=1)
        return State.MONITORING, [Done("a", "allowed"), StateChange("MONITORING", "allowed")]

    events = await drain(log, "s", 0, session_over=over)
    assert [e["type"] for e in events].count("done") == 1
    assert events[-1]["state"] == "COMPLETE"
    assert len(looks) == 4, "it was told before, and not again"


async def test_what_a_check_has_told_behind_an_end_that_nobody_told_is_told_once() -> None:
    """The end was stored by a process that died; a worker's finding came, and another check is still to be made."""
    hit = FindingEvent(Finding("claims", "keywords", "claim", "claims", 0, 1, Mode.MONITOR, Action.WARN, n=5))
    log = MemoryLog()
    await log.append("s", [chunk("a"), hit.payload()], ms=0)
    looks: list[str] = []

    async def over(session_id: str) -> tuple[State, list[ServerEvent]]:
        looks.append(session_id)
        if len(looks) == 4:
            await log.append("s", [{"type": "state", "state": "COMPLETE"}], ms=1)
        return State.MONITORING, [Done("a", "allowed"), hit, StateChange("MONITORING", "allowed")]

    events = await drain(log, "s", 0, session_over=over)
    assert [(e["type"], e["seq"]) for e in events] == [
        ("message_stream", 1), ("finding", 2), ("done", 0), ("state", 0), ("state", 3),
    ]  # fmt: skip


@pytest.mark.parametrize("last", ["told", "never told"])
async def test_what_the_database_has_told_is_told_no_second_time(last: str) -> None:
    """The end and the last step were stored by two processes, and each died before it told; or a finding came late."""
    hit = FindingEvent(Finding("claims", "keywords", "claim", "claims", 0, 1, Mode.MONITOR, Action.WARN, n=5))
    log = MemoryLog()
    await log.append("s", [chunk("a")], ms=0)
    looks = 0

    async def over(session_id: str) -> tuple[State, list[ServerEvent]]:
        nonlocal looks
        looks += 1
        state = State.COMPLETE if last == "never told" and looks > 2 else State.MONITORING
        if last == "told" and looks == 3:
            await log.append("s", [hit.payload(), {"type": "state", "state": "COMPLETE"}], ms=1)
        return state, [Done("a", "allowed"), hit, StateChange(state, "allowed")]

    events = await drain(log, "s", 0, session_over=over)
    told = [e["type"] for e in events]
    assert told == ["message_stream", "done", "finding", "state", "state"]
    assert events[-1]["state"] == "COMPLETE"


async def test_an_end_that_is_told_after_the_database_told_it_is_told_once() -> None:
    """Its client said the last call again, so it is in the log after all."""
    said = [Done("a", "allowed"), StateChange("MONITORING", "allowed")]
    log = MemoryLog()
    await log.append("s", [chunk("a")], ms=0)
    looks = 0

    async def over(session_id: str) -> tuple[State, list[ServerEvent]]:
        nonlocal looks
        looks += 1
        if looks == 3:
            complete: dict[str, object] = {"type": "state", "state": "COMPLETE"}
            await log.append("s", [*(one.payload() for one in said), complete], ms=1)
        return State.MONITORING, list(said)

    events = await drain(log, "s", 0, session_over=over)
    assert [e["type"] for e in events] == ["message_stream", "done", "state", "state", "state"]


async def test_a_reader_that_reads_anew_is_told_nothing_that_it_knows() -> None:
    """Its connection lives; it was the store or the database that went away for a moment."""
    hit = FindingEvent(Finding("claims", "keywords", "claim", "claims", 0, 1, Mode.MONITOR, Action.WARN, n=5))

    async def over(session_id: str) -> tuple[State, list[ServerEvent]]:
        return State.COMPLETE, [Done("a", "allowed"), hit, StateChange("COMPLETE", "allowed")]

    log = MemoryLog()
    await log.append("s", [chunk("a"), hit.payload(), Done("a", "allowed").payload()], ms=0)
    events = await drain(log, "s", 1, session_over=over, told=True, heard={5})
    assert [(e["type"], e["seq"]) for e in events] == [("state", 0)]


async def test_an_end_that_is_told_is_not_told_again_with_a_last_step_that_is_not() -> None:
    async def over(session_id: str) -> tuple[State, list[ServerEvent]]:
        return State.COMPLETE, [Done("a", "allowed"), StateChange("COMPLETE", "allowed")]

    log = MemoryLog()
    said = [Done("a", "allowed").payload(), StateChange("MONITORING", "allowed").payload()]
    await log.append("s", [chunk("a"), *said], ms=0)
    events = await drain(log, "s", 0, session_over=over)
    assert [(e["type"], e["seq"]) for e in events] == [("message_stream", 1), ("done", 2), ("state", 3), ("state", 0)]


async def test_each_step_that_is_stored_and_not_told_yet_is_waited_for() -> None:
    """A look that came between the storing of the answer's end and its telling is no reason to hurry at the next."""
    log = MemoryLog()
    await log.append("s", [chunk("a")], ms=0)
    state, looks = State.MONITORING, 0

    async def over(session_id: str) -> tuple[State, list[ServerEvent]]:
        nonlocal looks, state
        looks += 1
        said = [Done("a", "allowed"), StateChange(state, "allowed")]
        match looks:
            case 2:
                await log.append("s", [one.payload() for one in said], ms=1)
            case 3:
                state = State.COMPLETE
                said = [said[0], StateChange(state, "allowed")]
            case 4:
                await log.append("s", [{"type": "state", "state": "COMPLETE"}], ms=2)
        return state, said

    events = await drain(log, "s", 0, session_over=over)
    assert [(e["type"], e["seq"]) for e in events] == [("message_stream", 1), ("done", 2), ("state", 3), ("state", 4)]


async def test_reader_can_be_cancelled_at_every_moment_of_a_command(redis_log: RedisLog) -> None:
    session = str(uuid4())
    await redis_log.append(session, [chunk("a")] * 50, ms=0)

    async def read_for_ever() -> None:
        while True:
            await redis_log.read(session, 0)

    for moments in range(25):
        reading = asyncio.create_task(read_for_ever())
        for _ in range(moments):
            await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait([reading], timeout=5)
        assert reading.cancelled(), f"cancelled after {moments} steps, it went on"


async def test_reader_beside_the_writer_need_not_ask_the_store(
    redis_log: RedisLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = str(uuid4())
    async with redis_log.attend(session):
        await redis_log.append(session, [chunk("a"), chunk("b")], ms=5)
        stored = await redis_log.read(session, 0)
        monkeypatch.setattr(redis_log, "_redis", None)
        assert await redis_log.read(session, 0) == stored
        assert [e["chunk"] for e in await redis_log.read(session, 0, 1)] == ["a"]
        assert [e["chunk"] for e in await redis_log.read(session, 1)] == ["b"]
        monkeypatch.undo()
        assert await redis_log.read(session, 2) == []


async def test_what_the_only_reader_has_read_is_not_kept(redis_log: RedisLog) -> None:
    session = str(uuid4())
    async with redis_log.attend(session):
        await redis_log.append(session, [chunk("a"), chunk("b")], ms=5)
        stored = await redis_log.read(session, 0)
        async with redis_log.attend(session):  # another one may be behind
            await redis_log.read(session, 2)
            assert redis_log._recent[session].after(0, 9) == stored
        await redis_log.read(session, 1)
        assert redis_log._recent[session].after(0, 9) == []
        assert redis_log._recent[session].after(1, 9) == stored[1:]
        assert await redis_log.read(session, 0) == stored, "the store has it"
        await redis_log.append(session, [chunk("c")], ms=6)
        assert [e["chunk"] for e in await redis_log.read(session, 2)] == ["c"]


async def test_the_embedded_store_gives_a_log_little_room_to_begin_with(redis_log: RedisLog) -> None:
    session = str(uuid4())
    await redis_log.append(session, [chunk("a"), chunk("b")], ms=1)
    taken = await redis_log._redis.memory_usage(f"sg:log:{{{session}}}")
    assert 200 < taken < 2_500, "a stream has room for 4096 bytes unless the store is told otherwise"


async def test_many_calls_at_once_share_a_few_connections(redis_log: RedisLog) -> None:
    sessions = [str(uuid4()) for _ in range(5 * MAX_CONNECTIONS)]
    await asyncio.gather(*(redis_log.append(session, [chunk("a")], ms=1) for session in sessions))
    found = await asyncio.gather(*(redis_log.read(session, 0) for session in sessions))
    assert all([event["chunk"] for event in events] == ["a"] for events in found)
    pool = redis_log._redis.connection_pool
    assert 1 <= len(pool._available_connections) + len(pool._in_use_connections) <= MAX_CONNECTIONS


async def test_a_store_that_takes_a_call_and_never_answers_is_a_typed_error_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logs, "CALL_LIMIT_S", 0.05)
    gone = asyncio.Event()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1_000):
            pass
        gone.set()
        writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    async with asyncio.timeout(10), server:
        log = RedisLog(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0", None, FAST)
        with pytest.raises(LogUnavailable):
            await log.append(str(uuid4()), [chunk("a")], ms=0)
        await gone.wait()  # its answer would be taken for the next call's
        await log.aclose()


async def test_a_call_that_finds_no_free_connection_fails_in_time(
    redis_log: RedisLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "ROOM_LIMIT_S", 0.01)
    never = asyncio.get_running_loop().create_future()
    held = [asyncio.create_task(redis_log._reach(never)) for _ in range(MAX_CONNECTIONS)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    with pytest.raises(LogUnavailable):
        await redis_log.ping()
    never.set_result(None)
    await asyncio.gather(*held)
    await redis_log.ping()


async def test_what_the_writer_remembers_is_what_the_store_has(redis_log: RedisLog, valkey_url: str) -> None:
    session, other = str(uuid4()), RedisLog(valkey_url, None, PATIENT)
    try:
        async with redis_log.attend(session):
            for n in range(100):  # more than is remembered
                await redis_log.append(session, [chunk(str(n)), chunk("\u00e9\u200b")], ms=n)
            for after in (0, 1, 71, 72, 136, 137, 198, 199, 200):
                assert await redis_log.read(session, after) == await other.read(session, after), after
    finally:
        await other.aclose()


async def test_event_of_another_process_between_ours_is_neither_lost_nor_late(
    redis_log: RedisLog, valkey_url: str
) -> None:
    session, other = str(uuid4()), RedisLog(valkey_url, get_channel_layer(), PATIENT)
    try:
        async with redis_log.attend(session) as wake:
            await redis_log.append(session, [chunk("a")], ms=1)
            wake.clear()
            await other.append(session, [chunk("b")], ms=2)
            async with asyncio.timeout(10):
                await wake.wait()
            assert [e["chunk"] for e in await redis_log.read(session, 0)] == ["a", "b"]
            await redis_log.append(session, [chunk("c")], ms=3)
            assert [e["chunk"] for e in await redis_log.read(session, 0)] == ["a", "b", "c"]
            assert [e["chunk"] for e in await redis_log.read(session, 1)] == ["b", "c"]
    finally:
        await other.aclose()


async def test_nothing_is_remembered_of_a_session_without_a_reader(redis_log: RedisLog) -> None:
    session = str(uuid4())
    await redis_log.append(session, [chunk("a")], ms=1)
    assert not redis_log._recent
    async with redis_log.attend(session):
        await redis_log.append(session, [chunk("b")], ms=1)
        assert redis_log._recent
        assert [e["chunk"] for e in await redis_log.read(session, 0)] == ["a", "b"]
    assert not redis_log._recent
