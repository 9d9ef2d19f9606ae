"""An answer that is not complete must not look as if it were: every reason is told, kept, and shown."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from channels.db import database_sync_to_async
from django.template.loader import render_to_string
from django.test import Client
from django.urls import reverse

from streaming import stops
from streaming.core.events import ProviderEvent, Stopped, TextDelta
from streaming.models import Conversation, Message
from streaming.page import stored_conversation
from streaming.providers.base import ProviderError
from streaming.providers.openai_chunks import ChunkReader
from streaming.terminal.telling import Telling
from tests.streaming.pumping import Trial, policy_of, trial

from .audit_people import people

pytestmark = pytest.mark.django_db(transaction=True)
STREAMS = Path(__file__).resolve().parents[3] / "shared" / "data" / "streams"
RECORDED = json.loads((STREAMS / "index.json").read_text()) if (STREAMS / "index.json").exists() else []
CUT_OFF = [
    entry["file"] for entry in RECORDED
    if entry["file"].startswith("openai") and b'finish_reason":"length"' in (STREAMS / entry["file"]).read_bytes()
]  # fmt: skip
REASONS = {
    "length": "as many tokens",
    "max_tokens": "as many tokens",
    "content_filter": "content filter",
    "refusal": "refused",
    "pause_turn": "paused",
    "new_reason": "new_reason",
}


async def ended(*script: str | ProviderEvent | Exception) -> Trial:
    case = await trial(script, policy=policy_of(without="harm"))
    await case.pump.run()
    return case


async def told(case: Trial) -> list[str]:
    """The words of every notice that the answer is not complete."""
    cut = [event for event in await case.of("error") if event["code"] == "answer_cut"]
    assert all(event["recoverable"] is True for event in cut)
    return [str(event["message"]) for event in cut]


async def test_it_works() -> None:
    case = await ended("Half an ans", Stopped("length"))
    assert await told(case) == [stops.cut("length")]
    kinds = [event["type"] for event in await case.events()]
    assert kinds.index("error") < kinds.index("done")
    (update,) = [event for event in await case.of("message_update") if event["message_id"] == case.answer_id]
    stored = await Message.objects.aget(pk=case.answer_id)
    assert update["metadata"]["stop_reason"] == stored.metadata["stop_reason"] == "length"  # type: ignore[index]
    assert (stored.status, stored.content) == (Message.Status.COMPLETE, "Half an ans")
    assert (await case.of("done"))[0]["outcome"] == "allowed"


@pytest.mark.parametrize("reason", REASONS)
async def test_every_reason_that_is_no_end_is_told_in_its_own_words(reason: str) -> None:
    case = await ended("Half", Stopped(reason))
    (words,) = await told(case)
    assert REASONS[reason] in words
    assert (await Message.objects.aget(pk=case.answer_id)).metadata["notices"] == [["", "answer_cut", 1]]


@pytest.mark.parametrize("reason", sorted(stops.NORMAL))
async def test_a_normal_end_says_nothing(reason: str) -> None:
    case = await ended("Whole", Stopped(reason))
    assert await told(case) == []
    assert (await Message.objects.aget(pk=case.answer_id)).metadata["stop_reason"] == reason


async def test_a_reason_that_is_repeated_is_told_once_and_each_choice_counts() -> None:
    ends = [Stopped("stop"), Stopped("length", 1), Stopped("length", 1), Stopped("refusal", 2)]
    case = await ended("Whole", TextDelta("Half", 1), TextDelta("No", 2), *ends)
    assert await told(case) == [stops.cut("length"), stops.cut("refusal")]
    assert (await Message.objects.aget(pk=case.answer_id)).metadata["stop_reason"] == "stop"


@pytest.mark.parametrize("reason", ["call 536-22-8145 <b>now</b>", "536-22-8145"])
async def test_a_reason_is_no_way_around_the_guardrails(reason: str) -> None:
    case = await ended("Half", Stopped(reason))
    assert "536-22-8145" not in json.dumps(await case.events())
    assert (await Message.objects.aget(pk=case.answer_id)).metadata["stop_reason"] == stops.OTHER


@pytest.mark.skipif(not RECORDED, reason="the recordings are not here")
async def test_recorded_answers_that_were_cut_off_are_told_as_such() -> None:
    assert CUT_OFF
    for file in CUT_OFF:
        reader, script = ChunkReader(), list[str | ProviderEvent | Exception]()
        try:
            script += iter(reader.feed((STREAMS / file).read_bytes()))
            script += iter(reader.finish())
        except ProviderError as error:  # one vendor says it twice: as a reason, and then as an error
            script.append(error)
        case = await ended(*script)
        assert await told(case) == [stops.cut("length")], file
        assert (await Message.objects.aget(pk=case.answer_id)).metadata["stop_reason"] == "length"


async def test_a_reload_the_terminal_and_the_audit_screen_show_it(client: Client) -> None:
    case = await ended("Half", Stopped("length"))
    telling = Telling()
    for event in await case.events():
        telling.take(event)
    assert telling.notes == [f"answer_cut: {stops.cut('length')}"]

    def look() -> tuple[str, str]:
        (message,) = stored_conversation(Conversation.objects.get(pk=case.conversation_id)).messages[1:]
        stored = render_to_string("streaming/message.html#answer", {"message": message})
        client.force_login(people().auditor)
        detail = client.get(reverse("audit:session", args=[case.session_id]))
        return stored, detail.content.decode()

    stored, detail = await database_sync_to_async(partial(look))()
    assert stops.cut("length") in stored
    assert "data-stop-reason" in detail
    assert stops.cut("length") in detail
