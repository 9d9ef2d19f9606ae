"""What pumps and readers look for in the store now and then is asked about all sessions at once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from uuid import uuid4

import pytest

from streaming.log import LogUnavailable
from streaming.log_redis import RedisLog
from streaming.polls import EVERY_S, Polls
from tests.streaming.test_log_redis import PATIENT, redis_log  # noqa: F401 -- a fixture


class Store:
    """Counts its calls; ``away``: it cannot be reached."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.has: dict[str, bytes] = {}
        self.away = False
        self.now = 100.0

    async def ask(self, sessions: Sequence[str]) -> object:
        self.calls.append(list(sessions))
        if self.away:
            raise LogUnavailable("away")
        return [self.has.get(one) for one in sessions]

    def polls(self, *sessions: str) -> Polls:
        return Polls(self.ask, lambda: list(sessions), lambda: self.now)


async def test_it_works_one_call_is_about_all_sessions() -> None:
    store = Store()
    store.has["b"] = b"1"
    polls = store.polls("a", "b", "c")
    assert [await polls.about(one) for one in "abcabc"] == [None, b"1", None] * 2
    assert store.calls == [["a", "b", "c"]]


async def test_what_one_is_told_is_no_older_than_a_second() -> None:
    store = Store()
    polls = store.polls("a")
    await polls.about("a")
    store.has["a"] = b"1"
    store.now += EVERY_S
    assert await polls.about("a") == b"1"


async def test_a_session_that_has_just_begun_is_asked_about_alone() -> None:
    store, sessions = Store(), ["a"]
    polls = Polls(store.ask, lambda: sessions, lambda: store.now)
    await polls.about("a")
    sessions.append("new")
    store.has["new"] = b"1"
    assert await polls.about("new") == b"1"
    assert store.calls == [["a"], ["new"]]


async def test_while_the_store_is_away_everybody_hears_of_it() -> None:
    store = Store()
    polls = store.polls("a", "b")
    await polls.about("a")
    store.away, store.now = True, store.now + EVERY_S
    for one in "abab":
        with pytest.raises(LogUnavailable):
            await polls.about(one)


async def test_quiet_readers_beside_their_writers_share_one_call(
    redis_log: RedisLog,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called: list[str] = []
    monkeypatch.setattr("streaming.polls.EVERY_S", 60.0)
    real = redis_log._redis.execute_command

    async def counted(*args: object, **options: object) -> object:
        called.append(str(args[0]))
        return await real(*args, **options)

    async with AsyncExitStack() as open_:
        lasts: dict[str, int] = {}
        for session in (str(uuid4()) for _ in range(5)):
            await open_.enter_async_context(redis_log.run(session))
            await open_.enter_async_context(redis_log.attend(session))
            lasts[session] = await redis_log.append(session, [{"type": "state"}], ms=0)
            assert [event["seq"] for event in await redis_log.read(session, 0)] == [lasts[session]]
        with monkeypatch.context() as watched:
            watched.setattr(redis_log._redis, "execute_command", counted)
            for session, last in lasts.items():
                assert await redis_log.read(session, last) == []
                assert not await redis_log.interrupted(session)
    assert called == ["MGET", "MGET"]


async def test_a_reader_beside_the_writer_still_finds_what_another_process_appended(
    redis_log: RedisLog,  # noqa: F811
    valkey_url: str,
) -> None:
    session = str(uuid4())
    other = RedisLog(valkey_url, None, PATIENT)  # and nobody is woken
    try:
        async with redis_log.run(session), redis_log.attend(session):
            last = await redis_log.append(session, [{"type": "state"}], ms=0)
            await redis_log.read(session, 0)
            last = await other.append(session, [{"type": "error"}], ms=0)
            assert [event["seq"] for event in await redis_log.read(session, last - 1)] == [last]
    finally:
        await other.aclose()
