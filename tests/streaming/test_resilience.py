"""A provider that fails is not the end: what is tried again, who is asked next, and what is never done twice."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

import pytest
import stamina

from streaming import breakers
from streaming.breakers import OPEN_S, THRESHOLD
from streaming.core.events import (
    ModelNamed,
    ProviderChosen,
    ProviderEvent,
    ProviderNotice,
    Stopped,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    Usage,
)
from streaming.log_redis import close_shared_log, shared_log
from streaming.models import AuditSession, Message
from streaming.providers.base import (
    ChatMessage,
    Deadline,
    Provider,
    ProviderAuthError,
    ProviderError,
    ProviderProtocolError,
    ProviderRateLimited,
    ProviderRefused,
    ProviderRequest,
    ProviderTimeout,
    ProviderUnavailable,
    StreamCutOff,
    TimeLimits,
    get_provider,
)
from streaming.resilience import TRIES, Calls, Upstreams
from streaming.tools.base import specs
from tests.streaming.pumping import Controlled, Trial, policy_of, trial
from tests.streaming.test_metrics import Growth

ASK = ProviderRequest((ChatMessage("user", "hello"),), model="big-1")
DOWN = ProviderUnavailable("it is down")
FORGET = "for _, k in ipairs(redis.call('KEYS', 'sg:breaker:*')) do redis.call('DEL', k) end"
PASSING = [DOWN, ProviderTimeout("slow"), StreamCutOff("cut"), ProviderRateLimited("wait"), ProviderRateLimited("w", 7)]


@pytest.fixture(autouse=True)
async def alone() -> AsyncIterator[None]:
    """No waiting between tries, and breakers that nobody has seen."""
    breakers.forget()
    stamina.set_testing(True, attempts=TRIES, cap=True)
    await shared_log().evaluate(
        "for _, k in ipairs(redis.call('KEYS', 'sg:breaker:*')) do redis.call('DEL', k) end", [], []
    )
    yield
    stamina.set_testing(False)
    await close_shared_log()


@dataclass(eq=False)
class Named(Controlled):
    """A provider whose every call follows the next script; the last one again and again."""

    name: str = "first"  # type: ignore[misc]
    scripts: Sequence[Sequence[str | ProviderEvent | Exception | asyncio.Event]] = ()
    whole: Sequence[str | ProviderEvent | Exception | asyncio.Event] = (DOWN,)
    calls: list[str] = field(default_factory=list)

    async def stream(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        self.calls.append("stream")
        self.script = self.scripts[min(self.calls.count("stream"), len(self.scripts)) - 1]
        async with aclosing(super().stream(request)) as events:
            async for event in events:
                yield event

    async def standard(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        self.calls.append("standard")
        self.script = self.whole
        async with aclosing(super().stream(request)) as events:
            async for event in events:
                yield event


async def heard(*providers: Provider, streaming: bool = True) -> tuple[list[ProviderEvent], ProviderError | None]:
    events: list[ProviderEvent] = []
    try:
        async with aclosing(Upstreams(providers, streaming).ask(ASK)) as stream:
            async for event in stream:
                events.append(event)  # noqa: PERF401 - what came before an error counts
    except ProviderError as error:
        return events, error
    return events, None


def codes(events: list[ProviderEvent]) -> list[str]:
    return [event.code for event in events if isinstance(event, ProviderNotice)]


async def test_it_works() -> None:
    provider = Named(scripts=[["hel", "lo", Stopped("stop")]])
    events, error = await heard(provider)
    assert error is None
    assert events == [ProviderChosen("first", True), TextDelta("hel"), TextDelta("lo"), Stopped("stop")]
    assert provider.calls == ["stream"]


@pytest.mark.parametrize(
    "failure",
    [DOWN, ProviderTimeout("slow"), StreamCutOff("cut"), ProviderRateLimited("wait"), ProviderRateLimited("w", 7)],
)
async def test_a_failure_before_the_first_token_is_tried_again_and_each_try_is_told(failure: ProviderError) -> None:
    provider = Named(scripts=[[failure], [ModelNamed("m"), failure], ["fine"]])
    events, error = await heard(provider)
    assert error is None
    notices = [event for event in events if isinstance(event, ProviderNotice)]
    assert [(notice.code, notice.attempt) for notice in notices] == [(failure.code, 1), (failure.code, 2)]
    assert events[-1] == TextDelta("fine")
    assert all(isinstance(event, ProviderChosen) for event in events[:1])


@pytest.mark.parametrize("streaming", [True, False])
async def test_several_choices_together_with_tools_are_refused_before_anybody_is_asked(streaming: bool) -> None:
    """The results of one choice's calls would go back behind the text of another."""
    first = Named(script=[], scripts=[["fine"]], whole=["fine"])
    several = replace(ASK, choices=2)
    with pytest.raises(ProviderRefused, match="one choice only"):
        await heard_of(replace(several, tools=specs()), first, streaming=streaming)
    assert first.calls == []
    assert await heard_of(several, first, streaming=streaming) == "fine"
    assert await heard_of(replace(ASK, tools=specs()), first, streaming=streaming) == "fine"


async def heard_of(request: ProviderRequest, *providers: Provider, streaming: bool) -> str:
    async with aclosing(Upstreams(providers, streaming).ask(request)) as stream:
        return "".join([event.text async for event in stream if isinstance(event, TextDelta)])


async def test_the_waits_double_up_to_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    stamina.set_testing(False)
    slept: list[float] = []

    async def sleep(delay: float) -> None:
        slept.append(delay)

    monkeypatch.setattr("stamina._core._smart_sleep", sleep)
    monkeypatch.setattr("asyncio.sleep", sleep)
    events, _ = await heard(Named(scripts=[[DOWN], [DOWN], ["fine"]]))
    told = [event.delay_s for event in events if isinstance(event, ProviderNotice)]
    assert told == [1.0, 2.0]
    assert len(slept) == 2
    assert all(told_s <= slept_s <= told_s + 1.0 for told_s, slept_s in zip(told, slept, strict=True))


async def test_no_wait_is_longer_than_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    stamina.set_testing(False)
    slept: list[float] = []

    async def sleep(delay: float) -> None:
        slept.append(delay)

    monkeypatch.setattr("stamina._core._smart_sleep", sleep)
    monkeypatch.setattr("asyncio.sleep", sleep)
    monkeypatch.setattr("streaming.resilience.TRIES", 7)
    events, error = await heard(Named(scripts=[*([[DOWN]] * 6), ["fine"]]))
    assert (error, events[-1]) == (None, TextDelta("fine"))
    told = [event.delay_s for event in events if isinstance(event, ProviderNotice)]
    assert told == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    assert all(told_s <= slept_s <= min(told_s + 1.0, 10.0) for told_s, slept_s in zip(told, slept, strict=True))


async def test_the_wait_is_the_one_that_the_provider_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    stamina.set_testing(False)
    slept: list[float] = []

    async def sleep(delay: float) -> None:
        slept.append(delay)

    monkeypatch.setattr("stamina._core._smart_sleep", sleep)
    monkeypatch.setattr("asyncio.sleep", sleep)
    events, error = await heard(Named(scripts=[[ProviderRateLimited("wait", 7.0)], ["fine"]]))
    assert (error, events[-1]) == (None, TextDelta("fine"))
    assert [event.delay_s for event in events if isinstance(event, ProviderNotice)] == [7.0]
    assert slept == [7.0], "neither less nor a jitter on top"


async def test_who_asks_for_more_than_ten_seconds_is_asked_again_only_when_all_have_failed() -> None:
    long = ProviderRateLimited("busy", 10.5)
    provider, other = Named(scripts=[[long]], whole=(long,)), Named(name="second", scripts=[["other"]])
    events, error = await heard(provider, other)
    assert (error, provider.calls, events[-1]) == (None, ["stream"], TextDelta("other"))
    provider = Named(scripts=[[long]], whole=(long,))
    events, error = await heard(provider)
    assert (error, provider.calls) == (long, ["stream", "standard"])
    assert [event.delay_s for event in events if isinstance(event, ProviderNotice)] == [0.0], "a fallback, no retry"


@pytest.mark.parametrize("first", [TextDelta("a"), ThinkingDelta("a"), ToolCallDelta(0, "c", "f")])
async def test_nothing_is_tried_again_after_the_first_token(first: ProviderEvent) -> None:
    provider, other = Named(scripts=[[first, DOWN]]), Named(name="second", scripts=[["other"]])
    events, error = await heard(provider, other)
    assert error is DOWN
    assert events == [ProviderChosen("first", True), first]
    assert (provider.calls, other.calls) == (["stream"], [])


@pytest.mark.parametrize(
    "failure", [ProviderRefused("no"), ProviderProtocolError("garbage"), ProviderRateLimited("long", 60.0)]
)
async def test_what_another_try_does_not_change_goes_to_the_next_provider_at_once(failure: ProviderError) -> None:
    provider, other = Named(scripts=[[failure]]), Named(name="second", scripts=[["other"]])
    events, error = await heard(provider, other)
    assert error is None
    assert provider.calls == ["stream"]
    assert codes(events) == ["provider_fallback"]
    assert ProviderChosen("second", True, failure.code) in events
    assert other.asked[0].model == "", "a model's name is the first provider's"
    assert provider.asked[0].model == "big-1"


async def test_when_no_stream_comes_the_standard_path_answers() -> None:
    provider = Named(scripts=[[DOWN]], whole=["whole", Stopped("stop")])
    events, error = await heard(provider)
    assert error is None
    assert provider.calls == ["stream"] * TRIES + ["standard"]
    assert events[-3:] == [ProviderChosen("first", False, "provider_unavailable"), TextDelta("whole"), Stopped("stop")]
    assert codes(events) == ["provider_unavailable"] * (TRIES - 1) + ["provider_fallback"]


async def test_when_nobody_answers_the_first_failure_is_told() -> None:
    first = Named(scripts=[[ProviderAuthError("no key")]])
    second = Named(name="second", scripts=[[ProviderRefused("no")]], whole=[ProviderRefused("no")])
    events, error = await heard(first, second)
    assert isinstance(error, ProviderAuthError)
    assert (first.calls, second.calls) == (["stream"], ["stream", "standard"])
    assert not [event for event in events if isinstance(event, TextDelta)]


async def test_without_streaming_only_whole_answers_are_asked_for() -> None:
    provider = Named(scripts=[["never"]], whole=["whole"])
    events, error = await heard(provider, streaming=False)
    assert (error, provider.calls) == (None, ["standard"])
    assert events == [ProviderChosen("first", False), TextDelta("whole")]


async def test_a_reader_who_goes_away_closes_the_provider_in_every_phase() -> None:
    never = asyncio.Event()
    for scripts in ([[never]], [[DOWN], [never]], [["text", never]]):
        provider = Named(scripts=scripts)
        stream = Upstreams((provider,)).ask(ASK)
        task = asyncio.create_task(_drain(stream))
        while len(provider.asked) < len(scripts):  # noqa: ASYNC110 - it runs in another task
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert provider.closed


async def test_with_the_first_token_the_call_is_handed_over_and_nothing_stands_around_it() -> None:
    first, second = Named(scripts=[[ModelNamed("m"), DOWN]]), Named(name="second", scripts=[["one", "two", DOWN]])
    handed: Calls = []
    chain = Upstreams((first, second)).ask(ASK, handed)
    asked = [event async for event in chain]
    assert asked[-1] == TextDelta("one")
    (call,) = handed
    assert await anext(call) == TextDelta("two")
    assert not second.closed, "who was handed the call closes it"
    with pytest.raises(ProviderError):  # and hears of its failure
        await anext(call)
    assert second.closed


@pytest.mark.django_db(transaction=True)
async def test_a_stream_that_waits_keeps_nothing_of_the_way_to_its_call() -> None:
    held, ways = Named(scripts=[["text", asyncio.Event()]]), list[weakref.ref[object]]()

    class Watched:
        providers, streaming = (held,), True

        def ask(self, request: ProviderRequest, handed: Calls | None = None) -> AsyncGenerator[ProviderEvent, None]:
            made = Upstreams(self.providers).ask(request, handed)
            ways.append(weakref.ref(made))
            return made

    case = await trial([], policy=policy_of(without="harm"))
    case.pump._run = replace(case.pump._run, upstreams=Watched())
    task = asyncio.create_task(case.pump.run())
    async with asyncio.timeout(5):
        while not ways or ways[0]() is not None:  # noqa: ASYNC110 - it goes in another task
            await asyncio.sleep(0.001)
    assert not held.closed
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert held.closed


async def test_who_stops_reading_at_any_event_closes_the_provider() -> None:
    for last in (ModelNamed("m"), TextDelta("first"), TextDelta("second")):
        provider = Named(scripts=[[ModelNamed("m"), "first", "second", "third"]])
        async with aclosing(Upstreams((provider,)).ask(ASK)) as events:
            async for event in events:
                if event == last:
                    assert not provider.closed
                    break
        assert provider.closed, last


@pytest.mark.django_db(transaction=True)
async def test_every_try_and_every_change_is_a_recoverable_error_event_that_a_reader_gets() -> None:
    first = Named(scripts=[[DOWN]])
    second = Named(name="second", scripts=[["fine"]])
    case = await trial([], policy=policy_of(without="harm"))
    case.pump._run = replace(case.pump._run, upstreams=Upstreams((first, second)))
    await case.pump.run()
    told = await case.of("error")
    assert [(event["code"], event["recoverable"]) for event in told] == [
        ("provider_unavailable", True), ("provider_unavailable", True), ("provider_fallback", True)
    ]  # fmt: skip
    assert [
        f"({number} of {TRIES})" in str(event["message"]) for number, event in zip((2, 3), told[:2], strict=True)
    ] == [True] * 2
    assert await case.shown() == "fine"
    assert [event["outcome"] for event in await case.of("done")] == ["allowed"]


async def test_of_three_providers_every_failure_is_a_reason_in_its_order() -> None:
    first, second = Named(scripts=[[DOWN]]), Named(name="second", scripts=[[ProviderTimeout("slow")]])
    events, _ = await heard(first, second, Named(name="third", scripts=[["fine"]]))
    told = [(event.provider, event.fallback, event.after) for event in events if isinstance(event, ProviderChosen)]
    assert told == [
        ("first", "", ""),
        ("second", "provider_unavailable", "provider_unavailable"),
        ("third", "provider_unavailable, provider_timeout", "provider_timeout"),
    ]


@dataclass(eq=False)
class Loops(Named):
    """Asks for a tool first; what it does when it has the result stands in ``scripts``."""

    rounds: int = 0

    async def stream(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        if request.messages[-1].role != "tool":
            self.rounds += 1
            yield TextDelta("Let me see. ")
            yield Usage(10, 1)
            yield Usage(output_tokens=5)
            yield ToolCallDelta(0, "c", "calculator", '{"expression": "6 * 7"}')
            yield Stopped("tool_calls")
            return
        async with aclosing(super().stream(request)) as events:
            async for event in events:
                yield event


async def looped(*providers: Named) -> Trial:
    """An answer with two rounds."""
    case = await trial([], policy=policy_of(without="harm"))
    tools = replace(case.pump._run.request, tools=specs())
    case.pump._run = replace(case.pump._run, upstreams=Upstreams(providers), request=tools)
    case.pump._request = replace(tools, rest_s=case.pump._rest_s)
    await case.pump.run()
    return case


@pytest.mark.django_db(transaction=True)
async def test_a_later_round_is_tried_again_and_falls_back_and_what_was_shown_and_run_stays() -> None:
    """docs/adr/0201: the first token is that of a round; every step is told."""
    first, second = Loops(scripts=[[DOWN]]), Named(name="second", scripts=[["It is 42."]])
    case = await looped(first, second)
    assert await case.shown() == "Let me see. It is 42."
    assert (first.rounds, len(await case.of("tool_result"))) == (1, 1)
    assert [event["code"] for event in await case.of("error")] == ["provider_unavailable"] * 2 + ["provider_fallback"]
    row = await AuditSession.objects.aget(pk=case.session_id)
    assert (row.provider, row.outcome, row.fallback) == ("second", "allowed", "provider_unavailable")


@pytest.mark.django_db(transaction=True)
async def test_a_later_round_that_has_begun_to_speak_is_not_tried_again() -> None:
    first, second = Loops(scripts=[["So it is. ", DOWN]]), Named(name="second", scripts=[["It is 42."]])
    case = await looped(first, second)
    assert await case.shown() == "Let me see. So it is. "
    assert second.calls == []
    assert [event["outcome"] for event in await case.of("done")] == ["error"]


@pytest.mark.django_db(transaction=True)
async def test_the_reasons_of_every_round_are_kept_and_counted() -> None:
    grown = Growth.since_now()
    first = Named(scripts=[[ProviderRefused("no")], ["It is 42."]])
    second = Loops(name="second", scripts=[["not asked"]])
    case = await looped(first, second)
    (update,) = [event for event in await case.of("message_update") if event["message_id"] == case.answer_id]
    row = await AuditSession.objects.aget(pk=case.session_id)
    assert update["metadata"]["fallback"] == row.fallback == "provider_refused"  # type: ignore[index]
    assert (row.provider, await case.shown()) == ("first", "Let me see. It is 42.")
    assert grown.of("sluicegate_fallbacks_total", reason="provider_refused") == 1
    assert grown.of("sluicegate_fallbacks_total") == 1


@pytest.mark.django_db(transaction=True)
async def test_what_an_answer_used_is_the_sum_of_its_rounds() -> None:
    """Within a round the counts are those so far: one vendor says them at the beginning and at the end."""
    case = await looped(Loops(scripts=[[Usage(30, 1), "It is 42.", Usage(output_tokens=7, reasoning_tokens=2)]]))
    message = await Message.objects.aget(pk=case.answer_id)
    assert message.metadata["usage"] == {"input_tokens": 40, "output_tokens": 12, "reasoning_tokens": 2}


async def test_nobody_is_asked_behind_the_deadline_and_no_try_is_waited_for_beyond_it() -> None:
    for left_s, calls in ((-1.0, []), (0.0, []), (5.0, ["stream"])):
        provider = Named(scripts=[[ProviderRateLimited("wait", 7)]])
        asked = Upstreams((provider,), streaming=True).ask(replace(ASK, deadline=Deadline.after(left_s)))
        with pytest.raises(ProviderTimeout if not calls else ProviderRateLimited):
            await _drain(asked)
        assert provider.calls[:2] == (calls and ["stream", "standard"]), left_s


@dataclass(frozen=True)
class Passing(Deadline):
    """Passes when it is told to; ``left`` seconds remain until then."""

    gone: asyncio.Event
    left: float

    @property
    def left_s(self) -> float:
        return 0.0 if self.gone.is_set() else self.left


@dataclass(eq=False)
class Silent(Named):
    """Says nothing until the answer's deadline has passed. Its own limit for an answer is 900 s."""

    fails_first: ProviderError | None = None

    async def stream(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        self.calls.append("stream")
        if self.fails_first is not None and len(self.calls) == 1:
            raise self.fails_first
        assert isinstance(request.deadline, Passing)
        request.deadline.gone.set()
        raise ProviderTimeout(request.deadline.words)
        yield TextDelta("never")

    async def standard(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        async with aclosing(self.stream(request)) as events:
            async for event in events:
                yield event


@pytest.mark.parametrize(
    ("silent", "left_s", "state"),
    [
        (Silent(name="second"), 20.0, "closed"),
        (Silent(name="second"), 899.0, "open"),
        (Silent(name="second", fails_first=DOWN), 20.0, "open"),
        (Silent(name="second", fails_first=ProviderRateLimited("later", 700)), 20.0, "open"),
    ],
    ids=["what the others left", "all its time", "it had failed by itself before", "and would have it wait"],
)
async def test_the_answers_deadline_does_not_count_against_whoever_is_asked_last(
    silent: Silent, left_s: float, state: str
) -> None:
    for _ in range(THRESHOLD):
        silent.calls.clear()
        first = Named(scripts=[[ProviderRefused("not this one")]])
        request = replace(ASK, deadline=Passing(0.0, 900.0, asyncio.Event(), left_s))
        with pytest.raises(ProviderTimeout):
            await _drain(Upstreams((first, silent)).ask(request))
        assert silent.calls
    assert await breakers.states(["provider:second"]) == {"provider:second": state}


@pytest.mark.django_db(transaction=True)
async def test_all_rounds_of_an_answer_have_one_deadline() -> None:
    deadlines: list[Deadline | None] = []

    class Noting(Loops):
        async def stream(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
            deadlines.append(request.deadline)
            async with aclosing(super().stream(request)) as events:
                async for event in events:
                    yield event

    await looped(Noting(scripts=[["It is 42."]]))
    assert len(deadlines) == 2
    (deadline,) = set(deadlines)
    assert deadline is not None
    assert deadline.within_s == TimeLimits().total_s


def test_the_limits_are_half_a_minute_three_minutes_and_a_quarter_of_an_hour() -> None:
    assert TimeLimits() == TimeLimits(connect_s=30, token_s=180, total_s=900)


async def _drain(stream: AsyncGenerator[ProviderEvent, None]) -> None:
    async with aclosing(stream):
        async for _ in stream:
            pass


# -- breakers -------------------------------------------------------------------------------------------------------


@pytest.fixture
async def clock(settings: object) -> list[float]:
    """Breakers in memory by this clock; test_breakers.py shows that those in the store follow the same rules."""
    await close_shared_log()
    settings.REDIS_URL = ""  # type: ignore[attr-defined]
    now = [1_000.0]
    breakers.forget(lambda: now[0])
    return now


async def fail_until_open(provider: Named) -> None:
    while (await breakers.states(["provider:first"])).get("provider:first") != "open":
        await heard(provider)


async def test_a_breaker_opens_half_opens_and_closes(clock: list[float]) -> None:
    provider = Named(scripts=[[DOWN]])
    await fail_until_open(provider)
    calls = len(provider.calls)
    assert provider.calls.count("standard") == THRESHOLD * TRIES, "answers are counted, not tries"
    events, error = await heard(provider, Named(name="second", scripts=[["other"]]))
    assert (error, len(provider.calls)) == (None, calls), "an open breaker asks nobody"
    assert ProviderChosen("second", True, "circuit_open") in events

    clock[0] += OPEN_S + 1
    _, error = await heard(provider)
    assert error is not None
    assert len(provider.calls) == calls + 2 * TRIES, "half open: one answer is tried, and it is open again"
    _, error = await heard(provider)
    assert error is not None
    assert error.code == "circuit_open"

    clock[0] += OPEN_S + 1
    provider.scripts = [["back"]]
    events, error = await heard(provider)
    assert (error, events[-1]) == (None, TextDelta("back"))
    assert await breakers.states(["provider:first"]) == {"provider:first": "closed"}


async def test_another_process_finds_the_breaker_as_it_is() -> None:
    await fail_until_open(Named(scripts=[[DOWN]]))
    breakers.forget()  # as if this were another process
    provider = Named(scripts=[["fine"]])
    _, error = await heard(provider)
    assert error is not None
    assert error.code == "circuit_open"
    assert provider.calls == []


async def test_a_provider_that_refuses_is_well() -> None:
    provider = Named(scripts=[[ProviderRefused("no")]], whole=[ProviderRefused("no")])
    for _ in range(THRESHOLD + 1):
        await heard(provider)
    assert await breakers.states(["provider:first"]) == {"provider:first": "closed"}


async def test_a_probe_that_its_reader_gives_up_leaves_the_place_to_the_next(clock: list[float]) -> None:
    never = asyncio.Event()
    await fail_until_open(Named(scripts=[[DOWN]]))
    clock[0] += OPEN_S
    held = Named(scripts=[[never]])
    task = asyncio.create_task(_drain(Upstreams((held,)).ask(ASK)))
    while not held.asked:  # noqa: ASYNC110 - it runs in another task
        await asyncio.sleep(0.001)
    _, error = await heard(Named(scripts=[["fine"]]))
    assert error is not None
    assert error.code == "circuit_open", "one probe at a time"
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    events, error = await heard(Named(scripts=[["fine"]]))
    assert (error, events[-1]) == (None, TextDelta("fine"))
    assert await breakers.states(["provider:first"]) == {"provider:first": "closed"}


async def test_without_a_store_each_process_counts_for_itself(settings: object) -> None:
    await close_shared_log()
    settings.REDIS_URL = ""  # type: ignore[attr-defined]
    provider = Named(scripts=[[DOWN]])
    await fail_until_open(provider)
    calls = len(provider.calls)
    _, error = await heard(provider)
    assert error is not None
    assert (error.code, len(provider.calls)) == ("circuit_open", calls)


# -- who is asked ---------------------------------------------------------------------------------------------------


class Settings:
    SLUICEGATE_FALLBACKS: list[str]


def test_fallbacks_are_those_that_are_named_and_offered(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_MODEL", "OLLAMA_MODEL"):
        monkeypatch.setenv(name, "m")
    settings.SLUICEGATE_FALLBACKS = ["ollama", "nobody", "anthropic", "openai", "ollama"]
    assert [p.name for p in Upstreams.configured(get_provider("openai"), ASK).providers] == ["openai", "ollama"]
    assert [p.name for p in Upstreams.configured(get_provider("scripted"), ASK).providers] == ["scripted"]
    settings.SLUICEGATE_FALLBACKS = ["scripted"]
    assert [p.name for p in Upstreams.configured(get_provider("openai"), ASK).providers] == ["openai", "scripted"]
