"""A key whose places are all taken costs no judge a call, and sends no text out; what fails gives its place back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from guardrails.findings import Verdict
from guardrails.kinds import base
from guardrails.kinds.base import CheckRequest, Config, Kind, Services
from guardrails.performance import Checkpoint, Family, PerformanceCharacteristics, PerformanceClass
from guardrails.policy import compile_policy
from guardrails.selectors import Running
from streaming import registry
from streaming.chat import Asked, StartRefused, start_chat
from streaming.conf import conf
from streaming.frames import StartFrame
from streaming.log_redis import shared_log
from streaming.models import AuditSession
from streaming.open_sessions import TooManyOpen, place, take_place
from streaming.sessions import Visitor
from tests.streaming.test_stream_api import Client, closing, error, new_key

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("demo_policy", "valkey_url", closing.__name__),
]


class Counts(Kind[Config]):
    """Counts how often it was asked, and answers when it is let."""

    family = Family.LOCAL_ML
    description = "For tests."
    performance = PerformanceCharacteristics(PerformanceClass.MODERATE, 1, 2, 3, earliest_checkpoint=Checkpoint.BATCHED)
    Config = Config
    asked = 0
    called: asyncio.Event
    answers: asyncio.Event | None = None

    async def check(self, request: CheckRequest, services: Services) -> Verdict:
        type(self).asked += 1
        self.called.set()
        if self.answers is not None:
            await self.answers.wait()
        return Verdict(hit=False)


@pytest.fixture(autouse=True)
async def counting(monkeypatch: pytest.MonkeyPatch, settings: object) -> AsyncIterator[None]:
    """Every call is judged by it, and a key may have one session open."""
    base.all_kinds()
    monkeypatch.setattr(Counts, "name", "trial_counts", raising=False)
    monkeypatch.setitem(base._REGISTRY, "trial_counts", Counts)  # type: ignore[arg-type]
    monkeypatch.setattr(Counts, "asked", 0)
    monkeypatch.setattr(Counts, "called", asyncio.Event(), raising=False)
    monkeypatch.setattr(Counts, "answers", None)
    settings.SLUICEGATE_SESSIONS_AT_ONCE = 1  # type: ignore[attr-defined]
    both = ["prompt", "response"]
    counts = {"name": "counts", "kind": "trial_counts", "mode": "BLOCK", "action": "block", "applies_to": both}
    running = Running(compile_policy({"policy": "t", "guardrails": [counts]}, version=1, digest="sha256:t"))

    async def load(name: str, whose: object) -> Running:
        return running

    monkeypatch.setattr("streaming.api.stream.load_running", load)
    monkeypatch.setattr("streaming.chat.load_running", load)
    monkeypatch.setattr("streaming.guarded.service.policy_by_digest", lambda digest: running.policy)
    yield
    await registry.shutdown()


@pytest.fixture
async def client() -> Client:
    return Client(await new_key())


async def chat(client: Client) -> tuple[int, dict[str, object]]:
    body = json.dumps({"prompt": "Who are you? I ask.", "provider": "scripted"})
    answer = await client.http.post("/v1/chat", body, content_type="application/json", headers=client.headers)
    return answer.status_code, json.loads(answer.content)


async def test_it_works(client: Client) -> None:
    await client.start(delta="One sentence. And")
    before = Counts.asked
    assert before == 1
    for status, said in [await client.post("start", {"delta": "Another sentence. And"}), await chat(client)]:
        assert (status, error(said)["code"]) == (429, "too_many_sessions")
    assert Counts.asked == before, "nothing was sent to it for a session that did not begin"
    assert await AuditSession.objects.acount() == 1


@pytest.mark.parametrize("repeated", [False, True], ids=["once", "with-idempotency-key"])
async def test_a_start_that_fails_gives_its_place_back_at_once(
    client: Client, settings: object, repeated: bool
) -> None:
    settings.SLUICEGATE_MAX_OWN_TEXT_CHARS = 20  # type: ignore[attr-defined]
    headers = {"Idempotency-Key": "k"} if repeated else {}
    for _ in range(2):
        status, said = await client.post("start", {"delta": "x" * 21}, **headers)
        assert (status, error(said)["field"]) == (422, "delta")
    assert (await client.post("start", {"delta": "Short. "}))[0] == 201


async def test_an_answer_that_does_not_begin_gives_its_place_back(client: Client) -> None:
    asked = Asked(Visitor(client=client.headers["Authorization"][7:18]), "t")
    for _ in range(2):
        frame = StartFrame(type="start", prompt="Hello", conversation_id=str(uuid4()))
        with pytest.raises(StartRefused) as refused:
            await start_chat(frame, asked, shared_log())
        assert refused.value.code == "unknown_conversation"
    assert (await chat(client))[0] == 201


async def test_a_client_that_goes_away_while_it_is_judged_leaves_no_place_taken(client: Client) -> None:
    """Its call is cancelled; while it was judged the place was its own."""
    Counts.answers = asyncio.Event()
    call = asyncio.create_task(client.post("start", {"delta": "One sentence. And"}))
    await asyncio.wait_for(Counts.called.wait(), 60)
    assert (await client.post("start", {}))[0] == 429
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    Counts.answers.set()
    assert (await client.post("start", {}))[0] == 201


async def test_what_fails_takes_no_place_from_the_session_that_has_it() -> None:
    """Two calls of one name: the place is the one's that took it first, whatever becomes of the other."""
    settings = conf()
    name = str(uuid4())
    assert await take_place(shared_log(), "sg_places", name, settings)
    with pytest.raises(ZeroDivisionError):
        async with place(shared_log(), "sg_places", name, settings):
            raise ZeroDivisionError
    with pytest.raises(TooManyOpen):
        await take_place(shared_log(), "sg_places", str(uuid4()), settings)
