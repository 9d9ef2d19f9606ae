"""A provider that is faster than its guardrails or the log: it waits, at its own socket, and nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, replace

import pytest

from guardrails.findings import AppliesTo, Verdict
from guardrails.kinds.base import CheckRequest, Services
from guardrails.policy import Policy
from streaming.checks import MAX_UNANSWERED, check_text
from streaming.core.events import ProviderEvent, ProviderToolResult, TextDelta, ThinkingDelta, ToolCallDelta
from streaming.log import MemoryLog, Payload
from streaming.models import AuditSession
from streaming.providers.base import Provider, ProviderRequest, StreamCutOff
from streaming.providers.openai import OpenAIProvider
from streaming.pump import READ_AHEAD
from streaming.resilience import Upstreams
from streaming.unread import MAX_UNREAD, Unread, size
from tests.streaming.pumping import Controlled, Trial, policy_of, trial
from tests.streaming.test_pump import Sentences, batched

pytestmark = pytest.mark.django_db(transaction=True)
PLAIN = policy_of(without="harm")
WAIT_S = 60.0
SENTENCES = 300


@dataclass
class Fast(Controlled):
    """Says its script as fast as it is taken, and counts."""

    given: int = 0

    async def stream(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        async for event in super().stream(request):
            self.given += 1
            yield event


class Counting(Sentences):
    """Answers no check before it may, and knows how many wait."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = self.most = 0

    async def check(self, request: CheckRequest, services: Services) -> Verdict:
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        try:
            return await super().check(request, services)
        finally:
            self.waiting -= 1


class Stuck(MemoryLog):
    """Takes nothing before it may."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()
        self.asked = asyncio.Event()

    async def append(
        self, session_id: str, payloads: Sequence[Payload], *, ms: int, floor: int = 0, known: int = 1
    ) -> int:
        if any(payload["type"] == "message_stream" for payload in payloads):
            self.asked.set()
            await self.go.wait()
        return await super().append(session_id, payloads, ms=ms, floor=floor)


async def standstill(figure: Callable[[], object]) -> None:
    """Wait until a figure is the same over many turns of the loop."""
    before, same = figure(), 0
    async with asyncio.timeout(WAIT_S):
        while same < 100:
            await asyncio.sleep(0.001)
            now = figure()
            before, same = now, same + 1 if now == before else 0


async def of(provider: Provider, policy: Policy = PLAIN, log: MemoryLog | None = None) -> Trial:
    """A session with this provider."""
    case = await trial([], policy=policy, log=log)
    case.pump._run = replace(case.pump._run, upstreams=Upstreams((provider,)))
    return case


def sentences(count: int) -> list[str]:
    return [f"Sentence number {n} is here. " for n in range(count)]


async def test_it_works_ten_sentences_wait_for_their_checks_and_the_provider_for_them() -> None:
    kind, provider = Counting(), Fast(sentences(SENTENCES))
    case = await of(provider, batched(kind, limit_s=WAIT_S))
    task = asyncio.create_task(case.pump.run())
    await asyncio.wait_for(kind.asked.wait(), WAIT_S)
    await standstill(lambda: (provider.given, kind.waiting))
    assert kind.waiting == MAX_UNANSWERED
    assert provider.given <= MAX_UNANSWERED + READ_AHEAD + 1
    kind.go.set()
    await asyncio.wait_for(task, WAIT_S)
    assert kind.most == MAX_UNANSWERED
    assert await case.shown() == "".join(sentences(SENTENCES))


LIMIT_S = 61.5
"""A time limit that nothing else here has."""


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How many time limits of ours run, noted whenever one begins."""
    under_way: list[float] = []
    noted: list[float] = []
    plain = asyncio.timeout

    @contextlib.asynccontextmanager
    async def timeout(delay: float) -> AsyncGenerator[None, None]:
        async with plain(delay):
            under_way.append(delay)
            noted.append(len(under_way))
            try:
                yield
            finally:
                under_way.pop()

    def either(delay: float) -> object:
        return timeout(delay) if delay == LIMIT_S else plain(delay)

    monkeypatch.setattr(asyncio, "timeout", either)
    return noted


class Slow(Counting):
    """Answers by itself, but later than now."""

    async def check(self, request: CheckRequest, services: Services) -> Verdict:
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        try:
            await asyncio.sleep(0.001)
            return Verdict(hit=False)
        finally:
            self.waiting -= 1


def everywhere(kind: Sentences) -> Policy:
    """The guardrail for every text, not for answers alone."""
    policy = batched(kind, limit_s=LIMIT_S)
    guardrails = tuple(replace(one, applies_to=frozenset(AppliesTo)) for one in policy.guardrails)
    return replace(policy, guardrails=guardrails, _plans={}, _scanners={})


WHOLE = "".join(sentences(SENTENCES))


@pytest.mark.parametrize("path", ["in one piece", "in large pieces", "in three channels"])
async def test_of_300_sentences_that_come_at_once_ten_are_asked_about_and_the_clock_of_no_other_runs(
    path: str, running: list[float]
) -> None:
    kind = Slow()
    script: dict[str, list[str | ProviderEvent | Exception | asyncio.Event]] = {
        "in one piece": [WHOLE],
        "in large pieces": [WHOLE[:7_000], WHOLE[7_000:]],
        "in three channels": [ThinkingDelta(WHOLE), ProviderToolResult("t", WHOLE), WHOLE],
    }
    case = await of(Fast(script[path]), everywhere(kind))
    await asyncio.wait_for(case.pump.run(), WAIT_S)
    assert kind.most == max(running) == MAX_UNANSWERED
    assert len(running) >= SENTENCES
    assert await case.shown() == WHOLE
    (done,) = await case.of("done")
    assert done["outcome"] == "allowed"
    states = {event["state"] for event in await case.of("guardrail_status") if event["guardrail"] == "tone"}
    assert states == {"idle", "checking", "passed"}


async def test_of_a_whole_text_ten_sentences_are_asked_about_at_once(running: list[float]) -> None:
    kind = Slow()
    checked = await check_text(everywhere(kind), WHOLE, applies_to=AppliesTo.TOOL_RESULT)
    assert (checked.visible, checked.failed) == (WHOLE, [])
    assert kind.most == max(running) == MAX_UNANSWERED
    assert len(running) == SENTENCES


async def test_sentences_of_all_choices_together_are_ten() -> None:
    kind = Counting()
    provider = Fast([TextDelta(text, choice) for text in sentences(20) for choice in range(3)])
    case = await of(provider, batched(kind, limit_s=WAIT_S))
    task = asyncio.create_task(case.pump.run())
    await asyncio.wait_for(kind.asked.wait(), WAIT_S)
    await standstill(lambda: (provider.given, kind.waiting))
    kind.go.set()
    await asyncio.wait_for(task, WAIT_S)
    assert kind.most == MAX_UNANSWERED
    chunks = [event for event in await case.of("message_stream") if event["channel"] == "text"]
    for choice in range(3):
        said = "".join(str(event["chunk"]) for event in chunks if event["choice"] == choice)
        assert said == "".join(sentences(20))


async def test_a_failure_is_told_at_once_and_what_came_before_it_is_counted() -> None:
    kind, said = Counting(), sentences(40)
    case = await of(Fast([*said, StreamCutOff("cut")]), batched(kind, limit_s=WAIT_S))
    await asyncio.wait_for(case.pump.run(), WAIT_S)
    (done,) = await case.of("done")
    assert done["outcome"] == "error"
    row = await AuditSession.objects.aget(pk=case.session_id)
    assert (row.outcome, row.chars_in) == ("error", len("".join(said)))


async def test_an_interrupt_does_not_wait_for_checks() -> None:
    kind = Counting()
    case = await of(Fast(sentences(SENTENCES)), batched(kind, limit_s=WAIT_S))
    task = asyncio.create_task(case.pump.run())
    await asyncio.wait_for(kind.asked.wait(), WAIT_S)
    await case.log.interrupt(case.session_id)
    await asyncio.wait_for(task, WAIT_S)
    assert [event["outcome"] for event in await case.of("done")] == ["interrupted"]
    assert not kind.go.is_set()


async def test_a_megabyte_that_the_log_has_not_taken_stops_the_provider() -> None:
    log, size = Stuck(), 100_000
    provider = Fast(["words, " * (size // 7)] * 40)
    case = await of(provider, log=log)
    task = asyncio.create_task(case.pump.run())
    try:
        await asyncio.wait_for(log.asked.wait(), WAIT_S)
        await standstill(lambda: provider.given)
        # The one that used up the room, and the one that found none.
        assert provider.given * size <= MAX_UNREAD + 2 * size
    finally:
        log.go.set()
        await asyncio.wait_for(task, WAIT_S)
    assert provider.given == 40
    assert await case.shown() == "words, " * (size // 7) * 40


@pytest.mark.parametrize(("said", "weighs"), [("好", 3), ("é", 2), ("😀", 4), ("a", 1), ("\ud83d", 3)])
def test_a_megabyte_is_a_megabyte_in_every_script(said: str, weighs: int) -> None:
    assert size(TextDelta(said * 7)) == size(ThinkingDelta(said * 7)) == 7 * weighs
    assert size(ToolCallDelta(0, arguments=said * 7)) == size(ProviderToolResult("", said * 3, said * 4)) == 7 * weighs
    unread, piece = Unread(), TextDelta(said * 10_000)
    needed = -(-MAX_UNREAD // (10_000 * weighs))
    for _ in range(needed - 1):
        unread.count(piece)
    assert not unread.full
    unread.count(piece)
    assert unread.full
    unread.taken([piece] * needed)
    assert not unread.full


async def test_a_megabyte_of_chinese_stops_the_provider_as_soon_as_one_of_english() -> None:
    log, words = Stuck(), "你好，" * 10_000
    size_b = len(words.encode())
    provider = Fast([words] * 40)
    case = await of(provider, log=log)
    task = asyncio.create_task(case.pump.run())
    try:
        await asyncio.wait_for(log.asked.wait(), WAIT_S)
        await standstill(lambda: provider.given)
        assert provider.given * size_b <= MAX_UNREAD + 2 * size_b
    finally:
        log.go.set()
        await asyncio.wait_for(task, WAIT_S)
    assert await case.shown() == words * 40


async def test_then_the_providers_socket_waits() -> None:
    """Forty megabytes are on offer; the kernel's own buffers and ours are all that is taken of them."""
    offered, written = 40_000_000, 0
    choice = {"index": 0, "delta": {"content": "words, " * 9_000}, "finish_reason": None}
    line = b"data: " + json.dumps({"model": "m-1", "choices": [choice]}).encode() + b"\n\n"
    gone = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        try:
            while written < offered:
                writer.write(line)
                await writer.drain()
                written += len(line)
        except OSError:
            gone.set()
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    log = Stuck()
    case = await of(OpenAIProvider(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"), log=log)
    task = asyncio.create_task(case.pump.run())
    try:
        await asyncio.wait_for(log.asked.wait(), WAIT_S)
        await standstill(lambda: written)
        assert written < offered / 2, f"{written:,} bytes"
        await case.log.interrupt(case.session_id)
    finally:
        log.go.set()
        await asyncio.wait_for(task, WAIT_S)
        await asyncio.wait_for(gone.wait(), WAIT_S)
        server.close()
        await server.wait_closed()
