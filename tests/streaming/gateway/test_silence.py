"""Silence that is no death: nobody takes a request for lost whose process is there."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from datetime import timedelta

import pytest
from channels.db import database_sync_to_async
from django.utils import timezone
from pytest_django.fixtures import Settings
from structlog.testing import capture_logs

from guardrails.kinds import base
from guardrails.policy import compile_policy
from guardrails.selectors import Running
from streaming import endings, registry, sessions
from streaming.api.gateway import front
from streaming.gateway.gates import Gates
from streaming.gateway.record import Record
from streaming.models import AuditSession, DeferredCheck
from streaming.overheard import ENDED, STOPPED
from tests.streaming.gateway.fake import JSON, Answer, Fake, sse, upstream
from tests.streaming.gateway.test_heartbeats import Thinks
from tests.streaming.gateway.test_openai_sdk import chunk, whole
from tests.streaming.gateway.test_records import ask, ended, new_key
from tests.streaming.gateway.test_upstreams import closing, row

__all__ = ["closing"]
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("demo_policy", "valkey_url")]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    monkeypatch.setattr("streaming.gateway.relay.ALIVE_EVERY_S", 0.002)
    with upstream() as found:
        yield found


class Written:
    """Waits for signs of life in the database."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._queue: asyncio.Queue[bool] = asyncio.Queue()
        keep = endings.keep_partial

        async def keeping(*args: object, **more: object) -> bool:
            kept = await keep(*args, **more)  # type: ignore[arg-type]
            self._queue.put_nowait(kept)
            return kept

        monkeypatch.setattr(endings, "keep_partial", keeping)

    def none(self) -> bool:
        return self._queue.empty()

    async def after(self) -> None:
        """One that began after this call."""
        while not self._queue.empty():
            self._queue.get_nowait()
        async with asyncio.timeout(10):
            for _ in range(2):
                await self._queue.get()


async def revived(session: AuditSession, written: Written) -> bool:
    """Whether a session that was silent for long enough to be swept says that it lives."""
    long_ago = timezone.now() - timedelta(hours=1)
    await AuditSession.objects.filter(pk=session.pk).aupdate(heartbeat_at=long_ago)
    await written.after()
    await session.arefresh_from_db()
    return session.heartbeat_at > long_ago + timedelta(minutes=30)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_it_works(fake: Fake, settings: Settings, monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    """An upstream that thinks for longer than the sweep waits."""
    settings.SLUICEGATE_STALE_S = 0.006
    gate, written = threading.Event(), Written(monkeypatch)
    if stream:
        said = Answer(sse(chunk({"content": "Good "}), chunk({"content": "day."}, "stop")), gate=gate)
    else:
        said = Answer(whole("Good day."), JSON, gate=gate, gated_head=True)
    fake.answers["small"] = said
    await row("house", f"{fake.url}/v1")
    asking = asyncio.create_task(ask(await new_key(), "house/small", stream=stream))
    try:
        assert await asyncio.to_thread(fake.writing.wait, 60)
        session = await AuditSession.objects.aget()
        assert await revived(session, written)
    finally:
        gate.set()
        status, _, _ = await asking
    assert status == 200
    session = await ended(str(session.pk))
    assert (session.state, session.outcome, session.error_code) == ("COMPLETE", "allowed", "")


def watching(monkeypatch: pytest.MonkeyPatch, *applies_to: str) -> None:
    """Every request has a guardrail that only watches, and answers when it is told to."""
    base.all_kinds()
    monkeypatch.setattr(Thinks, "name", "trial_thinks", raising=False)
    monkeypatch.setattr(Thinks, "done", asyncio.Event())
    monkeypatch.setitem(base._REGISTRY, "trial_thinks", Thinks)  # type: ignore[arg-type]
    watcher = {"name": "t", "kind": "trial_thinks", "mode": "MONITOR", "action": "block", "applies_to": [*applies_to],
               "time_limit_s": 60}  # fmt: skip
    running = Running(compile_policy({"policy": "p", "guardrails": [watcher]}, version=1, digest="sha256:p"))
    monkeypatch.setattr(front, "running_of", lambda found: running)


@pytest.mark.parametrize("stops", [False, True], ids=["and is heard", "and the server stops"])
async def test_a_guardrail_that_only_watches_thinks_on(
    fake: Fake, settings: Settings, monkeypatch: pytest.MonkeyPatch, stops: bool
) -> None:
    """The client has its answer; what is found afterwards must still find the session open."""
    settings.SLUICEGATE_STALE_S = 0.006
    watching(monkeypatch, "response")
    written = Written(monkeypatch)
    fake.answers["small"] = Answer(whole("Good day."), JSON)
    await row("house", f"{fake.url}/v1")
    status, _, _ = await ask(await new_key(), "house/small")
    assert status == 200
    session = await AuditSession.objects.aget()
    assert await revived(session, written)
    if stops:
        await registry.shutdown()
    Thinks.done.set()
    session = await ended(str(session.pk))
    assert (session.outcome, session.error_code) == ("allowed", "")


OUT = {
    "the server stops behind it": ("allowed", {"prompt": 1, "response": 2}, STOPPED),
    "the server stops within it": ("error", {"prompt": 1}, STOPPED),
    "the client goes": ("abandoned", {"prompt": 1}, ENDED),
}


@pytest.mark.parametrize("how", OUT)
async def test_a_check_that_is_out_when_an_answer_ends_is_on_record_as_failed(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """It was asked and has said nothing: a row without it would look as if nobody had been asked."""
    watching(monkeypatch, "prompt", "response")
    gate, (outcome, asked, why) = threading.Event(), OUT[how]
    pieces = sse(chunk({"content": "Good day. "}), chunk({"content": "And on."}), chunk({}, "stop"))
    gated = outcome != "allowed"
    fake.answers["small"] = Answer(pieces, gate=gate if gated else None, gated_head=gated)
    await row("house", f"{fake.url}/v1")
    asking = asyncio.create_task(ask(await new_key(), "house/small", stream=True))
    try:
        if gated:
            assert await asyncio.to_thread(fake.writing.wait, 60)
        else:
            await asking
        if outcome == "abandoned":
            asking.cancel()
            await asyncio.wait({asking})
        else:
            await registry.shutdown()
    finally:
        gate.set()
        await asyncio.wait({asking})
    session = await ended(str((await AuditSession.objects.aget()).pk))
    assert (session.state, session.outcome) == ("COMPLETE", outcome)
    checks = [check async for check in DeferredCheck.objects.all()]
    assert {check.applies_to for check in checks} == set(asked)
    assert all((one.guardrail, one.state, one.error[: len(why)]) == ("t", "error", why) for one in checks)
    counted = session.timing["guardrails"]["t"]
    assert (counted["checks"], counted["errors"]) == (sum(asked.values()),) * 2


async def test_while_the_last_sign_is_fresh_the_database_is_not_asked(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, written, ticked, ticks = threading.Event(), Written(monkeypatch), asyncio.Event(), []
    alive = Record.alive

    def counted(record: Record, gates: Gates) -> None:
        alive(record, gates)
        ticks.append(record)
        if len(ticks) == 10:
            ticked.set()

    monkeypatch.setattr(Record, "alive", counted)
    fake.answers["small"] = Answer(whole("Good day."), JSON, gate=gate, gated_head=True)
    await row("house", f"{fake.url}/v1")
    asking = asyncio.create_task(ask(await new_key(), "house/small"))
    async with asyncio.timeout(60):
        await ticked.wait()
    assert written.none()
    gate.set()
    _, _, headers = await asking
    await ended(headers["X-Sluicegate-Session"])


async def test_an_end_that_somebody_else_wrote_before_is_told(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """What guardrails found is in no row then: whoever runs the server has to know."""
    gate = threading.Event()
    fake.answers["small"] = Answer(whole("Good day."), JSON, gate=gate, gated_head=True)
    await row("house", f"{fake.url}/v1")
    asking = asyncio.create_task(ask(await new_key(), "house/small"))
    assert await asyncio.to_thread(fake.writing.wait, 60)
    session = await AuditSession.objects.aget()
    later = timezone.now() + timedelta(hours=1)
    lost = database_sync_to_async(sessions.end_lost)
    assert await lost(session_id=str(session.pk), stale_before=later, error="swept")
    with capture_logs() as logs:
        gate.set()
        await asking
        await ended(str(session.pk))
    assert [one["session"] for one in logs if one["event"] == "ending_not_stored"] == [str(session.pk)]
