"""One request, one row: what passed the gateway is in the audit log like everything else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from channels.db import database_sync_to_async
from django.db import OperationalError
from django.test import AsyncClient
from pytest_django.fixtures import Settings

from guardrails.findings import Verdict
from guardrails.kinds import base
from guardrails.kinds.ai_judge import AiJudgeKind
from guardrails.models import Scope
from guardrails.policy import compile_policy
from guardrails.selectors import Running
from guardrails.services import create_api_key, install
from streaming import endings, registry, sessions, tasks
from streaming.api.gateway import front
from streaming.api.gateway.ollama import FRONT as OLLAMA
from streaming.api.gateway.wire import Reader
from streaming.audit.screens.detail import session_view
from streaming.gateway.relay import Over, Told
from streaming.log_redis import close_shared_log
from streaming.models import AuditEntry, AuditSession
from streaming.providers.scripted import SCENARIOS
from tests.streaming.test_conversation_context import Remembers
from tests.streaming.test_conversation_context import policy as listening

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("demo_policy", "valkey_url")]


@pytest.fixture(autouse=True)
async def closing(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    async def queue(session_id: str) -> None:
        return None

    monkeypatch.setattr(tasks, "queue_session", queue)
    monkeypatch.setenv("SLUICEGATE_SCRIPTED_RATE", "20000")
    yield
    await registry.shutdown()
    await close_shared_log()


@database_sync_to_async
def new_key(policy: str = "") -> str:
    return create_api_key(name=f"key {policy}", scopes=list(Scope), policy=policy)[1]


async def ask(key: str, model: str, text: str = "Hello", **more: object) -> tuple[int, bytes, dict[str, str]]:
    body = {"model": model, "messages": [{"role": "user", "content": text}], **more}
    headers = {"Authorization": f"Bearer {key}", "X-Correlation-ID": "from-the-client"}
    response = await AsyncClient().post(
        "/v1/chat/completions", json.dumps(body), content_type="application/json", headers=headers
    )
    if response.streaming:
        return (
            response.status_code,
            b"".join([part async for part in response.streaming_content]),
            dict(response.items()),
        )
    return response.status_code, response.content, dict(response.items())


async def ended(session_id: str) -> AuditSession:
    """The row once its relay has written the end."""
    if (task := registry._tasks.get(session_id)) is not None:
        await asyncio.wait({task}, timeout=60)
    return await AuditSession.objects.select_related("prompt", "answer").aget(pk=session_id)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_it_works(stream: bool) -> None:
    status, said, headers = await ask(await new_key(), "scripted/pii", "my card is 4111 1111 1111 1111", stream=stream)
    assert status == 200
    assert b"536-22" not in said
    session = await ended(headers["X-Sluicegate-Session"])
    assert (session.origin, session.state, session.outcome) == ("gateway", "COMPLETE", "redacted")
    assert (session.policy_name, session.provider, session.streaming) == ("basic", "scripted", stream)
    assert session.correlation_id == "from-the-client"
    assert session.prompt is not None
    assert session.answer is not None
    assert session.prompt.content.startswith("my card is MASK-CARD-")
    assert "[SSN]" in session.answer.content
    assert "536-22-8145" not in session.answer.content
    texts = (await database_sync_to_async(session_view)(session)).texts
    assert [text.over.placed for text in texts] == [True, True]
    assert all(any(run.chip and run.numbers for run in text.over.segments) for text in texts), "marked and numbered"
    assert session.answer.metadata["stop_reason"] == "stop"
    assert session.first_token_ms is None, "the admin's figures are of the chat"
    assert await session.findings.acount() >= 4
    assert await AuditSession.objects.acount() == 1
    kinds = [kind async for kind in AuditEntry.objects.order_by("seq").values_list("kind", flat=True)]
    assert kinds == ["opened", "sealed"]


@pytest.mark.parametrize("policy", ["content_moderation", "medical"])
async def test_guardrails_that_are_asked_hold_and_let_go(policy: str) -> None:
    """Sentences wait for their verdicts, and what ends the answer waits for the last of them."""
    key = await new_key(policy)
    _, whole, _ = await ask(key, "scripted/clean", "How does a lock on a canal work?")
    status, said, headers = await ask(key, "scripted/clean", "How does a lock on a canal work?", stream=True)
    assert status == 200
    *chunks, done = [line.removeprefix(b"data: ") for line in said.split(b"\n\n") if line.startswith(b"data: ")]
    assert done == b"[DONE]"
    parts = [json.loads(one)["choices"][0] for one in chunks]
    assert [part["finish_reason"] for part in parts][-1] == "stop"
    text = "".join(part["delta"].get("content", "") for part in parts)
    assert text == json.loads(whole)["choices"][0]["message"]["content"] == SCENARIOS["clean"].answer
    await ended(headers["X-Sluicegate-Session"])


async def test_a_blocked_prompt_is_a_row_of_its_own_and_asks_nobody() -> None:
    document = {"policy": "no", "guardrails": [{"name": "w", "kind": "keywords", "config": {"keywords": ["heron"]}}]}
    await database_sync_to_async(install)(document=document)
    status, said, headers = await ask(await new_key("no"), "scripted-1", "a heron")
    assert (status, json.loads(said)["choices"][0]["finish_reason"]) == (200, "content_filter")
    assert headers["X-Sluicegate-Action"] == "block"
    assert "X-Sluicegate-Upstream" not in headers
    session = await ended(headers["X-Sluicegate-Session"])
    assert (session.outcome, session.chars_in, session.withheld) == ("blocked", 0, len("heron"))


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """An upstream that is offered and that nobody reaches."""
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "k")


@pytest.mark.usefixtures("nowhere")
async def test_a_blocked_value_where_a_model_is_named_stands_in_no_record() -> None:
    document = {"policy": "no", "guardrails": [{"name": "pii", "kind": "pii", "action": "block"}]}
    await database_sync_to_async(install)(document=document)
    value = "desk.seven@example.com"
    key = await new_key("no")
    _, _, headers = await ask(key, value, "Hello")
    session = await ended(headers["X-Sluicegate-Session"])
    assert session.outcome == "blocked"
    assert session.prompt is not None
    assert session.answer is not None
    kept = [session.provider, session.model, session.prompt.metadata, session.answer.metadata]
    kept += [entry.body async for entry in AuditEntry.objects.all()]
    assert value not in str(kept)
    _, _, headers = await ask(key, "gpt-9", f"to {value}")
    assert (await ended(headers["X-Sluicegate-Session"])).model == "gpt-9", "whose name holds nothing"


@pytest.mark.usefixtures("nowhere")
async def test_a_request_that_is_refused_for_a_picture_is_a_row_with_what_was_found_beside_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By rules: nobody is paid to look at what goes nowhere."""
    questions: list[object] = []

    async def check(self: AiJudgeKind, *asked: object) -> Verdict:
        questions.append(asked)
        return Verdict(hit=False, score=0.0)

    parts = [
        {"type": "text", "text": "my card is 4111 1111 1111 1111"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}},
    ]
    rules = {"name": "pii", "kind": "pii", "action": "mask", "applies_to": ["prompt"]}
    judge = {
        "name": "harm", "kind": "ai_judge", "mode": "BLOCK", "action": "block", "applies_to": ["prompt"],
        "config": {"rubric": "harm"},
    }  # fmt: skip
    await database_sync_to_async(install)(document={"policy": "no", "guardrails": [rules, judge]})
    monkeypatch.setattr(AiJudgeKind, "check", check)
    headers = {"Authorization": f"Bearer {await new_key('no')}"}
    for stream in (False, True):
        body = {"model": "gpt-9", "messages": [{"role": "user", "content": parts}], "stream": stream}
        refused = await AsyncClient().post(
            "/v1/chat/completions", json.dumps(body), content_type="application/json", headers=headers
        )
        assert refused.status_code == 400
    for session in [one async for one in AuditSession.objects.select_related("prompt")]:
        assert (session.outcome, session.error_code, session.state) == ("error", "media_refused", "COMPLETE")
        assert session.prompt is not None
        assert session.prompt.content.startswith("my card is MASK-CARD-")
        assert [finding.guardrail async for finding in session.findings.all()] == ["pii"]
    assert await AuditSession.objects.acount() == 2
    assert questions == []


async def test_where_an_answer_is_blocked_those_who_only_watch_are_asked_as_in_the_chat() -> None:
    words = {"name": "w", "kind": "keywords", "action": "block", "config": {"keywords": ["lock"]}}
    judge = {"name": "harm", "kind": "ai_judge", "mode": "MONITOR", "config": {"rubric": "harm"}}
    await database_sync_to_async(install)(document={"policy": "no", "guardrails": [words, judge]})
    _, _, headers = await ask(await new_key("no"), "scripted/clean", "How does it work?", stream=True)
    session = await ended(headers["X-Sluicegate-Session"])
    assert session.outcome == "blocked"
    asked = session.deferred_checks.values_list("guardrail", "applies_to")
    assert {one async for one in asked} == {("harm", "prompt"), ("harm", "response")}


async def test_an_upstream_that_cannot_be_reached_is_a_row_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    status, said, headers = await ask(await new_key(), "gpt-x", stream=True)
    assert status == 503
    assert json.loads(said)["error"]["type"] == "server_error"
    session = await ended(headers["X-Sluicegate-Session"])
    assert (session.outcome, session.error_code) == ("error", "provider_unavailable")


async def test_the_next_upstream_is_asked_where_one_is_named(monkeypatch: pytest.MonkeyPatch, settings: object) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    settings.SLUICEGATE_FALLBACKS = ["scripted"]  # type: ignore[attr-defined]
    status, said, headers = await ask(await new_key(), "gpt-x", stream=True)
    assert status == 200
    assert said.endswith(b"data: [DONE]\n\n")
    session = await ended(headers["X-Sluicegate-Session"])
    assert session.answer is not None
    assert (session.answer.metadata["provider"], session.fallback) == ("scripted", "provider_unavailable")


async def test_a_client_hears_something_while_text_is_held(settings: Settings) -> None:
    settings.SLUICEGATE_GATEWAY_HEARTBEAT_S = 0.01

    class Held:
        told: asyncio.Queue[Told] = asyncio.Queue()
        answered = True

    task: asyncio.Task[None] = asyncio.ensure_future(asyncio.sleep(3_600))
    reader = Reader(Held(), task, OLLAMA)  # type: ignore[arg-type]
    frames = reader.frames(await reader.first(may_wait_on=True))
    assert json.loads(await anext(frames)) == {"message": {"role": "assistant", "content": ""}, "done": False}
    Held.told.put_nowait({"message": {"content": "Good"}, "done": False})
    said = await anext(frames)
    while b"Good" not in said:
        said = await anext(frames)
    assert json.loads(await anext(frames))["message"]["content"] == "", "a sign of life in the middle as well"
    Held.told.put_nowait(Over())
    async for more in frames:
        assert json.loads(more)["message"]["content"] == ""
    task.remove_done_callback(reader._ended)
    task.cancel()


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_who_judges_an_answer_is_told_the_conversation_as_it_went_upstream(
    monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    base.all_kinds()
    monkeypatch.setattr(Remembers, "name", "trial_remembers", raising=False)
    monkeypatch.setitem(base._REGISTRY, "trial_remembers", Remembers)  # type: ignore[arg-type]
    monkeypatch.setattr(Remembers, "heard", [], raising=False)

    def load(found: object) -> Running:
        return Running(listening())

    monkeypatch.setattr(front, "running_of", load)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "My number is 536-22-8145."},
        {"role": "assistant", "content": "Noted."},
        {"role": "user", "content": [{"type": "text", "text": "How does a lock work?"}]},
    ]
    key = await new_key()
    status, _, headers = await ask(key, "scripted/clean", messages=messages, stream=stream)
    assert status == 200
    await ended(headers["X-Sluicegate-Session"])
    before = [("system", "Be brief."), ("user", "My number is [SSN]."), ("assistant", "Noted.")]
    asked = {text: turns for text, turns in Remembers.heard}
    assert asked["How does a lock work?"] == before, "the last message is told what came before it"
    of_the_answer = [turns for text, turns in Remembers.heard if text.strip() and text in SCENARIOS["clean"].answer]
    assert of_the_answer
    assert all(turns == [*before, ("user", "How does a lock work?")] for turns in of_the_answer)
    assert not any("536-22" in text for _, turns in Remembers.heard for _, text in turns), "what is hidden stays so"


async def test_a_guardrail_in_monitor_looks_at_all_of_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """One way to try a version on the gateway."""
    tried = {"name": "w", "kind": "keywords", "mode": "MONITOR", "config": {"keywords": ["heron", "lock"]}}
    active = compile_policy({"policy": "t", "guardrails": [tried]}, version=1, digest="sha256:t")

    def load(found: object) -> Running:
        return Running(active)

    monkeypatch.setattr(front, "running_of", load)
    status, said, headers = await ask(await new_key(), "scripted/clean", "a heron")
    assert (status, json.loads(said)["choices"][0]["message"]["content"]) == (200, SCENARIOS["clean"].answer)
    session = await ended(headers["X-Sluicegate-Session"])
    assert (session.outcome, session.shadow_version, session.shadow_comparison) == ("allowed", 0, "")
    assert {one.mode async for one in session.findings.all()} == {"MONITOR"}


async def test_a_database_that_is_away_holds_up_nobodys_words_and_the_end_is_stored_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(endings, "AGAIN_S", 0.01)
    monkeypatch.setattr("streaming.gateway.relay.ALIVE_EVERY_S", 0.001)
    finish, tried = sessions.finish_streaming, []

    def away(**_: object) -> bool:
        raise OperationalError("away")

    def away_twice(**ending: object) -> object:
        tried.append(ending)
        return away() if len(tried) < 3 else finish(**ending)  # type: ignore[arg-type]

    monkeypatch.setattr(sessions, "keep_partial", away)
    monkeypatch.setattr(sessions, "finish_streaming", away_twice)
    status, said, headers = await ask(await new_key(), "scripted/clean", stream=True)
    assert status == 200
    assert said.endswith(b"data: [DONE]\n\n")
    row = await ended(headers["X-Sluicegate-Session"])
    assert len(tried) == 3
    assert (row.state, row.outcome) == ("COMPLETE", "allowed")
    assert row.answer is not None
    assert row.answer.content == SCENARIOS["clean"].answer
