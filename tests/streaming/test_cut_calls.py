"""A call of a client-owned stream is cut off, or held up, at every moment at which it waits for something.

Whatever is cut, the same call sent again leads to the same answers, the same rows and the same events, each once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import pytest
from channels.db import database_sync_to_async

from guardrails.findings import AppliesTo
from streaming import tasks
from streaming.chat import load_running
from streaming.conf import conf
from streaming.guarded import service
from streaming.guarded.record import Answer
from streaming.guarded.service import Beginning, Streams, digest_of
from streaming.log_redis import RedisLog, close_shared_log, shared_log
from streaming.models import AuditEntry, AuditSession, Finding, GuardedStream
from streaming.sessions import Visitor

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("demo_policy", "valkey_url")]
VISITOR = Visitor(client="one")
DELTAS = ("The number is 536-22-8145. ", "Write to desk@example.com, ", "or ask 219-09-9999. ")
CALLS = ("start", "update", "finish")
LIMIT_S = 30.0
MOST = 60
"""No call waits as often as this."""


@pytest.fixture(autouse=True)
async def queued(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[str]]:
    """Sessions whose deferred checks were handed to the workers."""
    names: list[str] = []

    async def queue(session_id: str) -> None:
        names.append(session_id)

    monkeypatch.setattr(tasks, "queue_session", queue)
    yield names
    await close_shared_log()


@dataclass
class Moments:
    """Counts when a call waits, before and after; at moment ``at`` the task ``whose`` is stopped in its way."""

    at: int = -1
    stop: Callable[[], Awaitable[None]] | None = None
    whose: asyncio.Task[Any] | None = None
    met: int = 0

    async def pass_by(self) -> None:
        if self.stop is None or asyncio.current_task() is not self.whose:
            return
        self.met += 1
        if self.met == self.at + 1:
            await self.stop()


@pytest.fixture
def moments(monkeypatch: pytest.MonkeyPatch) -> Moments:
    made = Moments()
    reach, in_thread = RedisLog._reach, database_sync_to_async

    async def reached(self: RedisLog, call: Any) -> Any:
        try:
            await made.pass_by()
        except asyncio.CancelledError:
            call.close()
            raise
        result = await reach(self, call)
        await made.pass_by()
        return result

    def threaded(function: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
        async def run(*args: Any, **named: Any) -> Any:
            await made.pass_by()
            result = await in_thread(function)(*args, **named)
            await made.pass_by()
            return result

        return run

    monkeypatch.setattr(RedisLog, "_reach", reached)
    monkeypatch.setattr(service, "database_sync_to_async", threaded)
    return made


@dataclass
class Sent:
    """A stream, call by call; each can be sent again. ``said``: the last answer of each call."""

    policy: str
    key: str = field(default_factory=lambda: str(uuid4()))
    said: dict[str, Answer] = field(default_factory=dict)

    @property
    def session_id(self) -> str:
        return str(self.said["start"]["session_id"])

    async def send(self, call: str) -> None:
        streams = Streams(shared_log(), conf())
        match call:
            case "start":
                running = await load_running(self.policy)
                asked = Beginning(
                    VISITOR, running.policy, AppliesTo.RESPONSE, DELTAS[0], repeat_key=self.key,
                    body_digest=digest_of("start", DELTAS[0]),
                )  # fmt: skip
                self.said[call] = await streams.start(asked)
            case "update":
                self.said[call] = await streams.update(VISITOR, self.session_id, 2, DELTAS[1])
            case _:
                self.said[call] = await streams.finish(VISITOR, self.session_id, 3, DELTAS[2])


async def outcome(sent: Sent) -> dict[str, object]:
    """All that anybody can see of a stream that is over, without what differs between any two."""
    events = await shared_log().read(sent.session_id, 0)
    session = await AuditSession.objects.select_related("answer").aget(pk=sent.session_id)
    answers = [{**answer, "session_id": "", "expires_at": ""} for _, answer in sorted(sent.said.items())]
    for answer in answers:
        if isinstance(summary := answer.get("summary"), dict):
            answer["summary"] = {**summary, "guardrails": ""}
    return {
        "events": [(event["seq"], event["type"], event.get("n"), event.get("rule"), event.get("state"),
                    event.get("final")) for event in events],
        "answers": answers,
        "findings": [
            (row.n, row.rule) async for row in Finding.objects.filter(session=session).order_by("n")
        ],
        "session": (session.state, session.outcome, session.answer.content if session.answer else ""),
        "entries": [row.kind async for row in AuditEntry.objects.filter(session=sent.session_id).order_by("seq")],
    }  # fmt: skip


async def undisturbed(policy: str) -> dict[str, object]:
    sent = Sent(policy)
    for call in CALLS:
        await sent.send(call)
    return await outcome(sent)


async def test_it_works() -> None:
    seen = await undisturbed("basic")
    assert isinstance(events := seen["events"], list)
    assert [(seq, kind) for seq, kind, *_ in events] == [
        (1, "state"), (2, "message_new"), (3, "finding"), (4, "finding"), (5, "finding"),
        (6, "message_update"), (7, "done"), (8, "state"),
    ]  # fmt: skip
    assert seen["session"] == ("COMPLETE", "redacted", "The number is [SSN]. Write to [EMAIL], or ask [SSN]. ")


@pytest.mark.parametrize("policy", ["basic", "demo"])
@pytest.mark.parametrize("which", CALLS)
async def test_a_call_that_is_cut_off_at_any_moment_and_sent_again_leads_to_the_same(
    which: str, policy: str, moments: Moments, queued: list[str]
) -> None:
    async def cut() -> None:
        raise asyncio.CancelledError

    wanted = await undisturbed(policy)
    for at in range(MOST):
        sent = Sent(policy)
        whole = True
        for call in CALLS:
            if call == which:
                moments.at, moments.met, moments.stop, moments.whose = at, 0, cut, asyncio.current_task()
                try:
                    await sent.send(call)
                except asyncio.CancelledError:
                    whole = False
                moments.stop = None
            await sent.send(call)
        assert await outcome(sent) == wanted, f"cut at moment {at} of {which}"
        assert sent.session_id in queued or policy == "basic"
        if whole:
            assert at > 4, "it waits for more than this"
            return
    pytest.fail("there is no end to its moments")


@pytest.mark.parametrize("which", CALLS)
async def test_a_copy_that_comes_to_life_after_the_end_changes_nothing(which: str, moments: Moments) -> None:
    """One process is held up in the middle of a call; the client sends it again and goes on to the end elsewhere."""
    wanted = await undisturbed("basic")
    for at in range(MOST):
        sent, held, go = Sent("basic"), asyncio.Event(), asyncio.Event()

        async def hold(held: asyncio.Event = held, go: asyncio.Event = go) -> None:
            held.set()
            await go.wait()

        for call in CALLS:
            if call == which:
                copy = asyncio.create_task(sent.send(call))
                moments.at, moments.met, moments.stop, moments.whose = at, 0, hold, copy
                waiting = asyncio.create_task(held.wait())
                await asyncio.wait({copy, waiting}, timeout=LIMIT_S, return_when=asyncio.FIRST_COMPLETED)
                moments.stop = None
                waiting.cancel()
            await sent.send(call)
        go.set()
        await asyncio.wait({copy}, timeout=LIMIT_S)
        if (error := copy.exception()) is not None:
            assert isinstance(error, service.OutOfTurn), repr(error)
        assert await outcome(sent) == wanted, f"held up at moment {at} of {which}"
        if not held.is_set():
            assert at > 4, "it waits for more than this"
            return
    pytest.fail("there is no end to its moments")


async def test_nothing_of_it_is_left_open() -> None:
    await undisturbed("basic")
    assert await GuardedStream.objects.filter(session__state="ACTIVE").acount() == 0
