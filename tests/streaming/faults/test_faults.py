"""Every fault ends in its documented event within its limit, whatever the dialect, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import pathlib
import random
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path

import pytest
import stamina

from streaming import breakers
from streaming.core.events import ProviderEvent, ProviderNotice, TextDelta
from streaming.log_redis import close_shared_log
from streaming.providers import bodies
from streaming.providers.anthropic import AnthropicProvider
from streaming.providers.base import (
    ChatMessage,
    Provider,
    ProviderError,
    ProviderProtocolError,
    ProviderRateLimited,
    ProviderRefused,
    ProviderRequest,
    ProviderTimeout,
    ProviderUnavailable,
    StreamCutOff,
    TimeLimits,
)
from streaming.providers.ollama import OllamaProvider
from streaming.providers.openai import OpenAIProvider
from streaming.resilience import CircuitBroken, Upstreams

from .server import ENDLESS, SAYS, faulty

ASK = ProviderRequest((ChatMessage("user", "hello"),))
QUICK = TimeLimits(connect_s=0.3, token_s=0.3, total_s=3.0)
RUSHED = TimeLimits(connect_s=0.3, token_s=0.02, total_s=0.05)
"""For silence, many times over."""
PATIENT = TimeLimits(connect_s=20.0, token_s=20.0, total_s=40.0)
"""For faults that end by themselves: on a busy machine no limit of ours is to be quicker than they are."""
WITHIN_S = 60.0
"""Seconds that a run may take, all its tries together, on a machine however busy."""
MAKE: dict[str, Callable[..., Provider]] = {
    "openai": lambda url, limits=QUICK: OpenAIProvider(url, limits=limits),
    "anthropic": lambda url, limits=QUICK: AnthropicProvider(url, limits=limits),
    "ollama": lambda url, limits=QUICK: OllamaProvider(url, limits=limits),
}
FAULTS: dict[str, tuple[type[ProviderError] | None, str]] = {
    "fine": (None, "whole answer"),
    "refuses": (ProviderUnavailable, ""),
    "resets": (StreamCutOff, "part"),
    "resets mid-token": (StreamCutOff, "part"),
    "stalls": (ProviderTimeout, "part"),
    "silent": (ProviderTimeout, ""),
    "no newline": (ProviderProtocolError, ""),
    "invalid json": (None, "parts"),
    "only invalid json": (ProviderProtocolError, ""),
    "429": (ProviderRateLimited, ""),
    "500": (ProviderUnavailable, ""),
    "500 odd words": (ProviderUnavailable, ""),
    "400 odd words": (ProviderRefused, ""),
    "529": (ProviderUnavailable, ""),
    "truncated gzip": (StreamCutOff, "part"),
    "stacked gzip": (ProviderProtocolError, ""),
    "gzip bomb": (ProviderProtocolError, "part"),
    "endless text": (ProviderProtocolError, ENDLESS),
    "endless arguments": (ProviderProtocolError, "part"),
    "half a character": (StreamCutOff, "part"),
    "no end": (StreamCutOff, "part"),
    "not http": (ProviderProtocolError, ""),
    "redirects": (ProviderRefused, ""),
    "nothing": (ProviderUnavailable, ""),
}
"""What each fault amounts to, and the text that stands before it."""
LARGE = ("no newline", "gzip bomb", "endless text", "endless arguments")
"""These end by their size."""
LARGEST = 5_000_000
"""Bytes of an answer here; more than one line may have."""
WHOLE = {name: error or ProviderProtocolError for name, (error, _) in FAULTS.items()} | {
    "truncated gzip": ProviderProtocolError,
    "half a character": ProviderProtocolError,
    "no end": ProviderProtocolError,
}
"""What it amounts to where the answer was asked for in one piece: a stream, or half of one, is no such answer."""


@pytest.fixture(autouse=True)
async def quick(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    monkeypatch.setattr(bodies, "MAX_STREAM_BYTES", LARGEST)
    monkeypatch.setattr(bodies, "MAX_WHOLE_BYTES", LARGEST)
    breakers.forget()
    stamina.set_testing(True, attempts=2, cap=True)
    yield
    stamina.set_testing(False)
    await close_shared_log()


async def heard(provider: Provider) -> tuple[list[ProviderEvent], ProviderError | None]:
    events: list[ProviderEvent] = []
    try:
        async with aclosing(provider.stream(ASK)) as stream:
            async for event in stream:
                events.append(event)  # noqa: PERF401 - what came before an error counts
    except ProviderError as error:
        return events, error
    return events, None


def text_of(events: list[ProviderEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("adapter", MAKE)
async def test_it_works(adapter: str, fault: str) -> None:
    expected, text = FAULTS[fault]
    limits = PATIENT if fault in LARGE else QUICK
    async with faulty(adapter, fault) as there:
        async with asyncio.timeout(limits.total_s + 2):
            events, error = await heard(MAKE[adapter](there.url, limits))
        while there.open:  # noqa: ASYNC110 - the server learns of it when the system tells it
            await asyncio.sleep(0.001)
    if expected is None:
        assert error is None
    else:
        assert type(error) is expected, repr(error)
    if fault == "endless text":
        assert text_of(events) == text * (len(text_of(events)) // len(text))
        assert LARGEST / 2 < len(text_of(events)) <= LARGEST
    else:
        assert text_of(events) == text
    if fault.startswith("resets"):
        assert "broke in the middle" in str(error), "an orderly end is another fault"
    if fault == "invalid json":
        assert [event.code for event in events if isinstance(event, ProviderNotice)] == ["malformed_line"]
    if isinstance(error, ProviderRateLimited):
        assert error.retry_after_s == 7


def sockets() -> int:
    """How many this process has open; without ``pathlib``, which interns every name that it meets."""
    count = 0
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            count += os.readlink(f"/proc/self/fd/{number}").startswith("socket:")
    return count


def expected(fault: str, *, streaming: bool, fresh: bool) -> set[type[BaseException] | None]:
    """What a run may end in that nobody gave up. ``fresh``: no breaker can be open."""
    classes: set[type[BaseException] | None] = {FAULTS[fault][0] if streaming else WHOLE[fault]}
    if fault.startswith("resets"):
        classes.add(ProviderUnavailable)  # the reset may overtake the words
    return classes if fresh else classes | {CircuitBroken}


async def one_run(draw: random.Random) -> None:
    """A random fault for a random dialect, through retries and fallback, given up at a random moment or not at all."""
    adapter, fault = draw.choice(list(MAKE)), draw.choice(list(FAULTS))
    streaming, fresh = draw.random() < 0.8, draw.random() < 0.5
    if fresh:
        breakers.forget()
    limits = RUSHED if fault in ("stalls", "silent") else PATIENT
    async with faulty(adapter, fault) as there, asyncio.timeout(WITHIN_S):
        chain = Upstreams((MAKE[adapter](there.url, limits),), streaming=streaming)

        async def drain() -> None:
            async with aclosing(chain.ask(ASK)) as stream:
                async for _ in stream:
                    pass

        task = asyncio.create_task(drain())
        if draw.random() < 0.4:
            await asyncio.sleep(draw.random() * 0.01)
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if not task.cancelled():
            ended = task.exception()
            kind = None if ended is None else type(ended)
            assert kind in expected(fault, streaming=streaming, fresh=fresh), f"{adapter}, {fault}: {ended!r}"


def test_the_whole_answer_of_a_fault_is_never_taken_for_an_answer() -> None:
    assert all(expected(fault, streaming=False, fresh=True) - {None} for fault in FAULTS)


def grown_by(before: tracemalloc.Snapshot, after: tracemalloc.Snapshot) -> int:
    """Bytes; without the table of interned names, which is the interpreter's and grows in one step."""
    names = [tracemalloc.Filter(False, pathlib.__file__), tracemalloc.Filter(False, tracemalloc.__file__)]
    compared = after.filter_traces(names).compare_to(before.filter_traces(names), "filename")
    return sum(found.size_diff for found in compared)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts sockets in /proc")
@pytest.mark.timeout(1_800)  # a minute of work; a busy machine takes many times that
async def test_a_thousand_random_runs_leak_nothing(settings: object, request: pytest.FixtureRequest) -> None:
    """A leak grows with the runs: what the second half adds is compared with what the first has added."""
    settings.REDIS_URL = ""  # type: ignore[attr-defined]  # breakers in memory: what is counted is the adapters' own
    await close_shared_log()
    draw = random.Random(20_261)
    logging.disable(logging.CRITICAL)  # what pytest keeps of a thousand retries' log lines is not a leak of ours
    request.addfinalizer(lambda: logging.disable(logging.NOTSET))

    async def five_hundred() -> tracemalloc.Snapshot:
        for number in range(500):
            if number % 50 == 0:
                breakers.forget()
            await one_run(draw)
        await asyncio.sleep(0.05)
        gc.collect()
        return tracemalloc.take_snapshot()

    for _ in range(40):  # caches and pools come into being
        await one_run(draw)
    await asyncio.sleep(0.05)
    gc.collect()
    tasks, before = len(asyncio.all_tasks()), sockets()
    tracemalloc.start()
    request.addfinalizer(tracemalloc.stop)
    begun = tracemalloc.take_snapshot()
    half = await five_hundred()
    end = await five_hundred()
    first, second = grown_by(begun, half), grown_by(half, end)
    assert len(asyncio.all_tasks()) <= tasks
    assert sockets() <= before
    assert second < max(first / 2, 100_000), f"{first:,} bytes, then {second:,}: 200 bytes a run are a leak"


def test_the_server_speaks_all_dialects() -> None:
    assert SAYS.keys() == MAKE.keys()
