"""A guardrail that asks for the conversation is told of it wherever the text comes from, and of what is left out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import ClassVar

import pytest
from channels.db import database_sync_to_async
from django.utils import timezone

from guardrails.findings import AppliesTo, Verdict
from guardrails.kinds import base
from guardrails.kinds.ai_judge import AiJudgeConfig, earlier_turns, judge_prompt
from guardrails.kinds.base import OMITTED, CheckRequest, Config, Kind, Services, Turn
from guardrails.performance import Family, PerformanceCharacteristics, PerformanceClass
from guardrails.policy import Policy, compile_policy
from streaming import conversing, registry, selectors, tasks
from streaming.audit.verify import log_faults
from streaming.deferred import run_deferred
from streaming.frames import StartFrame
from streaming.gateway.gates import Gates
from streaming.gateway.prompt import Prompted
from streaming.gateway.record import opened
from streaming.log import MemoryLog
from streaming.log_redis import close_shared_log
from streaming.messages import MessageIn
from streaming.models import Conversation, DeferredCheck, Finding, Message
from streaming.sessions import Visitor
from tests.streaming.chats import chat
from tests.streaming.test_conversation_context import Heard, Remembers
from tests.streaming.test_conversation_context import policy as listening

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("demo_policy", "valkey_url")]


class Judges(Kind[Config]):
    """Hits, and keeps what it was asked, with the turns that it was told."""

    family = Family.AI
    description = "For tests."
    performance = PerformanceCharacteristics(PerformanceClass.SLOW, 1_000, 2_000, 3_000)
    wants_conversation = True
    Config = Config
    heard: ClassVar[list[Heard]]

    async def check(self, request: CheckRequest, services: Services) -> Verdict:
        type(self).heard.append((request.text, [(turn.role, turn.text) for turn in request.conversation]))
        return Verdict(hit=True, score=1.0)


def late() -> Policy:
    judges = {"name": "judges", "kind": "trial_judges", "action": "block", "applies_to": ["prompt", "response"]}
    return compile_policy({"policy": "t", "guardrails": [judges]}, version=1, digest="sha256:t")


@pytest.fixture(autouse=True)
async def kinds(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    base.all_kinds()
    for name, kind in (("trial_judges", Judges), ("trial_remembers", Remembers)):
        monkeypatch.setattr(kind, "name", name, raising=False)
        monkeypatch.setitem(base._REGISTRY, name, kind)  # type: ignore[arg-type]
        monkeypatch.setattr(kind, "heard", [], raising=False)

    async def queue(session_id: str) -> None:
        """Whoever is to make the checks is called by the tests."""

    monkeypatch.setattr(tasks, "queue_session", queue)
    monkeypatch.setattr("streaming.deferred.policy_by_digest", lambda digest: late())
    monkeypatch.setenv("SLUICEGATE_SCRIPTED_RATE", "20000")
    yield
    await registry.shutdown()
    await close_shared_log()


async def make_checks() -> list[DeferredCheck]:
    rows = [row async for row in DeferredCheck.objects.order_by("id")]
    for row in rows:
        assert await run_deferred(row.pk, MemoryLog())
        await row.arefresh_from_db()
        assert row.sealed_text is None
    return rows


GIVEN = [
    MessageIn(role="user", content="Who are you?"),
    MessageIn(role="assistant", content="A lock keeper."),
    MessageIn(role="user", content="And you?"),
]
BEFORE = [("user", "Who are you?"), ("assistant", "A lock keeper.")]


async def test_it_works() -> None:
    """Of a chat with messages only the client has the conversation: it goes to the worker with the text."""
    frame = StartFrame(type="start", provider="scripted", scenario="clean", messages=GIVEN)
    chatted = await chat(None, late(), frame=frame)
    rows = await make_checks()
    assert [(row.applies_to, row.conversed) for row in rows] == [("prompt", True), ("response", True)]
    asked = ("And you?", BEFORE)
    assert Judges.heard == [asked, (chatted.message.content, [*BEFORE, ("user", "And you?")])]
    assert not await database_sync_to_async(lambda: list(log_faults()))()


async def test_through_the_gateway_the_messages_as_they_went_upstream_are_told() -> None:
    messages = [{"role": one.role, "content": one.content} for one in GIVEN]
    messages[0]["content"] = "Who is [SSN]?"  # as the guardrails left it
    prompted = Prompted({"messages": messages}, raw="And you?", shown="And you?")
    visitor = Visitor(client="sg_t")
    record = await opened(
        visitor, late(), prompted, provider="p", model="m", streaming=False, correlation_id="c", session_id=""
    )
    gates = Gates(late())
    said = [gates.channel((choice, ("content",)), AppliesTo.RESPONSE, "text", kept=True) for choice in (0, 1, 7)]
    for channel, text in zip(said, ("A lock keeper.", "A keeper of locks", ""), strict=True):
        gates.feed(channel, text)
        gates.finish(channel)
    await record.end(gates, {})
    rows = await make_checks()
    before = [("user", "Who is [SSN]?"), BEFORE[1]]
    asked = [*before, ("user", "And you?")]
    assert Judges.heard == [
        ("And you?", before), ("A lock keeper.", asked), ("A keeper of locks", asked)
    ], "each choice by itself, and one without text not at all"  # fmt: skip
    assert [(row.applies_to, row.part) for row in rows] == [("prompt", 0), ("response", 0), ("response", 1)]
    found = Finding.objects.order_by("n").values_list("channel", "start", "end")
    assert [one async for one in found] == [
        ("prompt", 0, 8), ("text", 0, 14), ("choices[1]", 0, 17)
    ], "a place belongs to the text of its choice"  # fmt: skip
    assert not await database_sync_to_async(lambda: list(log_faults()))()


@database_sync_to_async
def long_conversation(turns: int, session_key: str = "s") -> str:
    made = Conversation.objects.create(session_key=session_key, client="")
    began = timezone.now() - timedelta(days=1)
    Message.objects.bulk_create(
        Message(
            conversation=made,
            role=("user", "assistant")[n % 2],
            content=f"turn {n}",
            created=began + timedelta(seconds=n),
            status=Message.Status.COMPLETE,
        )
        for n in range(turns)
    )
    return str(made.pk)


async def test_a_chat_tells_more_than_the_model_is_shown_where_a_guardrail_wants_more() -> None:
    key = await long_conversation(60)
    frame = StartFrame(type="start", provider="scripted", scenario="clean", prompt="And now?", conversation_id=key)
    await chat(None, listening(), frame=frame)
    turns = [(("user", "assistant")[n % 2], f"turn {n}") for n in range(60)]
    (asked, heard), *answered = Remembers.heard
    assert (asked, heard) == ("And now?", turns)
    assert answered
    assert all(told == [*turns, ("user", "And now?")] for _, told in answered)


def test_of_a_conversation_that_nobody_reads_whole_a_judge_is_told() -> None:
    assert conversing.newest([Turn("user", "a")] * 3, 3) == (Turn("user", "a"),) * 3
    cut = conversing.newest([Turn("user", str(n)) for n in range(5)], 2)
    assert cut == (OMITTED, Turn("user", "3"), Turn("user", "4"))
    assert earlier_turns(cut, "all") == (cut[1:], True)
    assert earlier_turns(cut, 3) == (cut[1:], True)
    assert earlier_turns(cut, 2) == (cut[1:], False), "as many as it asked for"
    request = CheckRequest("text", AppliesTo.RESPONSE, cut, 1.0)
    instructions, text = judge_prompt(AiJudgeConfig(rubric="r", conversation_turns="all"), request, "0" * 16)
    assert "left out" in instructions.text
    assert "omitted" not in text.text


@pytest.mark.parametrize(("wanted", "read"), [("all", 1_000), (70, 70), (0, 0)])
def test_as_many_turns_are_read_as_the_judge_shows(wanted: object, read: int) -> None:
    judge = {"name": "j", "kind": "ai_judge", "config": {"rubric": "r", "conversation_turns": wanted}}
    policy = compile_policy({"policy": "t", "guardrails": [judge]}, version=1, digest="sha256:t")
    assert conversing.turns_wanted(AppliesTo.RESPONSE, policy) == read
    assert conversing.turns_wanted(AppliesTo.TOOL_RESULT, policy) == 0


async def test_a_check_or_a_stream_reads_beyond_what_a_model_is_shown() -> None:
    key = await long_conversation(60)
    await Conversation.objects.filter(pk=key).aupdate(client="sg_t")
    told = await selectors.named_turns(Visitor(client="sg_t"), key, 40, AppliesTo.RESPONSE, late())
    assert [turn.text for turn in told] == [f"turn {n}" for n in range(60)]
