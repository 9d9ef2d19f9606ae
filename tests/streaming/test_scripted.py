"""The scripted provider: the same every time, honest, and a judge that speaks the judge's protocol."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from guardrails.findings import AppliesTo
from guardrails.kinds.ai_judge import AiJudgeConfig, judge_prompt, parse_answer
from guardrails.kinds.base import CheckRequest
from streaming.core.events import ModelNamed, ProviderEvent, Stopped, TextDelta, ThinkingDelta
from streaming.providers.base import (
    ChatMessage,
    ProviderRefused,
    ProviderRequest,
    UnknownProvider,
    UnknownScenario,
    available,
    get_provider,
)
from streaming.providers.scripted import OUTAGE_SCENARIOS, SCENARIOS, ScriptedProvider


class Sleeps:
    """Counts instead of sleeping; time passes all the same."""

    def __init__(self) -> None:
        self.taken: list[float] = []
        self.now = 1000.0

    async def __call__(self, seconds: float) -> None:
        self.taken.append(seconds)
        self.now += seconds

    def clock(self) -> float:
        return self.now


def ask(*texts: str, **kwargs: str) -> ProviderRequest:
    roles = ("user", "assistant")
    return ProviderRequest(tuple(ChatMessage(roles[n % 2], text) for n, text in enumerate(texts)), **kwargs)


async def stream(request: ProviderRequest, rate: float = 100.0) -> tuple[list[ProviderEvent], Sleeps]:
    sleeps = Sleeps()
    return [event async for event in ScriptedProvider(rate, sleeps, sleeps.clock).stream(request)], sleeps


async def test_it_works() -> None:
    events, sleeps = await stream(ask("hi", scenario="clean"))
    chunks = [event.text for event in events if isinstance(event, TextDelta)]
    assert "".join(chunks) == SCENARIOS["clean"].answer
    assert all(1 <= len(chunk) <= 8 for chunk in chunks)
    assert isinstance(events[-1], Stopped)
    assert sleeps.taken == pytest.approx([0.01] * (len(chunks) - 1)), "the first chunk must come without delay"


async def test_what_became_due_while_nobody_asked_is_there_at_once_and_nothing_comes_early() -> None:
    """As in a socket: whoever rests finds the tokens that came meanwhile, and the pace stays the provider's."""
    sleeps, came = Sleeps(), list[tuple[float, str]]()
    request = replace(ask("hi", scenario="clean"), rest_s=lambda: 0.05)
    async for event in ScriptedProvider(100.0, sleeps, sleeps.clock).stream(request):
        if isinstance(event, TextDelta):
            came.append((sleeps.now - 1000.0, event.text))
            if len(came) == 40:
                sleeps.now += 1.0  # somebody took their time with this one
    assert "".join(text for _, text in came) == SCENARIOS["clean"].answer
    assert came[0][0] == 0.0
    assert all(at >= n * 0.01 - 1e-6 for n, (at, _) in enumerate(came)), "none before its time"
    assert all(at <= n * 0.01 + 0.05 + 1e-6 for n, (at, _) in enumerate(came[:40])), "none later than the rest"
    assert all(at <= n * 0.01 + 0.05 + 1e-6 for n, (at, _) in enumerate(came[:150]) if n > 145), "and nothing adds up"
    assert len(sleeps.taken) < len(came) / 4


@pytest.mark.parametrize("name", SCENARIOS)
async def test_the_same_request_is_cut_the_same_way_every_time(name: str) -> None:
    assert await stream(ask("x", scenario=name)) is not None
    first, _ = await stream(ask("x", scenario=name))
    second, _ = await stream(ask("x", scenario=name))
    assert first == second


@pytest.mark.parametrize("value", ["536-22-8145", "4111 1111 1111 1111", "desk.seven@example.com"])
async def test_planted_values_are_split_over_several_chunks(value: str) -> None:
    events, _ = await stream(ask("x", scenario="pii"))
    chunks = [event.text for event in events if isinstance(event, TextDelta)]
    start = "".join(chunks).index(value)
    ends, total = set(), 0
    for chunk in chunks:
        total += len(chunk)
        ends.add(total)
    assert len([end for end in ends if start < end < start + len(value)]) >= 1


async def test_free_answer_is_honest_and_sees_the_history() -> None:
    first = await ScriptedProvider().complete(ask("What is a weir?"))
    assert "scripted" in first
    assert "4 words" in first
    later = await ScriptedProvider().complete(ask("What is a weir?", "A low dam.", "And a lock?"))
    assert "2 earlier messages" in later
    assert "What is a weir?" in later


async def test_the_outage_refuses_and_its_second_says_the_answer_that_was_owed() -> None:
    request, provider = ask("x", scenario="outage"), ScriptedProvider(sleep=Sleeps())
    with pytest.raises(ProviderRefused, match="outage"):
        await stream(request)
    with pytest.raises(ProviderRefused, match="outage"):
        [event async for event in provider.standard(request)]
    assert provider.stand_ins(ask("x", scenario="clean")) == ()
    (second,) = provider.stand_ins(request)
    assert second.name != provider.name
    assert second.name not in available({}), "nobody asks it by its name"
    events = [event async for event in second.stream(request)]
    assert events[0] == ModelNamed(second.default_model)
    said = "".join(event.text for event in events if isinstance(event, TextDelta))
    assert said == OUTAGE_SCENARIOS["outage"].answer


async def test_thinking_comes_before_the_answer_and_is_none_of_it() -> None:
    events, _ = await stream(ask("x", scenario="thinking"))
    kinds = [type(event) for event in events if isinstance(event, ThinkingDelta | TextDelta)]
    assert kinds == sorted(kinds, key=lambda kind: kind is TextDelta)
    thought = "".join(event.text for event in events if isinstance(event, ThinkingDelta))
    assert thought == SCENARIOS["thinking"].thinking
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == SCENARIOS["thinking"].answer


async def test_own_text_streams_as_it_is() -> None:
    text = "mine: 🌍\n\n and more"
    events, _ = await stream(ask("x", scenario="own_text", text=text))
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == text


async def test_unknown_scenario_and_provider_are_named() -> None:
    with pytest.raises(UnknownScenario, match="nope"):
        ScriptedProvider().validate(ask("x", scenario="nope"))
    with pytest.raises(UnknownProvider, match="scripted"):
        get_provider("nope", {})
    assert list(available({"OPENAI_API_KEY": "k"})) == ["scripted", "openai"]


@pytest.mark.parametrize(
    ("text", "hit"),
    [(SCENARIOS["judge"].answer, True), (SCENARIOS["clean"].answer, False), ("The poison was found.", False)],
)
async def test_judge_answers_in_the_form_that_the_kind_demands(text: str, hit: bool) -> None:
    config = AiJudgeConfig(rubric="harm")
    turns = judge_prompt(config, CheckRequest(text, AppliesTo.RESPONSE), "0123456789abcdef")
    request = ProviderRequest(tuple(ChatMessage(turn.role, turn.text) for turn in turns))
    answer = parse_answer(await ScriptedProvider().complete(request))
    assert (answer.score >= 0.5) is hit


async def test_judge_reads_only_the_fenced_text() -> None:
    turns = judge_prompt(
        AiJudgeConfig(rubric="poison, bombs"), CheckRequest("A calm lake.", AppliesTo.RESPONSE), "0" * 16
    )
    request = ProviderRequest(tuple(ChatMessage(turn.role, turn.text) for turn in turns))
    assert json.loads(await ScriptedProvider().complete(request))["score"] < 0.5


async def test_in_one_piece_the_answer_is_the_same_and_nothing_is_waited_for() -> None:
    async def never(seconds: float) -> None:
        raise AssertionError("the standard path has no rhythm")

    request = ProviderRequest((), scenario="pii")
    streamed = [event async for event in ScriptedProvider(1_000_000).stream(request)]
    whole = [event async for event in ScriptedProvider(sleep=never).standard(request)]
    texts = [event.text for event in streamed if isinstance(event, TextDelta)]
    assert [event.text for event in whole if isinstance(event, TextDelta)] == ["".join(texts)]
    assert [e for e in whole if not isinstance(e, TextDelta)] == [e for e in streamed if not isinstance(e, TextDelta)]
