"""Calls that name one conversation: a guardrail that wants to know what was said before is told, and told no more.

What it is told is visible text of the same key's conversation. A check that names none leaves no text behind.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import ClassVar

import pytest
from channels.db import database_sync_to_async
from django.utils import timezone

from guardrails.findings import Verdict
from guardrails.kinds import base
from guardrails.kinds.base import CheckRequest, Config, Kind, Services
from guardrails.performance import Checkpoint, Family, PerformanceCharacteristics, PerformanceClass
from guardrails.policy import Policy, compile_policy
from guardrails.selectors import Running
from streaming import deferred, registry, selectors, tasks
from streaming.audit import retention
from streaming.audit.verify import log_faults
from streaming.log_redis import close_shared_log, shared_log
from streaming.models import AuditSession, Conversation, DeferredCheck, Message
from streaming.sessions import Visitor

from .test_stream_api import Client, Json, new_key

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("demo_policy", "valkey_url")]
SSN = "536-22-8145"
Heard = tuple[str, list[tuple[str, str]]]


class Remembers(Kind[Config]):
    """Keeps what it was asked, with the turns that it was told."""

    family = Family.LOCAL_ML
    description = "For tests."
    performance = PerformanceCharacteristics(PerformanceClass.MODERATE, 1, 2, 3, earliest_checkpoint=Checkpoint.BATCHED)
    wants_conversation = True
    Config = Config
    heard: ClassVar[list[Heard]]

    async def check(self, request: CheckRequest, services: Services) -> Verdict:
        type(self).heard.append((request.text, [(turn.role, turn.text) for turn in request.conversation]))
        return Verdict(hit=False)


def policy(mode: str = "BLOCK") -> Policy:
    """One that listens, beside rules that redact."""
    both = ["prompt", "response"]
    listens = {"name": "listens", "kind": "trial_remembers", "mode": mode, "action": "block", "applies_to": both}
    pii = {"name": "pii", "kind": "pii", "action": "redact", "applies_to": both}
    return compile_policy({"policy": "t", "guardrails": [listens, pii]}, version=1, digest="sha256:t")


@pytest.fixture(autouse=True)
async def running(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[Policy]]:
    """The policy that all calls and workers here find: the last of the list."""
    base.all_kinds()
    monkeypatch.setattr(Remembers, "name", "trial_remembers", raising=False)
    monkeypatch.setitem(base._REGISTRY, "trial_remembers", Remembers)  # type: ignore[arg-type]
    monkeypatch.setattr(Remembers, "heard", [], raising=False)
    given = [policy()]

    async def load(name: str, whose: object) -> Running:
        return Running(given[-1])

    async def queue(session_id: str) -> None:
        """Whoever is to make the checks is called by the tests."""

    monkeypatch.setattr("streaming.api.check.load_running", load)
    monkeypatch.setattr("streaming.api.stream.load_running", load)
    monkeypatch.setattr("streaming.guarded.service.policy_by_digest", lambda digest: given[-1])
    monkeypatch.setattr("streaming.deferred.policy_by_digest", lambda digest: given[-1])
    monkeypatch.setattr(tasks, "queue_session", queue)
    yield given
    await registry.shutdown()
    await close_shared_log()


async def said(client: Client, text: str, kind: str = "prompt", key: str = "c-1") -> None:
    """One stream from start to finish, all of it in its first delta."""
    began = await client.start(delta=text, kind=kind, context={"conversation_id": key})
    status, _ = await client.finish(began["session_id"])
    assert status == 200


async def checked(client: Client, text: str, context: Json, kind: str = "response") -> None:
    body = json.dumps({"text": text, "kind": kind, "context": context})
    answer = await client.http.post("/v1/check", body, content_type="application/json", headers=client.headers)
    assert answer.status_code == 200, answer.content


@database_sync_to_async
def faults() -> list[object]:
    """What ``manage.py audit verify`` would point at."""
    return list(log_faults())


@pytest.fixture
async def client() -> Client:
    return Client(await new_key())


async def test_it_works(client: Client) -> None:
    await said(client, f"My number is {SSN}.")
    await said(client, "I have noted it.", "response")
    turns = [("user", "My number is [SSN].")]
    assert Remembers.heard == [(f"My number is {SSN}.", []), ("I have noted it.", turns)], "what was shown, no more"


async def test_the_delta_of_a_start_is_judged_with_the_same_turns_as_the_next_one(client: Client) -> None:
    await said(client, "Who are you?")
    Remembers.heard.clear()
    began = await client.start(delta="A lock keeper. And", kind="response", context={"conversation_id": "c-1"})
    turns = [("user", "Who are you?")]
    assert Remembers.heard == [("A lock keeper. ", turns)], "while the start is answered"
    await client.update(began["session_id"], 2, " you? Yes")
    assert Remembers.heard[1:] == [("And you? ", turns)]


async def test_a_stream_takes_the_name_of_its_conversation_where_a_check_takes_it(client: Client) -> None:
    """Clients of earlier systems say ``sessionId``; ``conversation_id`` wins where there are both."""
    await said(client, "Who are you?")
    Remembers.heard.clear()
    for context in ({"sessionId": "c-1"}, {"sessionId": "c-2"}, {"sessionId": "c-2", "conversation_id": "c-1"}, {}):
        await client.start(delta="A lock keeper. And", context=context)
    known = [("user", "Who are you?")]
    assert [turns for _, turns in Remembers.heard] == [known, [], [*known, ("assistant", "A lock keeper. ")], []]


async def test_a_check_hears_the_streams_of_its_conversation(client: Client) -> None:
    await said(client, "Who are you?")
    Remembers.heard.clear()
    for context in ({"conversation_id": "c-1"}, {"sessionId": "c-1"}, {"sessionId": "c-2"}, {}):
        await checked(client, "A lock keeper.", dict(context))
    once, twice = [("user", "Who are you?")], [("user", "Who are you?"), ("assistant", "A lock keeper.")]
    assert Remembers.heard == [("A lock keeper.", heard) for heard in (once, twice, [], [])]


async def test_a_check_of_the_answer_hears_the_check_of_its_prompt(client: Client) -> None:
    """The usual way of a plugin: what was checked before is told as it may be shown."""
    await checked(client, f"My number is {SSN}.", {"conversation_id": "c-1"}, "prompt")
    await checked(client, "I have noted it.", {"conversation_id": "c-1"})
    await said(client, "Have you?")
    turns = [("user", "My number is [SSN]."), ("assistant", "I have noted it.")]
    assert [heard for _, heard in Remembers.heard] == [[], turns[:1], turns]


async def test_a_check_without_a_conversation_keeps_no_text(client: Client) -> None:
    await checked(client, "Who are you?", {}, "prompt")
    await checked(client, "A lock keeper.", {"userId": "u-1"})
    assert not await Message.objects.aexists()


async def test_what_a_check_has_kept_is_sealed_and_goes_when_its_time_is_over(client: Client) -> None:
    await checked(client, f"My number is {SSN}.", {"conversation_id": "c-1"}, "prompt")
    session = await AuditSession.objects.select_related("answer").aget()
    assert session.answer is not None
    assert session.answer.content == "My number is [SSN]."
    assert await faults() == []
    kept = {name: getattr(session.answer, name) for name in ("content", "role", "status")}
    for name, altered in (("content", "My number is 5."), ("role", "assistant"), ("status", "blocked")):
        await Message.objects.aupdate(**{name: altered})
        assert await faults() != [], f"an altered {name} is pointed at"
        await Message.objects.aupdate(**{name: kept[name]})
    later = timezone.now() + timedelta(days=2)
    ids = await database_sync_to_async(retention.due)(later, {"*": 1})
    assert ids == [str(session.pk)]
    assert await database_sync_to_async(retention.purge)(ids) == 1
    assert [message.content async for message in Message.objects.all()] == [""]
    assert await faults() == []
    Remembers.heard.clear()
    await checked(client, "I have noted it.", {"conversation_id": "c-1"})
    assert Remembers.heard == [("I have noted it.", [])], "what is gone is not told"


async def test_another_key_with_the_same_id_hears_nothing(client: Client) -> None:
    await said(client, "Who are you?")
    Remembers.heard.clear()
    other = Client(await new_key("two"))
    await said(other, "Nobody.", "response")
    await checked(other, "Nobody at all.", {"conversation_id": "c-1"})
    assert Remembers.heard == [("Nobody.", []), ("Nobody at all.", [("assistant", "Nobody.")])]


@pytest.mark.parametrize("way", ["check", "stream"])
async def test_a_worker_hears_what_was_there_when_the_call_began(
    client: Client, way: str, running: list[Policy]
) -> None:
    await said(client, "Who are you?")
    running.append(policy("MONITOR"))
    if way == "check":
        await checked(client, "A lock keeper.", {"conversation_id": "c-1"})
    else:
        await said(client, "A lock keeper.", "response")
    row = await DeferredCheck.objects.aget()
    running.append(policy())
    await said(client, "And you?")
    running.pop()
    Remembers.heard.clear()
    assert await deferred.run_deferred(row.pk, shared_log())
    assert Remembers.heard == [("A lock keeper.", [("user", "Who are you?")])]


async def chatted(client: Client, **body: object) -> tuple[int, Json]:
    """A chat that has come to its end; its status and answer."""
    text = json.dumps({"provider": "scripted", "policy": "basic", **body})
    answer = await client.http.post("/v1/chat", text, content_type="application/json", headers=client.headers)
    began: Json = json.loads(answer.content)
    if answer.status_code == 201:
        events = await client.http.get(began["events_url"], headers=client.headers)
        async for _ in events:
            """To the end of its events."""
    return answer.status_code, began


async def test_a_chat_a_check_and_a_stream_share_what_was_said_by_the_id_that_the_chat_answered(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLUICEGATE_SCRIPTED_RATE", "20000")
    _, began = await chatted(client, prompt="Who are you?", scenario="own_text", text="A lock keeper.")
    key = str(began["conversation_id"])
    turns = [("user", "Who are you?"), ("assistant", "A lock keeper.")]
    Remembers.heard.clear()
    await checked(client, "One.", {"conversation_id": key})
    await said(client, "Two.", "response", key)
    assert Remembers.heard == [("One.", turns), ("Two.", [*turns, ("assistant", "One.")])]
    assert await Conversation.objects.acount() == 1
    other = Client(await new_key("two"))
    Remembers.heard.clear()
    await checked(other, "Three.", {"conversation_id": key})
    await said(other, "Four.", "response", key)
    assert [text for _, heard in Remembers.heard for _, text in heard if text not in ("Three.", "Four.")] == []
    assert (await chatted(other, prompt="Go on", conversation_id="nothing of mine"))[0] == 422
    assert await Conversation.objects.filter(client=other.headers["Authorization"][7:18]).acount() == 1, "its own"


async def test_a_chat_goes_on_with_the_conversation_that_a_stream_has_named(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLUICEGATE_SCRIPTED_RATE", "20000")
    await said(client, "Who are you?")
    status, began = await chatted(client, prompt="And now?", conversation_id="c-1")
    assert status == 201
    row = await Conversation.objects.aget()
    assert (row.external_id, str(row.pk)) == ("c-1", began["conversation_id"])
    history = await database_sync_to_async(selectors.history)(Visitor(client=row.client), "c-1", 2)
    assert [turn.role for turn in history] == ["user", "assistant"]
    assert history[0].text == "And now?"
    other = Client(await new_key("two"))
    for key in ("c-1", str(row.pk)):
        assert (await chatted(other, prompt="And now?", conversation_id=key))[0] == 422, "another key's"
