"""Guardrails in MONITOR that are slower than the answer: its text does not wait, and what they find is on record.

Of prompts and tools see ``test_monitor_delays_nothing``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from guardrails.policy import Policy, compile_policy
from streaming import asking, deferred
from streaming.agent import Said
from streaming.checks import MAX_UNANSWERED
from streaming.core.events import ProviderEvent, ProviderNotice, TextDelta
from streaming.deferred import run_deferred
from streaming.inbox import Broken
from streaming.log import LogUnavailable, MemoryLog, Payload
from streaming.models import AuditSession, DeferredCheck, Finding

from .pumping import Trial, trial
from .test_agent import Tools, answer, asks, tools  # noqa: F401 -- ``tools`` is a fixture
from .test_monitor_delays_nothing import Slow, findings, policy, slow_kind, states  # noqa: F401 -- a fixture

pytestmark = pytest.mark.django_db(transaction=True)
LIMIT_S = 30


def said() -> Policy:
    """The slow check of answers."""
    return policy("MONITOR", "block", 60, "response")


def sentences(count: int) -> list[str]:
    return [f"Sentence {n} is here. " for n in range(count)]


async def under_way(case: Trial, questions: int) -> asyncio.Task[None]:
    """The pump, as soon as so many questions are asked."""
    pump = asyncio.create_task(case.pump.run())
    while len(Slow.asked) < questions:  # noqa: ASYNC110
        await asyncio.sleep(0)
    return pump


async def until_closed(case: Trial) -> None:
    """Nothing more comes from the provider."""
    while not case.provider.closed:  # noqa: ASYNC110
        await asyncio.sleep(0)


async def ended(case: Trial) -> tuple[str, str, str]:
    """State, outcome and what would have happened."""
    session = await AuditSession.objects.aget(pk=case.session_id)
    return session.state, session.outcome, session.would_have


async def test_it_works() -> None:
    text = sentences(30)
    async with asyncio.timeout(LIMIT_S):
        case = await trial(text, policy=said())
        pump = await under_way(case, MAX_UNANSWERED)
        await case.until_shown("".join(text))
        assert (len(Slow.asked), await case.of("done")) == (MAX_UNANSWERED, [])
        Slow.go.set()
        await pump
    assert await findings() == [("slow", "text", "blocked")] * 30
    assert await ended(case) == ("COMPLETE", "allowed", "blocked")


async def test_one_that_decides_is_waited_for_beside_it() -> None:
    entry = {"kind": "trial_slow", "applies_to": ["response"], "time_limit_s": 60}
    given = compile_policy({"policy": "t", "guardrails": [
        {"name": "slow", "mode": "MONITOR", "action": "block", **entry}, {"name": "keeps", "action": "redact", **entry},
    ]}, version=1, digest="sha256:t")  # fmt: skip
    async with asyncio.timeout(LIMIT_S):
        case = await trial(sentences(30), policy=given)
        pump = await under_way(case, MAX_UNANSWERED + 1)
        assert await case.of("message_stream") == []
        Slow.go.set()
        await pump
    assert len(Slow.asked) == 60
    assert (await findings()).count(("slow", "text", "blocked")) == 30


async def test_what_is_too_far_behind_is_asked_by_a_worker_and_nothing_is_found_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(asking, "MAX_BEHIND", 3)
    monkeypatch.setattr(deferred, "policy_by_digest", lambda digest: said())
    text, more = sentences(9), asyncio.Event()
    async with asyncio.timeout(LIMIT_S):
        case = await trial([*text[:4], more, *text[4:]], policy=said())
        pump = await under_way(case, 3)
        Slow.go.set()
        await case.until("finding", 3)
        Slow.go.clear()
        more.set()
        await pump
        assert (await ended(case))[:2] == ("MONITORING", "allowed")
        row = await DeferredCheck.objects.aget()
        assert (row.applies_to, row.sentences, row.state) == ("response", True, "waiting")
        assert states(await case.events())[-1] == "waiting"
        Slow.go.set()
        assert await run_deferred(row.pk, case.log)
    found = [(row.start, row.exposed) async for row in Finding.objects.order_by("start")]
    assert found == [(sum(map(len, text[:n])), len(text[n])) for n in range(9)]
    assert (await ended(case))[0] == "COMPLETE"


async def test_one_choice_is_far_behind_and_another_is_still_out_when_the_answer_is_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(asking, "MAX_BEHIND", 3)
    monkeypatch.setattr(deferred, "policy_by_digest", lambda digest: said())
    async with asyncio.timeout(LIMIT_S):
        other, text = "Of the other choice. And", sentences(5)
        case = await trial([TextDelta(other, choice=1), *text, asyncio.Event()], policy=said())
        pump = await under_way(case, 3)
        await case.until_shown("".join([other, *text]))
        await case.log.interrupt(case.session_id)
        await case.until("done")
        rows = [(row.place, row.sentences, row.state) async for row in DeferredCheck.objects.order_by("part")]
        assert rows == [("response", True, "waiting"), ("response#1", True, "checking")]
        Slow.go.set()
        await pump
        assert await run_deferred((await DeferredCheck.objects.aget(part=0)).pk, case.log)
    assert await Finding.objects.acount() == 6
    assert await ended(case) == ("COMPLETE", "interrupted", "blocked")


@pytest.mark.parametrize("how", ["stopped", "failed", "blocked"])
async def test_what_was_shown_is_judged_however_the_answer_ends(how: str) -> None:
    last: dict[str, str | Exception | asyncio.Event] = {
        "stopped": asyncio.Event(), "failed": RuntimeError("the adapter broke"), "blocked": "A blue heron."
    }  # fmt: skip
    async with asyncio.timeout(LIMIT_S):
        case = await trial(["One sentence. ", "Another. ", last[how]], policy=said())
        pump = await under_way(case, 1)
        if how == "stopped":
            await case.log.interrupt(case.session_id)
            await case.until("done")
        else:
            await until_closed(case)
            assert await case.of("done") == []
        Slow.go.set()
        await pump
    assert ("slow", "text", "blocked") in await findings()
    assert await ended(case) == (
        "COMPLETE", {"stopped": "interrupted", "failed": "error", "blocked": "blocked"}[how], "blocked"
    )  # fmt: skip
    assert states(await case.events())[-1] == "would_block"


class Failing(MemoryLog):
    """Away once for what has an event of the type ``at``; ``made``: it was appended all the same."""

    def __init__(self, at: str, *, made: bool = False) -> None:
        super().__init__()
        self.at, self.made, self.failed = at, made, 0

    async def append(
        self, session_id: str, payloads: Sequence[Payload], *, ms: int, floor: int = 0, known: int = 1
    ) -> int:
        fails = not self.failed and any(payload["type"] == self.at for payload in payloads)
        if self.made or not fails:
            seq = await super().append(session_id, payloads, ms=ms, floor=floor, known=known)
        if fails:
            self.failed += 1
            raise LogUnavailable("away")
        return seq


@pytest.mark.parametrize("how", ["stopped", "store away"])
async def test_of_a_sentence_that_was_shown_in_part_it_is_said_how_much(how: str) -> None:
    given = compile_policy({"policy": "t", "guardrails": [
        {"name": "slow", "kind": "trial_slow", "mode": "MONITOR", "applies_to": ["response"], "time_limit_s": 60},
        {"name": "end", "kind": "regex", "config": {"rules": [{"id": "e", "pattern": r"end\. Now"}]}},
    ]}, version=1, digest="sha256:t")  # fmt: skip
    async with asyncio.timeout(LIMIT_S):
        more, log = asyncio.Event(), Failing("error")
        said_of_it = ProviderNotice("busy", "It takes its time.")
        case = await trial(["This is the end. N", more, said_of_it, asyncio.Event()], policy=given, log=log)
        pump = await under_way(case, 1)
        await case.until_shown("This is the ")
        if how == "stopped":
            await case.log.interrupt(case.session_id)
            await case.until("done")
        else:
            more.set()
            await until_closed(case)
        Slow.go.set()
        await pump
    assert log.failed == (how == "store away")
    row = await Finding.objects.aget()
    assert (row.guardrail, row.start, row.exposed) == ("slow", 0, len("This is the "))
    assert [event["n"] for event in await case.of("finding")] == [1]


@pytest.mark.parametrize("how", ["interrupted", "error"])
async def test_text_that_came_with_the_end_was_shown_and_is_judged(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    case = await trial(["One sentence. A", asyncio.Event()], policy=said())
    take = case.pump._take_in_passing

    def take_and_stop(event: ProviderEvent) -> bool:
        taken = take(event)
        if case.pump._answer.questions and how == "error":
            case.pump._inbox.put_nowait(Broken(RuntimeError("of ours")))
        elif case.pump._answer.questions:
            case.pump._interrupted()
        return taken

    monkeypatch.setattr(case.pump, "_take_in_passing", take_and_stop)
    Slow.go.set()
    async with asyncio.timeout(LIMIT_S):
        await case.pump.run()
    assert await case.shown() == "One sentence. A"
    assert await findings() == [("slow", "text", "blocked")]
    assert await ended(case) == ("COMPLETE", how, "blocked")


async def test_what_a_tool_call_said_with_a_stop_is_on_record(tools: Tools) -> None:  # noqa: F811
    rule = {"name": "rule", "kind": "regex", "action": "warn", "applies_to": ["tool_result"],
            "config": {"rules": [{"id": "r", "pattern": "echo"}]}}  # fmt: skip
    slow = {"name": "slow", "kind": "trial_slow", "mode": "MONITOR", "applies_to": ["tool_result"], "time_limit_s": 60}
    given = compile_policy({"policy": "t", "guardrails": [rule, slow]}, version=1, digest="sha256:t")
    case = await answer([asks(("echo", {"text": "One."}))], tools, given)
    tell = case.pump._agent._tell

    def tell_and_stop(call: Said) -> None:
        tell(call)
        if call.over:
            case.pump._interrupted()

    case.pump._agent._tell = tell_and_stop
    Slow.go.set()
    async with asyncio.timeout(LIMIT_S):
        await case.pump.run()
    assert {(name, channel) for name, channel, _ in await findings()} == {
        ("rule", "tool_result"),
        ("slow", "tool_result"),
    }
    assert len(await case.of("finding")) == 2
    assert (await ended(case))[:2] == ("COMPLETE", "interrupted")


async def heard_out(how: str, log: MemoryLog | None = None) -> tuple[Trial, asyncio.Task[None]]:
    """An answer, or a prompt that was blocked, that only waits for a check in MONITOR any more."""
    prompt = "One sentence. A blue heron." if how == "blocked" else "One sentence."
    case = await trial(["Hello."], prompt=prompt, policy=policy(), log=log)
    pump = await under_way(case, 1)
    await case.until("blocked" if how == "blocked" else "message_stream")
    while case.pump._result is None:  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert await case.of("done") == []
    return case, pump


@pytest.mark.parametrize("how", ["allowed", "blocked"])
async def test_an_answer_that_is_over_can_still_be_stopped_and_stays_what_it_was(how: str) -> None:
    async with asyncio.timeout(LIMIT_S):
        case, pump = await heard_out(how)
        await case.log.interrupt(case.session_id)
        await case.until("done")
        assert not Slow.go.is_set()
        assert (await ended(case))[:2] == ("MONITORING", how)
        Slow.go.set()
        await pump
    assert ("slow", "prompt", "blocked") in await findings()
    assert await ended(case) == ("COMPLETE", how, "blocked")


@pytest.mark.parametrize("how", ["allowed", "blocked"])
async def test_an_answer_that_is_over_stays_what_it_was_when_the_server_stops(how: str) -> None:
    async with asyncio.timeout(LIMIT_S):
        case, pump = await heard_out(how)
        pump.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pump
    check = await DeferredCheck.objects.aget()
    session = await AuditSession.objects.aget(pk=case.session_id)
    assert (session.state, session.outcome, session.error_code) == ("COMPLETE", how, "")
    assert (check.state, "stopped" in check.error) == ("error", True)
    assert states(await case.events())[-1] == "error"


@pytest.mark.parametrize("made", [False, True], ids=["not appended", "appended and not confirmed"])
async def test_a_finding_that_the_log_was_away_for_is_told_once(made: bool) -> None:
    log = Failing("finding", made=made)
    async with asyncio.timeout(LIMIT_S):
        case, pump = await heard_out("allowed", log)
        Slow.go.set()
        await pump
    told = [str(event["type"]) for event in await case.events()]
    assert (log.failed, told.count("finding")) == (1, 1)
    assert told.index("finding") < told.index("done")
    assert states(await case.events())[-1] == "would_block"
