"""When the pump lets a provider rest: only in the middle of a text of which nothing could be told sooner."""

from __future__ import annotations

import asyncio

import pytest

from guardrails.findings import Verdict
from streaming.core.events import MessageStream, TextDelta, ThinkingDelta, ToolCallDelta
from streaming.log import MemoryLog
from streaming.outlet import Outlet
from streaming.providers.base import ProviderUnavailable
from tests.streaming.pumping import Rest, Step, Time, policy_of, trial
from tests.streaming.test_pump import Sentences, batched

pytestmark = pytest.mark.django_db(transaction=True)

PLAIN = policy_of(without="harm")


async def rests(*script: Step, **kwargs: object) -> list[float]:
    """What the provider of this script is told; time stands, and what is due is told before it goes on."""
    case = await trial(script, **{"policy": PLAIN, "clock": Time(), **kwargs})  # type: ignore[arg-type]
    await case.pump.run()
    return [round(seconds, 3) for seconds in case.provider.rests]


async def test_it_works() -> None:
    assert await rests(Rest(), "A canal lock ", Rest(), "has a gate.", Rest()) == [0.0, 0.052, 0.052]


async def test_thinking_does_not_make_the_first_character_of_the_text_wait() -> None:
    thought = ThinkingDelta("Hm, ten and more.")
    assert await rests(thought, Rest(), "A canal lock ", Rest()) == [0, 0.052]
    assert await rests("A canal ", Rest(), thought, Rest(), "lock", Rest()) == [0.052, 0, 0.052]


async def test_a_tool_call_under_way_is_taken_as_it_comes() -> None:
    call = ToolCallDelta(0, "id", "nothing_of_ours")
    assert await rests("A canal ", Rest(), call, Rest(), ToolCallDelta(0, arguments="{}"), Rest()) == [0.052, 0, 0]


async def test_a_sentence_that_a_guardrail_waits_for_is_taken_as_it_comes() -> None:
    policy = batched(Sentences(Verdict(hit=False)))
    assert await rests("A canal lock. ", Rest(), "It has a gate. ", Rest(), policy=policy) == [0.0, 0.0]


async def test_what_is_blocked_is_over_at_once() -> None:
    assert await rests("A canal. ", Rest(), "The blue heron flies.", Rest(), " on") == [0.052, 0.0]


WORDS = ["canal, "] * 150
PACED: list[Step] = [step for word in WORDS for step in (0.01, word)]


async def test_a_provider_is_woken_for_a_flush_and_not_for_every_token() -> None:
    case = await trial([0.1, *PACED], policy=PLAIN)
    await case.pump.run()
    assert await case.shown() == "".join(WORDS)
    assert case.provider.woken < len(WORDS) / 2
    (timing,) = await case.of("timing")
    arrivals = timing["arrivals"]
    assert isinstance(arrivals, list)
    assert sum(chars for _, chars in arrivals) == len("".join(WORDS)), "each is an arrival at the time of its read"
    assert len(arrivals) <= case.provider.woken + len(WORDS) / 2
    assert timing["naive_calls"] == len(WORDS)


async def test_an_interrupt_does_not_wait_for_the_end_of_a_rest() -> None:
    case = await trial(["A canal ", Rest(), 3_600.0, "lock"], policy=PLAIN)
    run = asyncio.create_task(case.pump.run())
    await case.until_shown("A canal ")
    await case.log.interrupt(case.session_id)
    await asyncio.wait_for(run, 10)
    assert case.provider.closed
    assert case.provider.rests == [pytest.approx(0.052, abs=0.01)]


async def test_the_end_and_an_error_behind_a_rest_come_in_their_order() -> None:
    case = await trial([*PACED, 0.001, ProviderUnavailable("gone")], policy=PLAIN)
    await case.pump.run()
    assert await case.shown() == "".join(WORDS)
    kinds = [event["type"] for event in await case.events()]
    assert kinds.index("error") > max(n for n, kind in enumerate(kinds) if kind == "message_stream") - 2


async def test_a_flush_leaves_no_alarm_behind_that_would_wake_the_process_for_nothing() -> None:
    log, time, rung = MemoryLog(), Time(), list[bool]()
    outlet = Outlet(log, "session", time, lambda: 0, lambda: rung.append(True))
    loop = asyncio.get_running_loop()
    for text, due in (("A", True), ("few", False), (" and enough", True)):
        outlet.coming.append(MessageStream("m", "text", 0, text))
        assert outlet.offer(TextDelta(text)) is due
        if due:
            await outlet.tell()
        time.now += 0.06
    assert await log.read("session", 0, 10) != []
    waiting = [handle for handle in getattr(loop, "_scheduled", []) if not handle.cancelled()]
    assert not [handle for handle in waiting if "Outlet" in repr(handle)]
    assert not rung
