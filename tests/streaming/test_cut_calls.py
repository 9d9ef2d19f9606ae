"""A call of a client-owned stream is cut off, or held up, at every moment at which it waits for something.

Whatever is cut, the same call sent again leads to the same answers, the same rows and the same events, each once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, cast
from uuid import uuid4

import pytest
from channels.db import database_sync_to_async
from django.test import AsyncClient
from django.utils import timezone

from guardrails.findings import AppliesTo, FindingDict
from guardrails.services import create_api_key
from streaming import tasks
from streaming.chat import load_running
from streaming.conf import conf
from streaming.deferred import run_deferred
from streaming.guarded import service
from streaming.guarded.record import Answer, unsealed
from streaming.guarded.service import Beginning, Streams, digest_of
from streaming.log_redis import RedisLog, close_shared_log, shared_log
from streaming.models import AuditEntry, AuditSession, DeferredCheck, Finding, GuardedStream
from streaming.reader import follow
from streaming.sessions import Visitor
from streaming.sweep import sweep

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
    monkeypatch.setattr(service, "in_database", threaded)
    return made


@dataclass
class Sent:
    """A stream, call by call; each can be sent again. ``said``: the last answer of each call."""

    policy: str
    first: str = DELTAS[0]
    visitor: Visitor = VISITOR
    key: str = field(default_factory=lambda: str(uuid4()))
    said: dict[str, Answer] = field(default_factory=dict)

    @property
    def session_id(self) -> str:
        return str(self.said["start"]["session_id"])

    async def send(self, call: str) -> None:
        streams = Streams(shared_log(), conf())
        match call:
            case "start":
                digest = digest_of("start", self.first)
                before = await streams.begun(self.visitor, self.key, digest)
                running = await load_running(self.policy)
                asked = Beginning(
                    self.visitor, running.policy, AppliesTo.RESPONSE, self.first, repeat_key=self.key,
                    body_digest=digest,
                )  # fmt: skip
                self.said[call] = before or await streams.start(asked)
            case "update":
                self.said[call] = await streams.update(self.visitor, self.session_id, 2, DELTAS[1])
            case _:
                self.said[call] = await streams.finish(self.visitor, self.session_id, 3, DELTAS[2])


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
        (6, "message_update"), (7, "timing"), (8, "done"), (9, "state"),
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


async def stored(script: str, sent: Sent, *names: str) -> object:
    """What a script says of the stream's keys."""
    return await shared_log().evaluate(script, [f"sg:{name}:{{{sent.session_id}}}" for name in names], [])


async def test_a_log_that_is_lost_is_told_again_with_the_same_seqs() -> None:
    sent = Sent("basic")
    for call in CALLS:
        if sent.said:
            before = await shared_log().read(sent.session_id, 0)
            await stored("return redis.call('DEL', KEYS[1], KEYS[2])", sent, "log", "seq")
        await sent.send(call)
        if len(sent.said) > 1:
            after = await shared_log().read(sent.session_id, 0)
            assert [{**one, "ms": 0} for one in after[: len(before)]] == [{**one, "ms": 0} for one in before]
            assert len(after) > len(before)
    assert await outcome(sent) == await undisturbed("basic")


async def test_what_is_judged_anew_is_not_told_anew() -> None:
    """The store forgets the state and not the log; the database has an older state."""
    sent = Sent("basic")
    await sent.send("start")
    older = await GuardedStream.objects.aget(pk=sent.session_id)
    await sent.send("update")
    await older.asave()
    await stored("return redis.call('DEL', KEYS[1])", sent, "guarded")
    with pytest.raises(service.OutOfTurn):
        await sent.send("finish")
    for call in ("update", "finish"):
        await sent.send(call)
    assert await outcome(sent) == await undisturbed("basic")


async def test_a_block_is_told_once_and_again_to_a_log_that_lost_it() -> None:
    sent = Sent("demo", first="They call it project blue heron, and more. ")
    await sent.send("start")
    before = await shared_log().read(sent.session_id, 0)
    assert [event["type"] for event in before] == ["state", "message_new", "finding", "blocked"]
    await stored("return redis.call('DEL', KEYS[1], KEYS[2])", sent, "log", "seq")
    await sent.send("update")
    after = await shared_log().read(sent.session_id, 0)
    assert [{**one, "ms": 0} for one in after] == [{**one, "ms": 0} for one in before]


WHOLE = (
    "One. My number is 536-22-8145, they said. Then 219-09-9999 came, and a third, 219-09-9998, was never all there."
)


@pytest.mark.parametrize("policy", ["basic", "demo"])
async def test_a_late_copy_of_a_call_gets_its_answer(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the letter, whatever was released, held and found; another body of the same seq is told apart from it."""
    monkeypatch.setattr("streaming.guarded.record.KEPT_CALLS", 12)
    sent = Sent(policy)
    await sent.send("start")
    streams = Streams(shared_log(), conf())
    text = WHOLE + (" They call it project blue heron, and more." if policy == "demo" else "")
    deltas = dict(enumerate((text[at : at + 9] for at in range(0, len(text), 9)), start=2))

    async def send(seq: int) -> Answer:
        said = await streams.update(VISITOR, sent.session_id, seq, deltas[seq])
        return dict(json.loads(json.dumps(said)))  # as its client has it

    said = {seq: await send(seq) for seq in deltas}
    last = max(deltas)
    assert {"allow", "redact", *(["block"] if policy == "demo" else [])} <= {
        str(one["action"]) for one in said.values()
    }
    for seq in range(last, last - 12, -1):
        assert await send(seq) == said[seq]
        with pytest.raises(service.OutOfTurn, match="with another body") as refused:
            await streams.update(VISITOR, sent.session_id, seq, deltas[seq] + "!")
        assert (refused.value.code, refused.value.expected_seq) == ("seq_conflict", last + 1)
    for seq in range(2, last - 11):
        with pytest.raises(service.OutOfTurn, match="applied long ago") as refused:
            await send(seq)
        assert (refused.value.code, refused.value.expected_seq) == ("seq_conflict", last + 1)
    with pytest.raises(service.OutOfTurn, match="comes next"):
        await streams.update(VISITOR, sent.session_id, last + 2, "x")
    record = await streams._states.load(VISITOR, sent.session_id)
    assert len(record.visible) == said[last]["released_chars"], "none of it was applied twice"


async def test_what_is_kept_of_calls_costs_a_long_stream_little() -> None:
    """It travels with every call: two hundred calls that are known weigh less than a few answers would."""
    sent = Sent("basic")
    await sent.send("start")
    streams = Streams(shared_log(), conf())
    for seq in range(2, 42):
        await streams.update(VISITOR, sent.session_id, seq, f"Sentence {seq}. ")
    record = await streams._states.load(VISITOR, sent.session_id)
    whole, record.earlier = len(record.seal()), []
    assert 0 < whole - len(record.seal()) < 40 * 64


async def test_no_finding_is_copied_to_store_a_stream() -> None:
    """All of them are stored with every call: copies of a few thousand cost a second in which nobody else is served."""
    copied = 0

    class Watched(dict[str, object]):
        def __init__(self, *given: Any) -> None:
            nonlocal copied
            copied += 1
            super().__init__(*given)

    sent = Sent("basic")
    await sent.send("start")
    record = await Streams(shared_log(), conf())._states.load(VISITOR, sent.session_id)
    record.findings = [cast("FindingDict", Watched(finding)) for finding in record.findings]
    record.start_answer = {**record.start_answer, "findings": record.findings}
    assert copied == len(record.findings) == 1
    again = unsealed(record.seal(), sent.session_id)
    assert (again, copied) == (record, 1)


async def test_the_answer_of_an_end_outlives_the_store_and_is_wiped_in_time() -> None:
    sent = Sent("basic")
    for call in CALLS:
        await sent.send(call)
    said = sent.said["finish"]
    await shared_log().evaluate("redis.call('FLUSHALL') return 1", [], [])
    await sent.send("finish")
    assert sent.said["finish"] == said
    with pytest.raises(service.OutOfTurn, match="is over"):
        await sent.send("update")
    stream = await GuardedStream.objects.aget()
    assert b"number" not in bytes(stream.sealed_state or b"")
    later = timezone.now() + timedelta(seconds=conf().tombstone_s)
    await sweep(later - timedelta(seconds=60), shared_log(), lambda pk: None)
    assert await GuardedStream.objects.filter(sealed_state=None).acount() == 0
    await sweep(later + timedelta(seconds=1), shared_log(), lambda pk: None)
    assert await GuardedStream.objects.filter(sealed_state=None).acount() == 1
    with pytest.raises(service.OutOfTurn) as refused:
        await sent.send("finish")
    assert (refused.value.code, refused.value.expected_seq) == ("stream_ended", 4)


async def cut_behind_the_database(moments: Moments, policy: str, visitor: Visitor) -> Sent:
    """A stream whose end the database has, and whose readers have not been told of it: who should do so is dead."""

    async def cut() -> None:
        raise asyncio.CancelledError

    for at in range(MOST):
        sent = Sent(policy, visitor=visitor)
        for call in ("start", "update"):
            await sent.send(call)
        moments.at, moments.met, moments.stop, moments.whose = at, 0, cut, asyncio.current_task()
        with contextlib.suppress(asyncio.CancelledError):
            await sent.send("finish")
        moments.stop = None
        if (await AuditSession.objects.aget(pk=sent.session_id)).state != "ACTIVE":
            break
    assert "done" not in [event["type"] for event in await shared_log().read(sent.session_id, 0)]
    return sent


async def test_a_reader_who_comes_between_the_end_and_the_telling_is_not_sent_away(moments: Moments) -> None:
    """It has all events that there are, and the database says COMPLETE: but how the answer ended it has not seen."""
    key, secret = await database_sync_to_async(create_api_key)(name="one", scopes=["stream"], policy="basic")
    sent = await cut_behind_the_database(moments, "basic", Visitor(client=key.prefix))

    async def read(after: int) -> tuple[int, str]:
        response = await AsyncClient().get(
            f"/v1/stream/events?session_id={sent.session_id}",
            headers={"Authorization": f"Bearer {secret}", "Last-Event-ID": str(after)},
        )
        if response.status_code != 200:
            return response.status_code, ""
        return 200, b"".join([part async for part in response.streaming_content]).decode()

    status, said = await read(5)
    assert (status, said.count("event: done"), said.count("COMPLETE")) == (200, 1, 1)
    sent.said.pop("finish", None)
    await sent.send("finish")
    status, said = await read(5)
    assert (status, said.count("event: done"), said.count("COMPLETE")) == (200, 1, 1)
    assert (await read(8))[0] == 200
    assert (await read(9))[0] == 204, "now it has all"


async def test_a_reader_learns_of_an_end_that_was_stored_and_never_told(moments: Moments) -> None:
    """Who ended the answer died before telling; deferred checks go on, and nobody sends the finish again."""
    sent = await cut_behind_the_database(moments, "demo", VISITOR)
    checks = [check.pk async for check in DeferredCheck.objects.filter(session=sent.session_id)]
    assert checks
    for check in checks:
        assert await run_deferred(check, shared_log())
    batches = [batch async for batch in follow(shared_log(), sent.session_id, 0, conf(), correlation_id="")]
    told = [event for batch in batches for event in batch]
    assert [event["final"] for event in told if event["type"] == "done"] == [
        "The number is [SSN]. Write to [EMAIL], or ask [SSN]. "
    ]
    assert (told[-1]["type"], told[-1]["state"]) == ("state", "COMPLETE")
