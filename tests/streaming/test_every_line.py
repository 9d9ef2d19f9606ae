"""Every line that is logged about a session bears the id of the call that it belongs to, in whatever thread or process.

Nothing is logged where all goes well, so here everything that can go wrong beside an answer does.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from typing import Any, ClassVar

import pytest
from asgiref.sync import async_to_sync
from channels.db import database_sync_to_async
from channels.testing import WebsocketCommunicator
from django.test import AsyncClient
from django.utils import timezone

from guardrails.findings import Verdict
from guardrails.kinds import base
from guardrails.kinds.base import CheckRequest, Config, Kind, Services
from guardrails.performance import Checkpoint, Family, PerformanceCharacteristics, PerformanceClass
from guardrails.policy import compile_policy
from guardrails.selectors import Running
from project.asgi import application
from project.logs import logging_config
from streaming import limits, registry, tasks
from streaming.conf import conf
from streaming.consumers import StreamConsumer
from streaming.log import LogUnavailable
from streaming.log_redis import RedisLog, close_shared_log, shared_log
from streaming.models import AuditSession, DeferredCheck, GuardedStream
from tests.streaming.test_stream_api import new_key

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("demo_policy", "valkey_url")]
ID = "order-4711"
Line = dict[str, Any]


class Breaks(Kind[Config]):
    """Fails whenever it is asked."""

    name: ClassVar[str]
    family = Family.LOCAL_ML
    description = "For tests."
    performance = PerformanceCharacteristics(PerformanceClass.MODERATE, 1, 2, 3, earliest_checkpoint=Checkpoint.BATCHED)
    Config = Config

    async def check(self, request: CheckRequest, services: Services) -> Verdict:
        raise RuntimeError("it does not work")


@pytest.fixture(autouse=True)
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A policy whose guardrails fail, in the call and in the worker, and a broker that is away."""
    base.all_kinds()
    monkeypatch.setattr(Breaks, "name", "trial_breaks", raising=False)
    monkeypatch.setitem(base._REGISTRY, "trial_breaks", Breaks)  # type: ignore[arg-type]
    kind = {"kind": "trial_breaks", "action": "block", "on_error": "allow", "applies_to": ["prompt", "response"]}
    at_once, later = {**kind, "name": "at_once", "mode": "BLOCK"}, {**kind, "name": "later", "mode": "MONITOR"}
    policy = compile_policy({"policy": "t", "guardrails": [at_once, later]}, version=1, digest="sha256:t")

    async def load(name: str, whose: object = None) -> Running:
        return Running(policy)

    def refuse(*args: object, **kwargs: object) -> None:
        raise tasks.OperationalError("away")

    for module in ("streaming.api.check", "streaming.api.stream", "streaming.chat"):
        monkeypatch.setattr(f"{module}.load_running", load)
    for module in ("streaming.guarded.service", "streaming.deferred"):
        monkeypatch.setattr(f"{module}.policy_by_digest", lambda digest: policy)
    monkeypatch.setattr(tasks.check, "apply_async", refuse)
    monkeypatch.setenv("SLUICEGATE_SCRIPTED_RATE", "2000")


class Lines(logging.Handler):
    """What would stand in the log of an installation that writes JSON."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        line = dict(logging_config(json_lines=True)["formatters"]["line"])  # type: ignore[index]
        self.setFormatter(line.pop("()")(**line))
        self.written: list[Line] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.written.append(json.loads(self.format(record)))

    def of(self, *events: str) -> list[Line]:
        """All lines, if these events are among them and each of them bears the id."""
        assert {*events} <= {line["event"] for line in self.written}, self.written
        wrong = [line for line in self.written if line.get("correlation_id") != ID]
        assert not wrong, wrong
        return self.written


@contextmanager
def logged() -> Iterator[Lines]:
    made, root = Lines(), logging.getLogger()
    root.addHandler(made)
    try:
        yield made
    finally:
        root.removeHandler(made)


@asynccontextmanager
async def caller() -> AsyncIterator[Caller]:
    yield Caller(await new_key())
    await registry.shutdown()
    await close_shared_log()


class Caller:
    """Calls that all carry the id."""

    def __init__(self, key: str) -> None:
        self.headers = {"Authorization": f"Bearer {key}", "X-Correlation-ID": ID}

    async def post(self, path: str, **body: object) -> Line:
        response = await AsyncClient().post(
            f"/v1/{path}", json.dumps(body), content_type="application/json", headers=self.headers
        )
        assert response.headers["X-Correlation-ID"] == ID
        said: Line = json.loads(response.content)
        return said

    async def events(self, session_id: str) -> str:
        response = await AsyncClient().get(f"/v1/stream/events?session_id={session_id}", headers=self.headers)
        assert response.headers["X-Correlation-ID"] == ID
        return b"".join([part async for part in response]).decode()


async def streamed(client: Caller) -> str:
    session_id = (await client.post("stream/start", delta="One. "))["session_id"]
    await client.post("stream/update", session_id=session_id, seq=2, delta="Two. ")
    await client.post("stream/finish", session_id=session_id, seq=3, delta="Three.")
    return str(session_id)


async def test_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream whose guardrails fail at each call, whose limits cannot be counted and whose checks cannot be queued."""
    with logged() as lines:
        async with caller() as client:
            with monkeypatch.context() as patched:
                patched.setattr(limits, "shared_log", Away)
                session_id = await streamed(client)
    written = lines.of("check_failed", "check_not_queued", "rate_limit_not_counted")
    failed = [line for line in written if line["event"] == "check_failed"]
    assert len(failed) == 3, "in each of the three calls"
    assert [line.get("session") for line in failed[1:]] == [session_id] * 2
    assert [line["session"] for line in written if line["event"] == "check_not_queued"] == [session_id]


class Away:
    """A store that cannot be reached."""

    def hasten(self) -> None:
        """Nothing comes of it."""

    async def evaluate(self, *args: object) -> object:
        raise LogUnavailable("away")


async def test_a_check_of_a_whole_text_and_a_call_that_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("it does not work")

    with logged() as lines:
        async with caller() as client:
            await client.post("check", text="One. Two.", kind="response")
            lines.of("check_failed", "check_not_queued")
            monkeypatch.setattr("streaming.sessions.record_check", broken)
            said = await client.post("check", text="One. Two.", kind="response")
    assert said["error"]["code"] == "internal"
    assert "it does not work" in str(lines.of("call_failed"))


async def test_an_answer_of_ours_and_its_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pump goes on when the call is over, and a reader comes with a call that is over before its first event."""

    async def broken(*args: object) -> object:
        raise RuntimeError("it does not work")

    with logged() as lines:
        async with caller() as client:
            session_id = (await client.post("chat", prompt="Hello.", provider="scripted"))["session_id"]
            await client.events(session_id)
            lines.of("check_failed")
            monkeypatch.setattr(RedisLog, "read", broken)
            await client.events(session_id)
    assert session_id in {line.get("session") for line in lines.of("reader_failed")}


@asynccontextmanager
async def socket(key: str, **headers: str) -> AsyncIterator[WebsocketCommunicator]:
    pairs = [(b"host", b"localhost"), (b"authorization", f"Bearer {key}".encode())]
    pairs += [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    made = WebsocketCommunicator(application, "/ws/stream/", headers=pairs)  # type: ignore[arg-type]
    assert (await made.connect(timeout=60))[0]
    yield made
    await made.disconnect(timeout=60)


async def until(made: WebsocketCommunicator, kind: str) -> Line:
    while True:
        said: Line = json.loads(await made.receive_from(timeout=60))
        if said["type"] == kind:
            return said


async def test_frames_of_a_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """What its opener named bears that name; what is about a session that began elsewhere, the session's."""

    def broken(*args: object) -> object:
        raise RuntimeError("it does not work")

    with logged() as lines:
        async with caller() as client:
            key = client.headers["Authorization"].removeprefix("Bearer ")
            async with socket(key, x_correlation_id=ID) as made:
                with monkeypatch.context() as patched:
                    patched.setattr(limits, "shared_log", Away)
                    await made.send_to('{"type": "start", "prompt": "Hello.", "provider": "scripted"}')
                    session_id = (await until(made, "state"))["session_id"]
                await until(made, "done")
                lines.of("rate_limit_not_counted", "check_failed")
            monkeypatch.setattr(StreamConsumer, "read", broken)
            monkeypatch.setattr(RedisLog, "interrupt", broken)
            async with socket(key) as another:
                for kind in ("resume", "interrupt"):
                    await another.send_to(json.dumps({"type": kind, "session_id": session_id}))
                    await until(another, "error")
    failed = [line for line in lines.of("frame_failed") if line["event"] == "frame_failed"]
    assert len(failed) == 2


async def test_every_frame_that_is_about_no_session_has_an_id_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> object:
        raise RuntimeError("it does not work")

    monkeypatch.setattr(StreamConsumer, "acknowledge", broken)
    with logged() as lines:
        async with caller() as client, socket(client.headers["Authorization"].removeprefix("Bearer ")) as made:
            for _ in range(2):
                await made.send_to('{"type": "ack", "seq": 1}')
                await until(made, "error")
    ids = [line.get("correlation_id") for line in lines.written if line["event"] == "frame_failed"]
    assert len({*ids} - {None, ""}) == 2, lines.written


async def test_a_stream_whose_state_is_lost() -> None:
    with logged() as lines:
        async with caller() as client:
            session_id = (await client.post("stream/start", delta="One. "))["session_id"]
            await shared_log().evaluate("redis.call('FLUSHALL') return 1", [], [])
            await database_sync_to_async(drop_state)()
            said = await client.post("stream/update", session_id=session_id, seq=2, delta="Two. ")
    assert said["error"]["code"] == "state_lost"
    (line,) = [one for one in lines.of("stream_state_lost") if one["event"] == "stream_state_lost"]
    assert line["session"] == session_id


def drop_state() -> None:
    GuardedStream.objects.update(sealed_state=None)


def test_workers_write_the_id_of_the_call_that_began_it_all() -> None:
    """No call is under way in a worker: the id comes from the session's row."""

    async def begin() -> None:
        async with caller() as client:
            await streamed(client)

    async_to_sync(begin)()
    check = DeferredCheck.objects.get()
    with logged() as lines:
        tasks.check(check.pk)
    assert {line["session"] for line in lines.of("check_failed")} == {str(check.session_id)}


def test_the_sweep_writes_the_ids_of_the_sessions_that_it_ends() -> None:
    async def begin() -> None:
        async with caller() as client:
            await client.post("stream/start", delta="One. ")
            await client.post("chat", prompt="Hello.", provider="scripted")
            await shared_log().evaluate("redis.call('FLUSHALL') return 1", [], [])

    async_to_sync(begin)()
    drop_state()
    long_ago = timezone.now() - timedelta(seconds=conf().stream_expiry_s + conf().stale_s + 1)
    AuditSession.objects.update(heartbeat_at=long_ago, state="ACTIVE")
    with logged() as lines:
        tasks.sweep()
    summary = [line for line in lines.written if line["event"] == "swept"]
    assert [line.get("correlation_id") for line in summary] == [None], "it is about no single session"
    lines.written.remove(summary[0])
    lines.of("session_lost", "stream_state_lost")
