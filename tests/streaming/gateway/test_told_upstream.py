"""What leaves the house beside the request itself: headers that go on, and texts that guardrails are asked about."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from django.test import AsyncClient

from guardrails.kinds import base
from guardrails.kinds.ai_judge import fence_mark, fenced_text
from guardrails.performance import Checkpoint, PerformanceCharacteristics, PerformanceClass
from guardrails.policy import Policy, compile_policy
from guardrails.selectors import Running
from streaming.api.gateway import front
from streaming.models import DeferredCheck
from streaming.providers.base import get_provider
from streaming.sealed import unseal
from streaming.sessions import seal_context
from tests.streaming.gateway.fake import JSON, Answer, Fake, upstream
from tests.streaming.gateway.test_openai_sdk import whole
from tests.streaming.gateway.test_records import ask, ended, new_key
from tests.streaming.gateway.test_upstreams import closing, row
from tests.streaming.test_conversation_context import Heard, Remembers

__all__ = ["closing"]
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("demo_policy", "valkey_url")]
MESSAGE = {"id": "m", "type": "message", "role": "assistant", "model": "m", "stop_reason": "end_turn", "usage": {},
           "stop_sequence": None, "content": [{"type": "text", "text": "Good day."}]}  # fmt: skip


@pytest.fixture
def fake() -> Iterator[Fake]:
    with upstream() as found:
        found.answers["small"] = Answer([json.dumps(MESSAGE).encode()], JSON)
        yield found


@pytest.mark.parametrize("said", ["my ssn is 123456789", "how do I cook an egg?"])
async def test_it_works(fake: Fake, said: str) -> None:
    """A header that has a value which is masked in the body stays here; a header without one goes on."""
    await row("house", fake.url, dialect="anthropic")
    headers = {"Authorization": f"Bearer {await new_key()}", "anthropic-beta": "x-123456789",
               "anthropic-version": "2023-06-01"}  # fmt: skip
    body = {"model": "house/small", "max_tokens": 9, "messages": [{"role": "user", "content": said}]}
    response = await AsyncClient().post(
        "/v1/messages", json.dumps(body), content_type="application/json", headers=headers
    )
    assert response.status_code == 200
    _, sent, raw = fake.asked[-1]
    names = {name.lower(): value for name, value in sent.items()}
    assert names["anthropic-version"] == "2023-06-01"
    assert names.get("anthropic-beta") == (None if "ssn" in said else "x-123456789")
    assert b"123456789" not in raw


SAID = "My ssn is 536228145 and my card is 4111 1111 1111 1111. Is 536228145 a prime? Blue. Heron flies."
VALUES = ("536228145", "4111 1111 1111 1111", "4111", "8145")
RULES = [
    {"name": "pii", "kind": "pii", "action": "mask", "applies_to": ["prompt"]},
    {"name": "names", "kind": "keywords", "action": "mask", "config": {"keywords": ["Blue. Heron"]}},
    {"name": "rude", "kind": "keywords", "action": "redact", "config": {"keywords": ["prime"]}},
]


class Near(Remembers):
    """Listens in this process, sentence by sentence."""


class Far(Remembers):
    """Listens over the network."""

    performance = PerformanceCharacteristics(
        PerformanceClass.MODERATE, 1, 2, 3, earliest_checkpoint=Checkpoint.BATCHED, network=True
    )


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[Heard]:
    base.all_kinds()
    found: list[Heard] = []
    for name, kind in (("trial_near", Near), ("trial_far", Far)):
        monkeypatch.setattr(kind, "name", name, raising=False)
        monkeypatch.setattr(kind, "heard", [], raising=False)
        monkeypatch.setitem(base._REGISTRY, name, kind)  # type: ignore[arg-type]
    monkeypatch.setattr(Far, "heard", found, raising=False)
    return found


def with_rules(*more: dict[str, object]) -> Policy:
    return compile_policy({"policy": "p", "guardrails": [*RULES, *more]}, version=1, digest="sha256:p")


def runs(monkeypatch: pytest.MonkeyPatch, policy: Policy) -> None:
    def load(found: object) -> Running:
        return Running(policy)

    monkeypatch.setattr(front, "running_of", load)


@pytest.mark.parametrize("mode", ["BLOCK", "MONITOR"])
async def test_a_guardrail_over_the_network_is_told_no_value_that_is_masked(
    heard: list[Heard], monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """Neither in a text, whichever words of the request make it a value, nor in what was said before it; what is only
    redacted it reads, and one in this process reads everything."""
    both = [
        {"name": name, "kind": f"trial_{name}", "mode": mode, "action": "block", "applies_to": ["prompt"]}
        for name in ("near", "far")
    ]
    runs(monkeypatch, with_rules(*both))
    arguments = json.dumps({"ssn": 536228145, "note": "It is 536228145."})
    call = {"id": "c1", "type": "function", "function": {"name": "send", "arguments": arguments}}
    messages = [
        {"role": "user", "content": "Take 536228145 first."},
        {"role": "assistant", "content": "536228145?", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": json.dumps({"found": ["of 536228145."]})},
        {"role": "user", "content": SAID},
    ]
    status, _, headers = await ask(await new_key(), "scripted/clean", messages=messages)
    assert status == 200
    await ended(headers["X-Sluicegate-Session"])
    texts = [text for text, _ in heard]
    assert len(texts) > 5
    assert "My ssn is MASK-SSNO-" in str(texts)
    assert "prime" in str(texts)
    assert not any(value in str(heard) for value in VALUES)
    assert "Heron" not in str(texts), "a value that goes over two sentences"
    assert "My ssn is 536228145" in str(Near.heard)


@pytest.mark.parametrize("mode", ["BLOCK", "MONITOR"])
async def test_a_judge_at_a_vendor_does_not_get_what_the_model_does_not(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """One that decides is asked before the request goes on; one that watches by a worker, which finds it sealed."""
    judge = {"name": "j", "kind": "ai_judge", "mode": mode, "action": "block", "applies_to": ["prompt"],
             "config": {"provider": "openai", "rubric": "Anything rude."}}  # fmt: skip
    policy = with_rules(judge)
    runs(monkeypatch, policy)
    monkeypatch.setenv("OPENAI_BASE_URL", f"{fake.url}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "k")

    def verdict(body: dict[str, object]) -> Answer:
        messages = body["messages"]
        assert isinstance(messages, list)
        content = json.dumps({"id": fence_mark(messages[-1]["content"]), "score": 0.0, "category": "", "reason": ""})
        return Answer(whole(content), JSON)

    fake.answers[get_provider("openai").default_model] = verdict
    status, _, headers = await ask(await new_key(), "scripted/clean", SAID)
    assert status == 200
    session = await ended(headers["X-Sluicegate-Session"])
    if mode == "MONITOR":
        (check,) = [one async for one in DeferredCheck.objects.filter(session=session)]
        context = seal_context(str(session.pk), "j", check.place, conversed=check.conversed)
        told = unseal(bytes(check.sealed_text or b""), context=context)
    else:
        told = "".join(fenced_text(json.loads(body)["messages"][-1]["content"]) or "" for _, _, body in fake.asked)
    assert "My ssn is MASK-SSNO-" in told
    assert "prime" in told
    sent = b"".join(body for _, _, body in fake.asked).decode()
    assert not any(value in told or value in sent for value in VALUES)
