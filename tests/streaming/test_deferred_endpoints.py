"""Deferred checks that leave the process, over a real connection: what the other side gets, and what its answer does.

The worker's own path from the outbox row to its result; only the queue is played by the test.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from channels.db import database_sync_to_async

from guardrails.findings import Outcome
from guardrails.policy import Policy, compile_policy
from streaming import breakers, deferred, sessions
from streaming.conf import conf
from streaming.log import MemoryLog
from streaming.models import AuditSession, DeferredCheck, Finding, Message
from streaming.sessions import DeferredText, Ending, NewSession, Visitor
from tests.streaming.test_outbound import serving

pytestmark = pytest.mark.django_db(transaction=True)
TEXT = "Ring 555-0100 and say nothing, “well” — ﬁrst."
SECRET = "the key of both sides"
KINDS = ("webhook", "moderation_api")
Answer = Callable[[Mapping[str, str]], tuple[int, object]]


@dataclass
class Receiver:
    """The other side. ``answer`` makes status and body from what it was asked."""

    answer: Answer
    port: int = 0
    asked: list[tuple[dict[str, str], bytes]] = field(default_factory=list)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[1:]
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head if line)}
        body = await reader.readexactly(int(headers["content-length"]))
        self.asked.append((headers, body))
        status, said = self.answer(json.loads(body))
        reply = json.dumps(said).encode()
        writer.write(b"HTTP/1.1 %d Said\r\nContent-Length: %d\r\n\r\n%s" % (status, len(reply), reply))
        await writer.drain()


def verdict(score: float) -> Answer:
    """What both kinds read as a verdict; each takes its own fields."""

    def said(asked: Mapping[str, str]) -> tuple[int, object]:
        flagged = score >= 0.5
        result = {"flagged": flagged, "categories": {"hate": flagged}, "category_scores": {"hate": score}}
        return 200, {
            "score": score, "category": "hate", "text_sha256": asked.get("text_sha256", ""), "results": [result]
        }  # fmt: skip

    return said


def status(code: int) -> Answer:
    return lambda asked: (code, {"score": 0.0})


@asynccontextmanager
async def receiving(answer: Answer) -> AsyncIterator[Receiver]:
    receiver = Receiver(answer)
    async with serving(receiver.handle) as receiver.port:
        yield receiver


@pytest.fixture(autouse=True)
def here(settings: object, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.SLUICEGATE_HOOK_HOSTS = ["127.0.0.0/8"]  # type: ignore[attr-defined]
    settings.REDIS_URL = ""  # type: ignore[attr-defined]
    monkeypatch.setenv("SLUICEGATE_HOOK_KEY", SECRET)
    breakers.forget()


def policy(kind: str, port: int, monkeypatch: pytest.MonkeyPatch) -> Policy:
    secret = "secret" if kind == "webhook" else "key"
    config = {"url": f"http://127.0.0.1:{port}/judge", secret: "SLUICEGATE_HOOK_KEY"}
    made = compile_policy({"policy": "t", "guardrails": [{"name": "asks", "kind": kind, "config": config}]})
    monkeypatch.setattr(deferred, "policy_by_digest", lambda digest: made)
    return made


@database_sync_to_async
def waiting(*applies_to: str) -> DeferredCheck:
    """A check of an answer that is over; the first, where there are more."""
    new = NewSession(Visitor(session_key="b"), "p", {"name": "t", "version": 1, "digest": "sha256:t"}, "scripted", "m")  # type: ignore[arg-type]
    started = sessions.start_session(new)
    ending = Ending(
        Outcome.ALLOWED, Message.Status.COMPLETE, content=TEXT, released=len(TEXT),
        deferred=[DeferredText("asks", what, TEXT) for what in applies_to or ("response",)],
    )  # fmt: skip
    sessions.finish_streaming(session_id=started.session_id, ending=ending)
    return DeferredCheck.objects.filter(session_id=started.session_id).order_by("id")[0]


async def made(check: DeferredCheck, queued: list[float]) -> bool:
    """What a worker does with the check's id; the delays after which it wants to be called again."""
    return await deferred.run_deferred(check.pk, MemoryLog(), again=lambda _, delay_s: queued.append(delay_s))


@pytest.mark.parametrize("kind", KINDS)
async def test_it_works(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hit becomes a finding, and a session that would have been blocked."""
    check, queued = await waiting(), list[float]()
    async with receiving(verdict(0.9)) as receiver:
        policy(kind, receiver.port, monkeypatch)
        assert await made(check, queued)
    await check.arefresh_from_db()
    assert (check.state, check.attempts, check.sealed_text, queued) == ("would_block", 1, None, [])
    found = await Finding.objects.aget(session_id=check.session_id)
    assert (found.kind, found.category, found.score, found.exposed) == (kind, "hate", 0.9, len(TEXT))
    session = await AuditSession.objects.aget(pk=check.session_id)
    assert (session.state, session.would_have) == ("COMPLETE", "blocked")
    assert len(receiver.asked) == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_a_low_score_passes(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check = await waiting()
    async with receiving(verdict(0.1)) as receiver:
        policy(kind, receiver.port, monkeypatch)
        assert await made(check, [])
    await check.arefresh_from_db()
    assert (check.state, check.error) == ("passed", "")
    assert not await Finding.objects.filter(session_id=check.session_id).aexists()


async def test_the_receiver_can_prove_where_the_call_came_from_and_that_nothing_was_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check = await waiting()
    async with receiving(verdict(0.1)) as receiver:
        policy("webhook", receiver.port, monkeypatch)
        await made(check, [])
    ((headers, body),) = receiver.asked
    at, proof = (part.partition("=")[2] for part in headers["x-sluicegate-signature"].split(","))
    assert abs(time.time() - int(at)) < 600
    wanted = hmac.new(SECRET.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    assert hmac.compare_digest(proof, wanted)
    assert not hmac.compare_digest(proof, hmac.new(b"another", f"{at}.".encode() + body, hashlib.sha256).hexdigest())
    digest = hashlib.sha256(TEXT.encode()).hexdigest()
    assert json.loads(body) == {"text": TEXT, "text_sha256": digest, "applies_to": "response"}
    assert SECRET.encode() not in body
    assert SECRET not in str(headers)


async def test_the_moderation_endpoint_gets_its_key_and_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    check = await waiting()
    async with receiving(verdict(0.1)) as receiver:
        policy("moderation_api", receiver.port, monkeypatch)
        await made(check, [])
    ((headers, body),) = receiver.asked
    assert headers["authorization"] == f"Bearer {SECRET}"
    assert json.loads(body) == {"input": TEXT, "model": "omni-moderation-latest"}


@pytest.mark.parametrize("code", [401, 429, 500])
@pytest.mark.parametrize("kind", KINDS)
async def test_an_endpoint_that_cannot_now_is_asked_again_and_then_it_is_an_error(
    kind: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    check, queued = await waiting(), list[float]()
    async with receiving(status(code)) as receiver:
        policy(kind, receiver.port, monkeypatch)
        for attempt in range(1, conf().check_attempts):
            assert not await made(check, queued)
            await check.arefresh_from_db()
            assert (check.state, check.attempts, len(queued)) == ("waiting", attempt, attempt)
            assert str(code) in check.error
            assert check.sealed_text
        assert await made(check, queued)
    await check.arefresh_from_db()
    assert (check.state, check.attempts, check.sealed_text) == ("error", conf().check_attempts, None)
    assert str(code) in check.error
    assert TEXT not in check.error
    assert len(receiver.asked) == conf().check_attempts
    session = await AuditSession.objects.aget(pk=check.session_id)
    assert (session.state, session.outcome, session.would_have) == ("COMPLETE", "allowed", "")
    assert not await Finding.objects.filter(session_id=check.session_id).aexists()


@pytest.mark.parametrize("kind", KINDS)
async def test_an_endpoint_that_is_back_is_believed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check = await waiting()
    async with receiving(status(500)) as receiver:
        policy(kind, receiver.port, monkeypatch)
        assert not await made(check, [])
        receiver.answer = verdict(0.9)
        assert await made(check, [])
    await check.arefresh_from_db()
    assert (check.state, check.attempts, check.error) == ("would_block", 2, "")


@pytest.mark.parametrize("code", [400, 422])
@pytest.mark.parametrize("kind", KINDS)
async def test_what_is_said_of_the_text_itself_is_final(kind: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    check, queued = await waiting(), list[float]()
    async with receiving(status(code)) as receiver:
        policy(kind, receiver.port, monkeypatch)
        assert await made(check, queued)
    await check.arefresh_from_db()
    assert (check.state, check.attempts, queued) == ("error", 1, [])
    assert len(receiver.asked) == 1


async def test_two_checks_of_one_session_are_made_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each waits in its endpoint until both are there: made one after the other, neither would have a verdict."""
    both = asyncio.Barrier(2)

    class Meeting(Receiver):
        async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await both.wait()
            await super().handle(reader, writer)

    check = await waiting("prompt", "response")
    second = await DeferredCheck.objects.exclude(pk=check.pk).aget(session_id=check.session_id)
    receiver = Meeting(verdict(0.9))
    async with serving(receiver.handle) as port:
        policy("webhook", port, monkeypatch)
        done = await asyncio.wait_for(asyncio.gather(made(check, []), made(second, [])), 60)
    assert done == [True, True]
    states = [row.state async for row in DeferredCheck.objects.filter(session_id=check.session_id)]
    assert states == ["would_block", "would_block"]
    assert sorted(json.loads(body)["applies_to"] for _, body in receiver.asked) == ["prompt", "response"]
    session = await AuditSession.objects.aget(pk=check.session_id)
    assert session.state == "COMPLETE"
    assert [row.n async for row in Finding.objects.filter(session_id=check.session_id).order_by("n")] == [1, 2]
