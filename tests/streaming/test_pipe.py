"""The connection that appends go through: order, what fails with it, and that nothing is made twice or lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from uuid import uuid4

import hiredis
import pytest

from streaming import log_redis as logs
from streaming import pipe as pipes
from streaming.conf import Conf
from streaming.core.events import Done
from streaming.log import LogUnavailable, MemoryLog, Payload
from streaming.log_redis import RedisLog
from streaming.outlet import Outlet

PATIENT = Conf(log_poll_s=30, idle_check_s=60)


def chunk(text: str) -> dict[str, object]:
    return {"type": "message_stream", "chunk": text}


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110  # nobody else would set an event
            await asyncio.sleep(0.001)


async def piped(log: RedisLog, session: str) -> None:
    """The first append of a session that runs here opens the pipe."""
    await log.append(session, [chunk("first")], ms=0)
    await until(lambda: log._pipe.ready)


@pytest.fixture
async def log(valkey_url: str) -> AsyncIterator[RedisLog]:
    made = RedisLog(valkey_url, None, PATIENT)
    yield made
    await made.aclose()


class Store:
    """Says OK to everything but to what appends; through the pipe it says ``answer``, nothing while that is empty."""

    def __init__(self) -> None:
        self.evals = self.scripts = self.connections = self.gone = 0
        self.answer = b""
        self.hang_up = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        commands = hiredis.Reader()
        while data := await reader.read(100_000):
            commands.feed(data)
            while command := commands.gets():
                writer.write(self.reply(command[0]))
            if self.evals and self.hang_up:
                break
        self.gone += 1
        writer.close()

    def reply(self, name: bytes) -> bytes:
        if name == b"EVAL":
            self.evals += 1
            return self.answer
        if name == b"EVALSHA":
            self.scripts += 1
            return b"*2\r\n:%d\r\n*0\r\n" % self.scripts
        return b"+OK\r\n"


@asynccontextmanager
async def fake() -> AsyncIterator[tuple[RedisLog, Store]]:
    store = Store()
    server = await asyncio.start_server(store.serve, "127.0.0.1", 0)
    async with asyncio.timeout(30), server:
        log = RedisLog(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0", None, PATIENT)
        try:
            yield log, store
        finally:
            await log.aclose()
            await until(lambda: store.gone == store.connections)


async def test_it_works(log: RedisLog) -> None:
    session = str(uuid4())
    async with log.run(session), log.attend(session) as wake:
        await piped(log, session)
        wake.clear()
        assert await log.append(session, [chunk("a"), chunk("\u00e9\u200b")], ms=5, floor=1, known=1) == 3
        assert wake.is_set()
        beside = await log.read(session, 0)
    assert [(e["seq"], e["chunk"]) for e in beside] == [(1, "first"), (2, "a"), (3, "\u00e9\u200b")]
    assert await log.read(session, 0) == beside, "what the store has is what a reader here was given"


async def test_a_log_that_runs_nothing_has_no_connection_for_it(log: RedisLog) -> None:
    session = str(uuid4())
    await log.append(session, [chunk("a")], ms=0)
    assert log._pipe._opening is None
    assert not log._pipe.ready


async def test_many_writers_share_one_connection_and_each_has_its_answer(log: RedisLog) -> None:
    sessions = [str(uuid4()) for _ in range(200)]
    async with log.run(sessions[0]):
        await piped(log, sessions[0])
        for n in range(1, 4):
            appended = [log.append(session, [chunk(f"{session}{n}")] * n, ms=n) for session in sessions]
            last = await asyncio.gather(*appended)
    for session, seq in zip(sessions, last, strict=True):
        texts = [str(event["chunk"]) for event in await log.read(session, 0)]
        own = [text for text in texts if text != "first"]
        assert own == [f"{session}{n}" for n in (1, 2, 2, 3, 3, 3)]
        assert seq == len(texts)


async def test_a_store_that_never_answers_fails_all_that_wait_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async with fake() as (log, store):
        session = str(uuid4())
        async with log.run(session):
            await piped(log, session)
            monkeypatch.setattr(logs, "CALL_LIMIT_S", 0.05)
            three = [asyncio.ensure_future(log.append(session, [chunk("a")], ms=0)) for _ in range(3)]
            found = await asyncio.gather(*three, return_exceptions=True)
            assert [type(one) for one in found] == [LogUnavailable] * 3
            assert not log._pipe.ready, "a late answer would be taken for the next call's"
            monkeypatch.undo()
            assert await log.append(session, [chunk("b")], ms=0) == 2, "the library's client serves meanwhile"
            assert store.evals == 3


async def test_a_call_whose_connection_is_cut_is_not_made_again() -> None:
    async with fake() as (log, store):
        session = str(uuid4())
        async with log.run(session):
            await piped(log, session)
            store.hang_up = True
            with pytest.raises(LogUnavailable):
                await log.append(session, [chunk("a")], ms=0)
            assert (store.evals, store.scripts) == (1, 1), "nobody knows whether it was made"


@pytest.mark.parametrize("answer", [b"?what\r\n", b"+OK\r\n"], ids=["no-protocol", "another-answer"])
async def test_what_is_no_answer_of_ours_is_a_typed_error(answer: bytes) -> None:
    async with fake() as (log, store):
        session = str(uuid4())
        async with log.run(session):
            await piped(log, session)
            store.answer = answer
            with pytest.raises(LogUnavailable):
                await log.append(session, [chunk("a")], ms=0)


async def test_an_answer_that_nobody_waits_for_ends_the_connection() -> None:
    async with fake() as (log, store):
        session = str(uuid4())
        async with log.run(session):
            await piped(log, session)
            store.answer = b"*2\r\n:2\r\n*0\r\n" * 2
            assert await log.append(session, [chunk("a")], ms=0) == 2
            await until(lambda: not log._pipe.ready)


async def test_a_killed_connection_is_replaced(log: RedisLog) -> None:
    session = str(uuid4())
    async with log.run(session):
        await piped(log, session)
        assert log._pipe._transport is not None
        host, port = log._pipe._transport.get_extra_info("sockname")[:2]
        await log._redis.client_kill(f"{host}:{port}")
        await until(lambda: not log._pipe.ready)
        log._pipe._opened_at = float("-inf")
        assert await log.append(session, [chunk("a")], ms=0) == 2, "the library's client serves meanwhile"
        await until(lambda: log._pipe.ready)
        assert await log.append(session, [chunk("b")], ms=0) == 3


async def test_a_refused_call_is_a_typed_error_and_the_next_one_is_made(log: RedisLog) -> None:
    session, other = str(uuid4()), str(uuid4())
    async with log.run(session):
        await piped(log, session)
        await log._redis.rpush(f"sg:seq:{{{other}}}", "no number")
        with pytest.raises(LogUnavailable, match="WRONGTYPE"):
            await log.append(other, [chunk("a")], ms=0)
        assert await log.append(session, [chunk("b")], ms=0) == 2


async def test_a_store_that_forgets_its_scripts_needs_no_second_try(log: RedisLog) -> None:
    session = str(uuid4())
    async with log.run(session):
        await piped(log, session)
        await log._redis.script_flush()
        assert await log.append(session, [chunk("a")], ms=0) == 2


async def test_a_writer_that_is_cancelled_loses_no_event_and_its_reader_is_told(log: RedisLog) -> None:
    session = str(uuid4())

    async def write() -> None:
        await log.append(session, [chunk("a")], ms=0)

    async with log.run(session), log.attend(session) as wake:
        await piped(log, session)
        wake.clear()
        writing = asyncio.create_task(write())
        await asyncio.sleep(0)
        writing.cancel()
        await asyncio.wait([writing], timeout=10)
        assert writing.cancelled()
        assert wake.is_set(), "it has its answer when it ends"
        assert [event["chunk"] for event in await log.read(session, 0)] == ["first", "a"]
        assert await log.append(session, [chunk("b")], ms=0) == 3


async def test_who_waits_for_an_append_is_cancelled_when_it_has_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    async with fake() as (log, _):
        session = str(uuid4())

        async def write() -> None:
            await log.append(session, [chunk("a")], ms=0)

        monkeypatch.setattr(logs, "CALL_LIMIT_S", 0.3)
        async with log.run(session):
            await piped(log, session)
            writing = asyncio.create_task(write())
            await asyncio.sleep(0)
            writing.cancel()
            await asyncio.wait([writing], timeout=10)
            assert writing.cancelled()
            assert not log._pipe.ready, "the store had its time to answer"


async def test_an_outlet_that_is_cancelled_while_it_tells_knows_what_was_told(log: RedisLog) -> None:
    session = str(uuid4())
    outlet = Outlet(log, session, time.monotonic, lambda: 0, lambda: None)
    async with log.run(session):
        await piped(log, session)
        outlet.seq = 1
        outlet.coming.append(Done("a", "allowed"))
        telling = asyncio.create_task(outlet.tell())
        await asyncio.sleep(0)
        telling.cancel()
        await asyncio.wait([telling], timeout=10)
        assert telling.cancelled()
        assert outlet.seq == 2
        await outlet.tell_all()
        assert [event["type"] for event in await log.read(session, 1)] == ["done"], "and tells it once"


async def test_an_outlet_that_is_cancelled_while_the_store_goes_away_knows_what_was_missed() -> None:
    class Away(MemoryLog):
        async def append(
            self, session_id: str, payloads: Sequence[Payload], *, ms: int, floor: int = 0, known: int = 1
        ) -> int:
            await asyncio.sleep(0)
            raise LogUnavailable("away")

    outlet = Outlet(Away(), "s", time.monotonic, lambda: 0, lambda: None)
    last = Done("a", "allowed")
    outlet.coming.append(last)
    telling = asyncio.create_task(outlet.tell_all())
    await asyncio.sleep(0)
    telling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await telling
    assert outlet.missed == (last,)


async def test_closing_fails_what_waits() -> None:
    async with fake() as (log, _):
        session = str(uuid4())
        async with log.run(session):
            await piped(log, session)
            waiting = asyncio.ensure_future(log.append(session, [chunk("a")], ms=0))
            await log.aclose()
            with pytest.raises(LogUnavailable):
                await waiting


COUNT = "return redis.call('INCRBY', KEYS[1], ARGV[1])"


async def hastened(log: RedisLog) -> None:
    log.hasten()
    await until(lambda: log._pipe.ready)


async def test_scripts_that_run_often_go_through_it_and_answer_as_before(log: RedisLog) -> None:
    key = f"count:{uuid4()}"
    assert await log.evaluate(COUNT, [key], [2]) == 2
    await hastened(log)
    assert await asyncio.gather(*(log.evaluate(COUNT, [key], [1]) for _ in range(50))) == list(range(3, 53))
    assert await log.evaluate("return {'a', 7, false}", [], []) == [b"a", 7, None]
    assert not log._under_way, "none of them went another way"


async def test_a_script_that_the_store_has_forgotten_runs_once(log: RedisLog) -> None:
    key = f"count:{uuid4()}"
    await hastened(log)
    for total in (1, 2):
        await log._redis.script_flush()
        assert await log.evaluate(COUNT, [key], [1]) == total
    wrong = "return redis.call('INCRBY', KEYS[1], 'nothing')"
    for _ in range(2):  # the second time the store knows it
        with pytest.raises(LogUnavailable):
            await log.evaluate(wrong, [key], [])
    assert await log.evaluate(COUNT, [key], [0]) == 2


async def test_nobody_gets_the_answer_of_a_script_that_was_called_off(log: RedisLog) -> None:
    key = f"count:{uuid4()}"
    await log.evaluate(COUNT, [key], [0])
    await hastened(log)
    waiting = [asyncio.ensure_future(log.evaluate(COUNT, [key], [1])) for _ in range(4)]
    await asyncio.sleep(0)
    waiting[1].cancel()
    assert await asyncio.gather(waiting[0], *waiting[2:]) == [1, 3, 4]
    assert log._pipe.ready


async def test_a_script_is_not_run_again_when_the_store_hangs_up(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []

    def silent(name: bytes) -> bytes:
        asked.append(name)
        return b""

    async with fake() as (log, store):
        await hastened(log)
        monkeypatch.setattr(store, "reply", silent)
        store.hang_up, store.evals = True, 1
        with pytest.raises(LogUnavailable):
            await log.evaluate(COUNT, ["key"], [1])
        assert asked == [b"EVALSHA"]


async def test_what_no_command_can_carry_is_no_call(log: RedisLog) -> None:
    """Else every answer after it would be another call's."""
    key = f"count:{uuid4()}"
    await hastened(log)
    for wrong in ("\ud800", None):
        with pytest.raises((UnicodeEncodeError, TypeError)):
            await log.evaluate(COUNT, [key], [wrong])  # type: ignore[list-item]
        assert await log.evaluate(COUNT, [key], [0]) == 0
        assert await log.evaluate("return {KEYS[1]}", [key], []) == [key.encode()]


async def test_a_store_that_takes_a_connection_and_says_nothing_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipes, "OPEN_LIMIT_S", 0.05)
    monkeypatch.setattr(pipes, "AGAIN_S", 0.0)
    async with fake() as (log, store):
        with monkeypatch.context() as silent:
            silent.setattr(store, "reply", lambda name: b"")
            log.hasten()
            await until(lambda: store.connections > 0 and log._pipe._opening is None)
            assert not log._pipe.ready
        await until(lambda: log.hasten() is None and log._pipe.ready)
