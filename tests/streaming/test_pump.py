"""The pump: whatever happens, readers see only released text and the database says how the session ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from channels.db import database_sync_to_async

from guardrails.findings import Action, AppliesTo, Mode, OnError, Verdict
from guardrails.kinds.base import CheckRequest, Config, Kind, Services
from guardrails.performance import Checkpoint, Family, PerformanceCharacteristics, PerformanceClass
from guardrails.policy import Guardrail, Policy
from streaming import selectors, sessions
from streaming.core.effects import Effect
from streaming.core.events import ModelNamed, Stopped, TextDelta, ThinkingDelta, ToolCallDelta, Usage
from streaming.core.gate import Gate
from streaming.log import LogUnavailable, MemoryLog, Payload
from streaming.models import AuditSession, DeferredCheck, Finding, Message
from streaming.providers import base as providers
from streaming.providers.base import ChatMessage, ProviderError, StreamCutOff
from streaming.resilience import CircuitBroken
from streaming.sealed import unseal
from streaming.sessions import Visitor, seal_context
from tests.streaming.pumping import SSN, Time, Trial, policy_of, trial

pytestmark = pytest.mark.django_db(transaction=True)
FAILURES: list[type[ProviderError]] = [
    *(each for each in vars(providers).values() if isinstance(each, type) and issubclass(each, ProviderError)),
    CircuitBroken,
]


async def settle() -> None:
    """Let every task that can go on do so."""
    for _ in range(20):
        await asyncio.sleep(0)


@database_sync_to_async
def session_row(case: Trial) -> AuditSession:
    return AuditSession.objects.select_related("answer", "prompt").get(pk=case.session_id)


async def test_it_works() -> None:
    script = ["Hel", "lo, ", "wor", "ld.", ModelNamed("real-2"), Usage(3, 4), Stopped("stop")]
    case = await trial(script, policy=policy_of(without="harm"))
    await case.pump.run()
    events = await case.events()
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert await case.shown() == "Hello, world."
    assert events[0]["type"] == "state"
    assert [event["type"] for event in events][-2:] == ["done", "state"]
    assert events[-1]["state"] == "COMPLETE"
    assert events[-2]["final"] == "Hello, world."
    (update,) = [event for event in await case.of("message_update") if event["message_id"] == case.answer_id]
    metadata = update["metadata"]
    assert isinstance(metadata, dict)
    assert metadata["usage"] == {"input_tokens": 3, "output_tokens": 4}
    assert metadata["model"] == "real-2"
    row = await session_row(case)
    assert (row.state, row.outcome, row.released, row.withheld) == ("COMPLETE", "allowed", 13, 0)
    assert row.answer.content == "Hello, world."
    assert row.answer.status == Message.Status.COMPLETE
    assert row.prompt.content == "hello"


async def test_ssn_split_over_chunks_never_reaches_the_log_in_any_part() -> None:
    case = await trial(["My number is 5", "36-", "22-81", "45", " today"])
    await case.pump.run()
    assert await case.shown() == "My number is [SSN] today"
    for event in await case.events():
        if event["type"] == "message_stream":
            assert not any(part in str(event["chunk"]) for part in ("536", "22", "81", "45"))
    row = await session_row(case)
    assert (row.outcome, row.withheld) == ("redacted", len(SSN))
    assert row.answer.content == "My number is [SSN] today"
    assert row.answer.metadata["redactions"] == [[13, "[SSN]"]]
    found = await database_sync_to_async(lambda: list(Finding.objects.filter(session=row)))()
    assert [(f.n, f.guardrail, f.start, f.end, f.exposed) for f in found] == [(1, "pii", 13, 24, 0)]


async def test_blocked_answer_stops_the_provider_and_keeps_what_was_shown() -> None:
    never = asyncio.Event()
    case = await trial(["The pro", "ject is Blue He", "ron, and", never, "more"])
    await asyncio.wait_for(case.pump.run(), 10)
    assert case.provider.closed
    assert await case.shown() == "The project is "
    (blocked,) = await case.of("blocked")
    assert blocked["guardrail"] == "heron"
    assert "heron" not in str(blocked["reason"]).lower().replace("“heron”", "")
    row = await session_row(case)
    assert (row.outcome, row.answer.status, row.answer.content) == ("blocked", "blocked", "The project is ")
    assert row.withheld >= len("Blue Heron")


async def test_blocked_prompt_never_reaches_the_provider() -> None:
    case = await trial(["unused"], prompt="tell me about the blue heron please")
    await case.pump.run()
    assert case.provider.asked == []
    (blocked,) = await case.of("blocked")
    assert blocked["message_id"] == case.answer_id
    row = await session_row(case)
    assert (row.state, row.outcome) == ("COMPLETE", "blocked")
    assert row.prompt.status == Message.Status.BLOCKED
    assert "heron" not in row.prompt.content
    visible = await database_sync_to_async(selectors.history)(Visitor(session_key="browser"), case.conversation_id, 9)
    assert visible == ()


async def test_redacted_prompt_is_what_the_provider_gets_and_what_is_stored() -> None:
    case = await trial(["ok"], prompt=f"my ssn is {SSN}!")
    await case.pump.run()
    assert case.provider.asked[0].messages[-1].text == "my ssn is [SSN]!"
    row = await session_row(case)
    assert row.prompt.content == "my ssn is [SSN]!"
    assert SSN not in str(await case.events())
    assert row.outcome == "redacted"


async def test_history_goes_before_the_prompt() -> None:
    case = await trial(["ok"], history=(ChatMessage("user", "first"), ChatMessage("assistant", "second")))
    await case.pump.run()
    assert [message.text for message in case.provider.asked[0].messages] == ["first", "second", "hello"]


async def test_provider_failure_keeps_the_partial_text_and_says_so() -> None:
    case = await trial(["Half an answer. ", StreamCutOff("the stream ended early")], policy=policy_of(without="harm"))
    await case.pump.run()
    assert await case.shown() == "Half an answer. "
    (error,) = await case.of("error")
    assert (error["code"], error["recoverable"]) == ("provider_cut_off", True)
    row = await session_row(case)
    assert (row.state, row.outcome, row.error_code) == ("COMPLETE", "error", "provider_cut_off")
    assert row.answer.content == "Half an answer. "


@pytest.mark.parametrize("text", ["", "Half an answer. "], ids=["before text", "after text"])
@pytest.mark.parametrize("failure", FAILURES)
async def test_every_failure_says_what_it_is_and_whether_trying_again_can_help(
    failure: type[ProviderError], text: str
) -> None:
    said = [text] if text else []
    case = await trial([*said, failure("what went wrong")], policy=policy_of(without="harm"))
    await asyncio.wait_for(case.pump.run(), 30)
    *notices, error = await case.of("error")
    assert (error["code"], error["message"]) == (failure.code, "what went wrong")
    assert error["recoverable"] == (not failure.permanent)
    assert not (text and notices), "after the first token nothing is tried again"
    (done,) = await case.of("done")
    assert (done["outcome"], done["final"]) == ("error", text)
    row = await session_row(case)
    assert (row.outcome, row.error_code, row.answer.content) == ("error", failure.code, text)


async def test_a_bug_in_an_adapter_is_an_error_event_without_a_traceback() -> None:
    case = await trial(["x ", ZeroDivisionError("secret detail")])
    await case.pump.run()
    (error,) = await case.of("error")
    assert "secret detail" not in str(error)
    assert (await session_row(case)).outcome == "error"


async def test_an_answer_that_waits_for_its_provider_holds_two_tasks_and_leaves_none() -> None:
    others = asyncio.all_tasks()
    case = await trial(["a ", asyncio.Event()])
    run = asyncio.create_task(case.pump.run())
    await case.until("message_stream")
    async with asyncio.timeout(30):
        while len(asyncio.all_tasks() - others) > 2:  # noqa: ASYNC110 - what is written through comes to its end
            await asyncio.sleep(0.001)
    await case.log.interrupt(case.session_id)
    await asyncio.wait_for(run, 30)
    assert not asyncio.all_tasks() - others


async def test_held_text_is_not_released_by_an_interrupt() -> None:
    never = asyncio.Event()
    case = await trial(["Take 536-22-", never])
    run = asyncio.create_task(case.pump.run())
    await case.until("hold")
    began = time.monotonic()
    await case.log.interrupt(case.session_id)
    await asyncio.wait_for(run, 10)
    assert time.monotonic() - began < 1
    assert case.provider.closed
    assert await case.shown() == "Take "
    row = await session_row(case)
    assert (row.outcome, row.answer.status, row.answer.content) == ("interrupted", "interrupted", "Take ")
    assert row.withheld == len("536-22-")


async def test_interrupt_whose_wake_was_lost_is_found_by_looking() -> None:
    class Deaf(MemoryLog):
        async def interrupt(self, session_id: str) -> None:
            self._stopped.add(session_id)

    case = await trial(["a ", asyncio.Event()], log=Deaf())
    run = asyncio.create_task(case.pump.run())
    await case.until("message_stream")
    clock = case.pump._around
    assert clock.settings.write_through_s < 1
    await case.log.interrupt(case.session_id)
    await asyncio.wait_for(run, 10)
    assert (await session_row(case)).outcome == "interrupted"


async def test_session_without_readers_is_abandoned_and_the_provider_closed() -> None:
    clock = Time()
    case = await trial(["a ", asyncio.Event()], clock=clock)
    run = asyncio.create_task(case.pump.run())
    await case.until("message_stream")
    while not run.done():
        clock.now += 5
        await asyncio.wait([run], timeout=0.02)
        assert clock.now < 10_000, "the session was never abandoned"
    assert case.provider.closed
    assert (await session_row(case)).outcome == "abandoned"


async def test_session_with_a_reader_is_not_abandoned() -> None:
    clock, go = Time(), asyncio.Event()
    case = await trial(["a ", go, "b"], clock=clock)
    async with case.log.attend(case.session_id):
        run = asyncio.create_task(case.pump.run())
        for _ in range(20):
            clock.now += 10
            await asyncio.wait([run], timeout=0.02)
        go.set()
        await asyncio.wait_for(run, 10)
    assert (await session_row(case)).outcome == "allowed"


async def test_a_silent_answer_is_written_only_as_a_sign_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    class Watched(MemoryLog):
        looked = asyncio.Semaphore(0)

        async def interrupted(self, session_id: str) -> bool:
            self.looked.release()
            return await super().interrupted(session_id)

    written: list[str] = []
    keep = sessions.keep_partial

    def counted(*, session_id: str, content: str, released: int, chars_in: int, last_seq: int) -> bool:
        written.append(content)
        return keep(session_id=session_id, content=content, released=released, chars_in=chars_in, last_seq=last_seq)

    monkeypatch.setattr(sessions, "keep_partial", counted)
    clock, log = Time(), Watched()
    case = await trial(["a ", asyncio.Event()], clock=clock, log=log)
    async with case.log.attend(case.session_id), asyncio.timeout(60):
        run = asyncio.create_task(case.pump.run())
        await case.until("message_stream")
        steps = 90
        for _ in range(steps):  # of a second each: as often as the pump looks, if it is quick
            clock.now += 1
            await log.looked.acquire()
        await case.log.interrupt(case.session_id)
        await run
    assert written[-1] == "a "
    alive = steps / (case.pump._around.settings.stale_s / 3)
    assert alive / 2 <= len(written) <= alive + 2


async def test_partial_text_is_written_through_while_the_answer_streams() -> None:
    clock, go = Time(), asyncio.Event()
    case = await trial(["so far ", go, "done"], clock=clock)
    run = asyncio.create_task(case.pump.run())
    await case.until("message_stream")
    content = ""
    while not content:
        clock.now += 1
        await asyncio.wait([run], timeout=0.02)
        content = (await session_row(case)).answer.content
    assert content == "so far "
    go.set()
    await asyncio.wait_for(run, 10)


async def test_lost_log_ends_the_session_in_the_database_with_its_text() -> None:
    class Breaking(MemoryLog):
        async def append(self, session_id: str, payloads: object, *, ms: int, floor: int = 0, known: int = 1) -> int:
            if "second" in str(payloads):
                raise LogUnavailable("the session log cannot be reached")
            return await super().append(session_id, payloads, ms=ms, floor=floor)  # type: ignore[arg-type]

    go = asyncio.Event()
    words = ["first. ", go, "second. ", asyncio.Event()]
    case = await trial(words, log=Breaking(), policy=policy_of(without="harm"))
    run = asyncio.create_task(case.pump.run())
    await case.until("message_stream")
    go.set()
    await asyncio.wait_for(run, 10)
    row = await session_row(case)
    assert (row.state, row.outcome, row.error_code) == ("COMPLETE", "error", "log_unavailable")
    assert row.answer.content == "first. second. "
    assert case.provider.closed


async def test_server_that_stops_records_the_end() -> None:
    case = await trial(["so far ", asyncio.Event()])
    run = asyncio.create_task(case.pump.run())
    await case.until("message_stream")
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    row = await session_row(case)
    assert (row.outcome, row.error_code, row.answer.content) == ("error", "server_stopped", "so far ")
    assert case.provider.closed


async def test_text_on_its_way_into_the_log_when_the_server_stops_is_told_once_and_before_the_end() -> None:
    class Slow(MemoryLog):
        asked, go = asyncio.Event(), asyncio.Event()

        async def append(
            self, session_id: str, payloads: Sequence[Payload], *, ms: int, floor: int = 0, known: int = 1
        ) -> int:
            if any(payload["type"] == "message_stream" and payload["chunk"] == "so far " for payload in payloads):
                self.asked.set()
                await self.go.wait()
            return await super().append(session_id, payloads, ms=ms, floor=floor)

    case = await trial(["so far ", asyncio.Event()], log=Slow(), policy=policy_of(without="harm"))
    run = asyncio.create_task(case.pump.run())
    await asyncio.wait_for(Slow.asked.wait(), 10)
    run.cancel()
    await settle()
    Slow.go.set()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(run, 10)
    row = await session_row(case)
    assert await case.shown() == row.answer.content == "so far "
    kinds = [event["type"] for event in await case.events()]
    assert kinds.index("message_stream") < kinds.index("done")


async def test_deferred_checks_are_in_the_outbox_when_readers_hear_of_them() -> None:
    case = await trial([f"Call {SSN} now"], workers=False)
    await case.pump.run()
    row = await session_row(case)
    assert row.state == "MONITORING"
    assert case.queued == [case.session_id]
    check = await database_sync_to_async(DeferredCheck.objects.get)(session=row)
    assert (check.guardrail, check.state, check.applies_to) == ("harm", "waiting", "response")
    sealed = bytes(check.sealed_text or b"")
    assert SSN.encode() not in sealed, "the raw text must not stand in the database in clear"
    assert unseal(sealed, context=seal_context(case.session_id, "harm", "response")) == f"Call {SSN} now"
    events = await case.events()
    (status,) = [e for e in events if e["type"] == "guardrail_status" and e["state"] == "waiting"]
    assert "No worker" in str(status["error"])
    assert events[-1]["state"] == "MONITORING"


async def test_a_burst_is_told_in_few_events_with_the_same_text() -> None:
    case = await trial([*"abcdefghij " * 50], policy=policy_of(without="harm"))
    await case.pump.run()
    assert await case.shown() == "abcdefghij " * 50
    assert len(await case.of("message_stream")) < 100
    (timing,) = await case.of("timing")
    assert timing["naive_calls"] == 550


async def test_pending_text_is_told_without_another_event() -> None:
    go = asyncio.Event()
    case = await trial(["a ", go, "b ", asyncio.Event()], policy=policy_of(without="harm"))
    run = asyncio.create_task(case.pump.run())
    await case.until("message_stream")
    go.set()
    await case.until("message_stream", 2)
    assert await case.shown() == "a b "
    await case.log.interrupt(case.session_id)
    await asyncio.wait_for(run, 10)


async def test_text_that_is_pending_at_an_interrupt_was_released_and_is_told() -> None:
    go = asyncio.Event()
    case = await trial(["a ", go, "b ", asyncio.Event()], policy=policy_of(without="harm"), clock=Time())
    run = asyncio.create_task(case.pump.run())
    await case.until("message_stream")
    go.set()
    await settle()
    assert await case.shown() == "a ", "the clock stands: the rest is not due"
    await case.log.interrupt(case.session_id)
    await asyncio.wait_for(run, 10)
    assert await case.shown() == (await session_row(case)).answer.content == "a b "


async def test_what_is_written_through_is_never_ahead_of_what_was_told() -> None:
    clock = Time()
    go = asyncio.Event()
    case = await trial(["a ", go, "b ", asyncio.Event()], policy=policy_of(without="harm"), clock=clock)
    run = asyncio.create_task(case.pump.run())
    await case.until("message_stream")
    go.set()
    await settle()
    clock.now += 0.02  # time to write, not yet to tell the rest
    await case.until("message_stream", 2)
    assert await case.shown() == "a b "
    await case.log.interrupt(case.session_id)
    await asyncio.wait_for(run, 10)


async def test_a_store_that_came_back_with_nothing_counts_on_for_those_who_read() -> None:
    go = asyncio.Event()
    case = await trial(["One. ", go, "Two. "], policy=policy_of(without="harm"))
    run = asyncio.create_task(case.pump.run())
    await case.until_shown("One. ")
    seen = int(str((await case.events())[-1]["seq"]))
    case.log._seq.clear()
    case.log._events.clear()
    go.set()
    await asyncio.wait_for(run, 10)
    assert [event["seq"] for event in await case.events()][:3] == [seen + 1, seen + 2, seen + 3]
    assert await case.shown() == "Two. "


async def test_provider_that_never_pauses_leaves_room_for_an_interrupt() -> None:
    case = await trial(["word "] * 200_000, policy=policy_of(without="harm"))
    run = asyncio.create_task(case.pump.run())
    await case.until("message_stream")
    await case.log.interrupt(case.session_id)
    await asyncio.wait_for(run, 60)
    row = await session_row(case)
    assert row.outcome == "interrupted"
    assert 0 < row.chars_in < 200_000 * len("word ")


async def test_a_gate_that_fails_is_not_the_providers_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(gate: Gate, text: str) -> None:
        raise RuntimeError("a bug of ours")

    go = asyncio.Event()
    case = await trial(["fine ", go, "b ", asyncio.Event()], policy=policy_of(without="harm"))
    run = asyncio.create_task(case.pump.run())
    await case.until("message_stream")
    monkeypatch.setattr(Gate, "feed", fail)
    go.set()
    await asyncio.wait_for(run, 10)
    assert (await session_row(case)).error_code == "internal"
    assert case.provider.closed


async def test_what_was_released_before_a_gate_failed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    feed = Gate.feed

    def fail_at_three(gate: Gate, text: str) -> list[Effect]:
        if text == "three ":
            raise RuntimeError("a bug of ours")
        return feed(gate, text)

    monkeypatch.setattr(Gate, "feed", fail_at_three)
    case = await trial(["one ", "two ", "three ", asyncio.Event()], policy=policy_of(without="harm"))
    await asyncio.wait_for(case.pump.run(), 10)
    row = await session_row(case)
    assert row.error_code == "internal"
    assert await case.shown() == row.answer.content == "one two "


async def test_holds_are_told_at_most_every_50_ms_and_end() -> None:
    clock = Time()
    steps: list[str | asyncio.Event] = []
    gates = [asyncio.Event() for _ in range(6)]
    for gate, digit in zip(gates, "536-22", strict=True):
        steps += [digit, gate]
    case = await trial(["No ", *steps, " end"], clock=clock)
    run = asyncio.create_task(case.pump.run())
    await case.until("message_stream")
    for gate in gates:
        clock.now += 0.03
        gate.set()
        await settle()
    await asyncio.wait_for(run, 10)
    holds = await case.of("hold")
    assert holds[-1]["chars"] == 0
    told = [int(str(hold["ms"])) for hold in holds if hold["chars"]]
    assert len(told) >= 2, "several holds must have been told for this to say anything"
    assert all(later - earlier >= 50 for earlier, later in pairwise(told))


async def test_thinking_choices_and_tools_each_pass_a_gate_of_their_own() -> None:
    policy = policy_of(
        {"name": "thoughts", "kind": "regex", "action": "redact", "applies_to": ["thinking", "tool_arguments"],
         "config": {"rules": [{"id": "t", "pattern": "secret", "placeholder": "[T]"}]}},
        without="harm",
    )  # fmt: skip
    script = [
        ThinkingDelta("a sec"),
        TextDelta("one "),
        TextDelta("two ", 1),
        ThinkingDelta("ret plan"),
        ToolCallDelta(0, "c1", "lookup", '{"q": "sec'),
        ToolCallDelta(0, arguments='ret"}'),
    ]
    case = await trial(script, policy=policy)
    await case.pump.run()
    thinking = [e for e in await case.events() if e.get("channel") == "thinking"]
    assert "secret" not in str(thinking)
    assert "[T]" in str(thinking)
    chunks = [(e["choice"], e["chunk"]) for e in await case.of("message_stream") if e["channel"] == "text"]
    assert (0, "one ") in chunks
    assert (1, "two ") in chunks
    (call,) = await case.of("tool_call")
    assert call["arguments"] == '{"q": "[T]"}'
    (result,) = await case.of("tool_result")
    assert "no tool named" in str(result["error"])
    assert (await session_row(case)).answer.content == "one "


async def of_choice(case: Trial, choice: int) -> list[str]:
    """The chunks of one choice."""
    stream = await case.of("message_stream")
    return [str(e["chunk"]) for e in stream if (e["channel"], e["choice"]) == ("text", choice) and e["chunk"]]


async def test_a_value_that_comes_in_pieces_in_choice_1_of_2_is_hidden_there_alone() -> None:
    """The pieces of the two choices take turns: each has a gate, and neither completes the other's match."""
    script: list[TextDelta | Stopped] = []
    for piece, other in (("My number ", "It is "), ("is 536-", "536-"), ("22-8", "22-"), ("145, ok", "none, ok")):
        script += [TextDelta(other, 0), TextDelta(piece, 1)]
    case = await trial(script, policy=policy_of(without="harm"))
    await case.pump.run()
    assert "".join(await of_choice(case, 1)) == "My number is , ok"
    assert [(e["at"], e["label"]) for e in await case.of("redaction")] == [(len("My number is "), "[SSN]")]
    assert "".join(await of_choice(case, 0)) == "It is 536-22-none, ok"
    assert SSN not in str(await case.events())
    row = await session_row(case)
    assert (row.outcome, row.answer.content) == ("redacted", "It is 536-22-none, ok")
    found = await database_sync_to_async(lambda: list(Finding.objects.values_list("channel", "rule")))()
    assert found == [("text", "ssn")]


async def test_a_block_in_choice_1_ends_every_channel_with_what_it_held() -> None:
    """One policy over all channels: nothing that another one still held, or is sent later, is shown."""
    never = asyncio.Event()
    script = [
        ThinkingDelta("thought 536-22-"),
        TextDelta("zero 536-22-", 0),
        TextDelta("one blue he", 1),
        ToolCallDelta(0, "c1", "lookup", '{"q": "536-22-'),
        TextDelta("ron", 1),
        TextDelta("8145 later", 0),
        never,
        TextDelta("never", 0),
    ]
    everywhere = {"name": "all", "kind": "pii", "applies_to": ["thinking", "tool_arguments"]}
    case = await trial(script, policy=policy_of(everywhere, without="harm"))
    await asyncio.wait_for(case.pump.run(), 20)
    assert case.provider.closed
    stream = await case.of("message_stream")
    assert "".join(str(e["chunk"]) for e in stream if e["channel"] == "thinking") == "thought "
    assert "".join(await of_choice(case, 1)) == "one "
    assert "".join(await of_choice(case, 0)) == "zero "
    assert await case.of("tool_call") == []
    assert [event for event in await case.events() if "536-22" in str(event)] == []
    assert len(await case.of("blocked")) == 1
    row = await session_row(case)
    assert (row.outcome, row.answer.status, row.answer.content) == ("blocked", "blocked", "zero ")


class Sentences(Kind[Config]):
    """A check at sentence ends under the test's control (no name: it registers nowhere)."""

    family = Family.LOCAL_ML
    Config = Config
    performance = PerformanceCharacteristics(PerformanceClass.MODERATE, 200, 500, 900)

    def __init__(self, said: Verdict | Exception | None = None) -> None:
        super().__init__(Config())
        self.said = said
        self.go = asyncio.Event()
        self.asked = asyncio.Event()

    async def check(self, request: CheckRequest, services: Services) -> Verdict:
        self.asked.set()
        if self.said is None:
            await self.go.wait()
            return Verdict(hit=False)
        if isinstance(self.said, Exception):
            raise self.said
        return self.said


def batched(kind: Sentences, *, on_error: OnError = OnError.BLOCK, limit_s: float = 5.0) -> Policy:
    guardrail = Guardrail(
        name="tone", kind="tone", impl=kind, applies_to=frozenset({AppliesTo.RESPONSE}), mode=Mode.BLOCK,
        action=Action.BLOCK, on_error=on_error, checkpoint=Checkpoint.BATCHED, time_limit_s=limit_s, client=False,
        rules=(), limits=(),
    )  # fmt: skip
    base = policy_of(without="harm")
    return replace(base, guardrails=(*base.guardrails, guardrail), _plans={}, _scanners={})


async def test_sentence_is_held_until_its_check_has_passed() -> None:
    kind, more = Sentences(), asyncio.Event()
    case = await trial(["First sentence. ", "Second one begins", more, " and ends."], policy=batched(kind))
    run = asyncio.create_task(case.pump.run())
    await asyncio.wait_for(kind.asked.wait(), 10)
    assert await case.shown() == ""
    kind.go.set()
    await case.until("message_stream")
    more.set()
    await asyncio.wait_for(run, 10)
    assert await case.shown() == "First sentence. Second one begins and ends."
    states = [e["state"] for e in await case.of("guardrail_status") if e["guardrail"] == "tone"]
    assert "checking" in states
    assert "passed" in states


async def test_failing_or_slow_check_blocks_or_allows_as_on_error_says_and_is_visible() -> None:
    cases = [
        (Sentences(ValueError("boom")), OnError.BLOCK, 5.0, "blocked", "error"),
        (Sentences(ValueError("boom")), OnError.ALLOW, 5.0, "allowed", "error"),
        (Sentences(), OnError.BLOCK, 0.05, "blocked", "timeout"),
        (Sentences(Verdict(True, 0.9, "rude")), OnError.ALLOW, 5.0, "blocked", "hit"),
    ]
    for kind, on_error, limit_s, outcome, state in cases:
        case = await trial(["One sentence. Two."], policy=batched(kind, on_error=on_error, limit_s=limit_s))
        await asyncio.wait_for(case.pump.run(), 10)
        assert (await session_row(case)).outcome == outcome
        statuses = [e for e in await case.of("guardrail_status") if e["guardrail"] == "tone"]
        assert state in [e["state"] for e in statuses]
        assert "boom" not in str(statuses)


async def test_deciding_judge_holds_the_whole_answer() -> None:
    judge = {"name": "gatekeeper", "kind": "ai_judge", "applies_to": ["response"], "mode": "BLOCK", "action": "block",
             "config": {"rubric": "harm"}}  # fmt: skip
    policy = policy_of(judge, without="harm")
    bad = await trial(["First you mix ", "the poison."], policy=policy)
    await asyncio.wait_for(bad.pump.run(), 10)
    assert await bad.shown() == ""
    assert (await session_row(bad)).outcome == "blocked"
    good = await trial(["A calm ", "lake."], policy=policy)
    await asyncio.wait_for(good.pump.run(), 10)
    assert await good.shown() == "A calm lake."
    assert (await session_row(good)).state == "COMPLETE"
