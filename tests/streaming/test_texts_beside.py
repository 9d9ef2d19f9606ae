"""A guardrail that runs after the answer is asked about every kind of text that it applies to, or it is refused."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping

import pytest
from channels.db import database_sync_to_async
from django.test import AsyncClient
from pytest_django.fixtures import Settings

from guardrails.document import PolicyError
from guardrails.findings import AppliesTo, Verdict
from guardrails.kinds.base import CheckRequest, Services, all_kinds
from guardrails.models import Scope
from guardrails.policy import Policy, compile_policy
from guardrails.services import create_api_key, install
from streaming import breakers, deferred, registry, tasks
from streaming.audit.verify import log_faults
from streaming.beside import Beside
from streaming.checks import Looked
from streaming.core.events import ProviderToolResult, ThinkingDelta, ToolCallDelta
from streaming.log import MemoryLog
from streaming.log_redis import close_shared_log
from streaming.models import AuditSession, DeferredCheck, Finding
from streaming.providers.base import ChatMessage

from .gateway.fake import JSON, Answer, Fake, upstream
from .gateway.test_records import ended
from .pumping import trial

pytestmark = pytest.mark.django_db(transaction=True)
CONFIGS: dict[str, dict[str, object]] = {
    "ai_judge": {"rubric": "harm"},
    "moderation_api": {},
    "webhook": {"url": "https://checks.example/judge", "secret": "SLUICEGATE_HOOK_JUDGE"},
}
TEXTS = {
    "prompt": "What of the prompt?", "response": "Said in the end.", "thinking": "A quiet thought.",
    "tool_arguments": "/tmp/arguments", "tool_result": "What the tool returned.", "document": "Read in a document.",
}  # fmt: skip
Asked = list[tuple[str, str]]


def document(kind: str, applies_to: list[str], mode: str) -> dict[str, object]:
    entry = {"name": "later", "kind": kind, "applies_to": applies_to, "mode": mode, "config": CONFIGS[kind]}
    return {"policy": "trial", "guardrails": [entry]}


@pytest.fixture(autouse=True)
def local() -> Iterator[None]:
    breakers.forget()
    yield
    breakers.forget()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What the kinds were asked about; each text is a hit."""
    found: Asked = []

    async def check(self: object, request: CheckRequest, services: Services) -> Verdict:
        found.append((request.applies_to.value, request.text))
        return Verdict(hit=True, score=0.9)

    for name in CONFIGS:
        monkeypatch.setattr(all_kinds()[name], "check", check)
    return found


async def workers_have_done(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deferred, "policy_by_digest", lambda digest: policy)
    async for pk in DeferredCheck.objects.order_by("pk").values_list("pk", flat=True):
        await deferred.run_deferred(pk, MemoryLog())


async def chat(policy: Policy) -> str:
    """The chat has no documents of its own: what a tool reads is a tool's result."""
    script = [
        ThinkingDelta(TEXTS["thinking"]),
        ToolCallDelta(0, "c1", "read", json.dumps({"path": TEXTS["tool_arguments"]}), ran_by_provider=True),
        ProviderToolResult("c1", TEXTS["tool_result"]), TEXTS["response"],
    ]  # fmt: skip
    one = await trial(script, policy=policy, prompt=TEXTS["prompt"])
    await one.pump.run()
    return one.session_id


def answer(body: Mapping[str, object]) -> Answer:
    said = {
        "id": "m", "type": "message", "role": "assistant", "model": "calm", "stop_reason": "tool_use",
        "usage": {"input_tokens": 1, "output_tokens": 1},
        "content": [
            {"type": "thinking", "thinking": TEXTS["thinking"], "signature": "s"},
            {"type": "text", "text": TEXTS["response"]},
            {"type": "tool_use", "id": "t2", "name": "read", "input": {"path": TEXTS["tool_arguments"]}},
        ],
    }  # fmt: skip
    return Answer([json.dumps(said).encode()], JSON)


def request() -> dict[str, object]:
    """A call whose result and document are new, behind one that the model has answered."""

    def call(number: int, result: str) -> list[dict[str, object]]:
        use = {"type": "tool_use", "id": f"t{number}", "name": "read", "input": {}}
        back = {"type": "tool_result", "tool_use_id": f"t{number}", "content": [{"type": "text", "text": result}]}
        return [{"role": "assistant", "content": [use]}, {"role": "user", "content": [back]}]

    source = {"type": "text", "media_type": "text/plain", "data": TEXTS["document"]}
    *earlier, last = [{"role": "user", "content": "Hello"}, *call(0, "an old result"), *call(1, TEXTS["tool_result"])]
    content = [*last["content"], {"type": "document", "source": source}, {"type": "text", "text": TEXTS["prompt"]}]  # type: ignore[misc]
    return {"model": "claude-calm", "max_tokens": 50, "messages": [*earlier, {"role": "user", "content": content}]}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    with upstream() as found:
        found.answers["claude-calm"] = answer
        monkeypatch.setenv("ANTHROPIC_BASE_URL", found.url)
        monkeypatch.setenv("ANTHROPIC_API_KEY", "k")
        yield found


@pytest.fixture
async def gateway(
    fake: Fake, demo_policy: object, valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[str]:
    async def queue(session_id: str) -> None:
        """Whoever is to make the checks is called by the test."""

    monkeypatch.setattr(tasks, "queue_session", queue)
    yield fake.url
    await registry.shutdown()
    await close_shared_log()


async def through(policy: Mapping[str, object]) -> str:
    await database_sync_to_async(install)(document=policy)
    make = database_sync_to_async(create_api_key)
    _, key = await make(name="key", scopes=list(Scope), policy="trial")
    response = await AsyncClient().post(
        "/v1/messages", json.dumps(request()), content_type="application/json",
        headers={"x-api-key": key, "anthropic-version": "2023-06-01"},
    )  # fmt: skip
    assert response.status_code == 200, response.content
    session_id = str(response["X-Sluicegate-Session"])
    await ended(session_id)
    return session_id


async def test_it_works(asked: Asked, monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    """One row for each kind of text; findings say which kind, and how much of it was shown."""
    settings.REDIS_URL = ""
    kinds = ["prompt", "response", "thinking", "tool_arguments", "tool_result"]
    policy = compile_policy(document("ai_judge", kinds, "MONITOR"), version=3, digest="sha256:trial")
    session_id = await chat(policy)
    rows = DeferredCheck.objects.filter(session_id=session_id)
    assert {row.applies_to async for row in rows} == set(kinds)
    await workers_have_done(policy, monkeypatch)
    found = {one.channel: one async for one in Finding.objects.filter(session_id=session_id)}
    assert set(found) == {"prompt", "text", "thinking", "tool_arguments", "tool_result"}
    assert found["prompt"].exposed == 0, "a prompt is shown to nobody"
    for name in set(found) - {"prompt"}:
        between = 2 if name == "tool_arguments" else 0  # the tool's name, an empty line, and its arguments
        assert found[name].exposed == found[name].end - between > 0
    session = await AuditSession.objects.aget(pk=session_id)
    assert (session.state, session.would_have) == ("COMPLETE", "blocked")
    assert await database_sync_to_async(lambda: list(log_faults()))() == []


SAID = [kind.value for kind in AppliesTo if kind is not AppliesTo.DOCUMENT]
"""What a chat has; documents come through the gateway."""
CASES = [
    *((kind, applies_to, "MONITOR") for kind in CONFIGS for applies_to in SAID),
    *(("ai_judge", applies_to, "BLOCK") for applies_to in SAID),
]


@pytest.mark.parametrize(("kind", "applies_to", "mode"), CASES)
async def test_whoever_names_a_kind_of_text_is_asked_about_it(
    kind: str, applies_to: str, mode: str, asked: Asked, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    settings.REDIS_URL = ""
    policy = compile_policy(document(kind, [applies_to], mode), version=3, digest="sha256:trial")
    session_id = await chat(policy)
    assert bool(asked) is (mode == "BLOCK"), "who decides is asked on the way"
    await workers_have_done(policy, monkeypatch)
    ((about, text),) = asked
    assert about == applies_to
    assert TEXTS[applies_to] in text
    assert (await AuditSession.objects.aget(pk=session_id)).state == "COMPLETE"


@pytest.mark.parametrize("kind", CONFIGS)
async def test_what_is_switched_off_is_not_asked_and_what_cannot_decide_is_refused(
    kind: str, asked: Asked, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    settings.REDIS_URL = ""
    everything = [each.value for each in AppliesTo]
    if kind != "ai_judge":
        for applies_to in everything:
            with pytest.raises(PolicyError, match=r"guardrails\[0\].mode"):
                compile_policy(document(kind, [applies_to], "BLOCK"))
    policy = compile_policy(document(kind, everything, "DISABLED"), version=3, digest="sha256:trial")
    await chat(policy)
    await workers_have_done(policy, monkeypatch)
    assert asked == []


@pytest.mark.usefixtures("gateway")
@pytest.mark.parametrize("applies_to", [kind.value for kind in AppliesTo])
async def test_whoever_names_a_kind_of_text_is_asked_about_it_behind_the_gateway(
    applies_to: str, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = document("webhook", [applies_to], "MONITOR")
    session_id = await through(written)
    await workers_have_done(compile_policy(written), monkeypatch)
    more = {"prompt": {"tool_result", "document"}, "response": {"thinking", "tool_arguments"}}.get(applies_to, set())
    assert {about for about, _ in asked} == {applies_to, *more}
    for about, text in asked:
        assert TEXTS[about] in text
        assert "an old result" not in text, "it was new in an earlier request"
    assert len(asked) == 1 + len(more), "all texts of a kind are one text"
    session = await AuditSession.objects.aget(pk=session_id)
    assert (session.state, session.would_have) == ("COMPLETE", "blocked")
    assert await database_sync_to_async(lambda: list(log_faults()))() == []


@pytest.mark.usefixtures("gateway")
async def test_what_is_masked_in_results_goes_to_no_guardrail_over_the_network_either(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the rule that masks looks at this kind of text alone."""
    written = document("webhook", ["tool_result"], "MONITOR")
    rules = [{"id": "r", "pattern": "What the tool"}]
    mask = {"name": "m", "kind": "regex", "action": "mask", "applies_to": ["tool_result"], "config": {"rules": rules}}
    assert isinstance(written["guardrails"], list)
    written["guardrails"].append(mask)
    await through(written)
    await workers_have_done(compile_policy(written), monkeypatch)
    ((about, text),) = asked
    assert about == "tool_result"
    assert text.endswith(" returned.")
    assert "What the tool" not in text


def test_of_a_conversation_that_is_handed_over_only_new_results_count() -> None:
    policy = compile_policy(document("webhook", ["tool_result", "thinking"], "MONITOR"))
    messages = [ChatMessage(role, "…") for role in ("user", "assistant", "tool", "assistant", "tool", "user")]
    looked = [
        Looked("old", AppliesTo.TOOL_RESULT, "messages[2]"),
        Looked("new", AppliesTo.TOOL_RESULT, "messages[4]"),
        Looked("asked", AppliesTo.PROMPT, "prompt"),
    ]
    beside = Beside(policy)
    beside.given(looked, messages)
    beside.look(Looked("and more", AppliesTo.TOOL_RESULT, "tool_result", released=8))
    beside.look(Looked("arguments that nobody asks about", AppliesTo.TOOL_ARGUMENTS, "tool_arguments"))
    assert [(one.applies_to, one.text, one.shown) for one in beside.deferred()] == [
        ("tool_result", "new\n\nand more", 8)
    ]
