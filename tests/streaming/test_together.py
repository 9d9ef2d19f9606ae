"""What begins or ends at the same time is stored together, and stands or falls each for itself."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextvars import Context
from functools import partial

import pytest
from asgiref.sync import ThreadSensitiveContext, async_to_sync, sync_to_async
from channels.db import database_sync_to_async
from django.db import OperationalError

from streaming import sessions, together
from streaming.audit.services import append, gathered
from streaming.audit.verify import log_faults, stored_entries
from streaming.models import AuditSession, Conversation, Message
from streaming.sessions import Ending, NewSession, Outcome, Started, Visitor
from tests.streaming.statements import asked

pytestmark = pytest.mark.django_db(transaction=True)
LIMIT_S = 30
ENDING = Ending(Outcome.ALLOWED, Message.Status.COMPLETE, content="a", chars_in=1, released=1)


def new(**more: object) -> NewSession:
    policy = {"name": "p", "version": 1, "digest": "sha256:x"}
    return NewSession(Visitor(client="sg_a"), "the prompt", policy, "scripted", "m", **more)  # type: ignore[arg-type]


def begin(**more: object) -> Callable[[], Started]:
    return partial(sessions.start_session, new(**more))


async def held_up(jobs: list[Callable[[], object]]) -> tuple[list[object], list[int]]:
    """All jobs while the database's thread is busy, so that they wait together; how many each transaction had."""
    busy, go, sizes = asyncio.Event(), threading.Event(), []
    loop = asyncio.get_running_loop()

    def hold() -> None:
        loop.call_soon_threadsafe(busy.set)
        assert go.wait(LIMIT_S)

    whole = together.in_one_transaction

    def counted(some: list[Callable[[], object]]) -> list[object]:
        sizes.append(len(some))
        return whole(some)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(together, "in_one_transaction", counted)
        async with asyncio.timeout(LIMIT_S):
            first = asyncio.create_task(together.together(hold))
            await busy.wait()
            rest = [asyncio.create_task(together.together(job)) for job in jobs]
            await asyncio.sleep(0)
            go.set()
            await first
            return await asyncio.gather(*rest, return_exceptions=True), sizes


async def log() -> tuple[list[tuple[str, str]], list[str]]:
    """Kinds and sessions of the entries, and what is wrong with the log."""
    return await database_sync_to_async(
        lambda: ([(e.kind, e.session) for e in stored_entries()], [fault.code for fault in log_faults()])
    )()


async def test_it_works() -> None:
    started, sizes = await held_up([begin() for _ in range(5)])
    assert sizes == [1, 5], "what came while the thread was busy is one transaction"
    ids = [one.session_id for one in started if isinstance(one, Started)]
    assert await log() == ([("opened", one) for one in ids], [])
    ended, _ = await held_up([partial(sessions.finish_streaming, session_id=one, ending=ENDING) for one in ids])
    assert ended == ["COMPLETE"] * 5
    assert await log() == ([(kind, one) for kind in ("opened", "sealed") for one in ids], [])


async def test_what_comes_alone_goes_alone_and_at_once() -> None:
    async with asyncio.timeout(LIMIT_S):
        started = await together.together(begin())
    assert await log() == ([("opened", started.session_id)], [])


async def test_one_that_is_refused_leaves_the_others_and_no_entry() -> None:
    def broken() -> None:
        sessions.start_session(new())
        raise RuntimeError("after its rows and its entry")

    nowhere = begin(conversation_id="00000000-0000-4000-8000-000000000000")
    done, sizes = await held_up([begin(), broken, nowhere, begin()])
    assert sizes == [1, 4]
    assert [type(one) for one in done] == [Started, RuntimeError, Conversation.DoesNotExist, Started]
    ids = [one.session_id for one in done if isinstance(one, Started)]
    assert await log() == ([("opened", one) for one in ids], [])
    assert await AuditSession.objects.acount() == 2


async def test_what_cannot_be_done_together_is_done_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    failing = [OperationalError("deadlock detected")]

    def deadlock() -> None:
        if failing:
            raise failing.pop()

    done, _ = await held_up([begin(), deadlock, begin()])
    ids = [one.session_id for one in done if isinstance(one, Started)]
    assert (len(ids), done[1]) == (2, None)
    assert await log() == ([("opened", one) for one in ids], []), "none is lost, and none is there twice"
    assert await AuditSession.objects.acount() == 2


async def test_a_database_that_is_away_is_told_to_everybody_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*arguments: object) -> None:
        raise OperationalError("the database is locked")

    monkeypatch.setattr("streaming.audit.services._store", away)
    done, _ = await held_up([begin(), begin()])
    assert [type(one) for one in done] == [OperationalError] * 2
    monkeypatch.undo()
    assert await AuditSession.objects.acount() == await Message.objects.acount() == 0
    async with asyncio.timeout(LIMIT_S):
        await together.together(begin())
    assert (await log())[1] == []


async def test_whoever_is_gone_keeps_nobody_from_theirs() -> None:
    go = threading.Event()
    async with asyncio.timeout(LIMIT_S):
        first = asyncio.create_task(together.together(partial(go.wait, LIMIT_S)))
        gone = asyncio.create_task(together.together(begin()))
        stays = asyncio.create_task(together.together(begin()))
        await asyncio.sleep(0)
        gone.cancel()
        go.set()
        await first
        assert isinstance(await stays, Started)
        assert isinstance(await together.together(begin()), Started)
    assert (await log())[1] == []


def test_more_than_one_transaction_takes_are_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "MOST", 3)
    _, sizes = asyncio.run(held_up([begin() for _ in range(7)]))
    assert sizes == [1, 3, 3, 1]


def test_the_log_is_locked_once_for_all_of_them() -> None:
    append(kind="reveal")
    with asked() as statements:
        together.in_one_transaction([begin() for _ in range(10)])
    of_the_head = [at for at, one in enumerate(statements) if "audithead" in one]
    assert len(of_the_head) == 2, "read, and moved"
    last = max(at for at, one in enumerate(statements) if "INSERT" in one)
    assert of_the_head[0] < last <= of_the_head[1], "and that at the end"
    assert not [one for one in statements[of_the_head[0] :] if "auditsession" in one]


def test_entries_are_gathered_by_one_at_a_time() -> None:
    with gathered(), pytest.raises(RuntimeError, match="already"), gathered():
        pass


async def test_a_request_does_not_wait_for_one_who_needs_the_thread_that_it_holds() -> None:
    """A synchronous middleware holds the shared thread for a request; a pump that ends meanwhile needs that thread."""
    begun, pumped = asyncio.Event(), []

    async def pump() -> None:
        begun.set()
        pumped.append(await together.together(lambda: "ended"))

    async def request() -> str:
        task = asyncio.get_running_loop().create_task(pump(), context=Context())
        await begun.wait()
        told = await together.together(lambda: "begun")
        tasks.append(task)
        return told

    tasks: list[asyncio.Task[None]] = []
    async with asyncio.timeout(LIMIT_S):
        assert await sync_to_async(async_to_sync(request))() == "begun"
        await asyncio.gather(*tasks)
    assert pumped == ["ended"]


async def test_of_two_requests_the_one_that_ends_first_takes_nothing_from_the_other() -> None:
    """Each has a thread of its own that ends with it; what one does for both is done while it is there."""
    first_gone = asyncio.Event()

    async def request(name: str, *, last: bool) -> str:
        async with ThreadSensitiveContext():
            told = await together.together(lambda: name)
            if last:
                await first_gone.wait()
                told = await together.together(lambda: name)
        if not last:
            first_gone.set()
        return told

    async with asyncio.timeout(LIMIT_S):
        told = await asyncio.gather(request("a", last=False), request("b", last=True), request("c", last=True))
    assert told == ["a", "b", "c"]
