"""Breakers in the store and in memory: no failure is lost, one probe at a time, and a dead probe is not for ever."""

from __future__ import annotations

import asyncio
import operator
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from itertools import chain
from pathlib import Path

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streaming import breakers
from streaming.breakers import KEPT_S, OPEN_S, PROBE_S, THRESHOLD, CircuitOpen
from streaming.log_redis import close_shared_log
from streaming.providers.base import ProviderUnavailable

NAME = "provider:first"
KEY = f"sg:breaker:state:{{{NAME}}}"
DOWN = ProviderUnavailable("it is down")
AT_ONCE = 20
LIMIT_S = 60.0


@pytest.fixture(autouse=True)
async def closed_at_the_end() -> AsyncIterator[None]:
    yield
    await close_shared_log()


def passes(store: redis.Redis, seconds: float) -> None:
    """The store's clock cannot be set; what it remembers can be made older."""
    for field in ("opened_at", "probe_until"):
        if store.hexists(KEY, field):
            store.hincrby(KEY, field, -int(seconds * 1_000))
    if failures := store.hget(KEY, "failures"):
        times = [int(at) - int(seconds * 1_000) for at in failures.decode().split(",")]
        store.hset(KEY, "failures", ",".join(map(str, times)))


async def state() -> str | None:
    return (await breakers.states([NAME])).get(NAME)


async def entered() -> breakers.Breaker:
    breaker = await breakers.breaker(NAME)
    await breaker.enter()
    return breaker


async def opened() -> None:
    for _ in range(THRESHOLD):
        await (await entered()).failed(DOWN)
    assert await state() == "open"


async def all_enter(count: int = AT_ONCE) -> list[breakers.Breaker]:
    """Those of so many at once that are let through."""
    tried = [await breakers.breaker(NAME) for _ in range(count)]
    results = await asyncio.gather(*(one.enter() for one in tried), return_exceptions=True)
    assert all(result is None or isinstance(result, CircuitOpen) for result in results)
    return [one for one, result in zip(tried, results, strict=True) if result is None]


async def test_it_works(store: redis.Redis) -> None:
    assert await state() is None
    await (await entered()).succeeded()
    assert await state() == "closed"
    await opened()
    with pytest.raises(CircuitOpen):
        await entered()
    passes(store, OPEN_S)
    probe = await entered()
    assert await state() == "half_open"
    await probe.succeeded()
    assert await state() == "closed"
    assert 0 < store.ttl(KEY) <= KEPT_S


async def test_failures_at_the_same_time_are_all_counted() -> None:
    waiting = await all_enter()
    assert len(waiting) == AT_ONCE
    await asyncio.gather(*(one.failed(DOWN) for one in waiting))
    assert await state() == "open"


async def test_a_half_open_breaker_lets_one_through(store: redis.Redis) -> None:
    await opened()
    passes(store, OPEN_S)
    probes = await all_enter()
    assert len(probes) == 1
    assert await all_enter() == []
    await probes[0].failed(DOWN)
    assert await state() == "open"
    assert await all_enter() == [], "it is left alone for as long as before"


async def test_a_probe_that_is_never_heard_of_again_loses_its_place(store: redis.Redis) -> None:
    await opened()
    passes(store, OPEN_S)
    (dead,) = await all_enter()
    passes(store, PROBE_S - 10)
    assert await all_enter() == []
    passes(store, 10)
    (alive,) = await all_enter()
    await dead.failed(DOWN)
    await dead.succeeded()
    assert await state() == "half_open", "whoever lost its place decides nothing"
    await alive.succeeded()
    assert await state() == "closed"


PROBING = """
import asyncio, os, signal, sys
import django
django.setup()
from streaming import breakers

async def probe():
    await (await breakers.breaker(sys.argv[1])).enter()
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(probe())
"""


async def test_a_killed_process_does_not_hold_the_breaker_half_open(store: redis.Redis) -> None:
    await opened()
    passes(store, OPEN_S)
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "project.settings"}
    child = [sys.executable, "-c", PROBING, NAME]
    root = Path(__file__).parents[2]
    died = await asyncio.to_thread(
        subprocess.run, child, cwd=root, env=environment, capture_output=True, timeout=LIMIT_S, check=False
    )
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    assert await state() == "half_open", "the child was the probe"
    assert await all_enter() == []
    passes(store, PROBE_S)
    (probe,) = await all_enter()
    await probe.succeeded()
    assert await state() == "closed"


async def test_a_probe_that_was_given_up_frees_its_place_at_once(store: redis.Redis) -> None:
    await opened()
    passes(store, OPEN_S)
    (probe,) = await all_enter()
    await probe.given_up()
    assert len(await all_enter()) == 1


async def test_who_came_before_it_opened_neither_closes_nor_opens_it_again(store: redis.Redis) -> None:
    early, late = await entered(), await entered()
    await opened()
    await early.succeeded()
    assert await state() == "open"
    passes(store, OPEN_S)
    await late.failed(DOWN)
    (probe,) = await all_enter()
    await early.succeeded()
    await late.failed(DOWN)
    assert await state() == "half_open"
    await probe.succeeded()
    assert await state() == "closed"


async def test_an_answer_between_failures_ends_the_row(store: redis.Redis) -> None:
    for _ in range(THRESHOLD - 1):
        await (await entered()).failed(DOWN)
        passes(store, 1_000.0)  # in a row is in a row, however far apart
    await (await entered()).succeeded()
    await (await entered()).failed(DOWN)
    assert await state() == "closed"
    for _ in range(THRESHOLD - 1):
        await (await entered()).failed(DOWN)
    assert await state() == "open"


async def test_with_a_period_only_its_failures_count(store: redis.Redis) -> None:
    async def fail() -> None:
        breaker = await breakers.breaker(NAME, within_s=30.0)
        await breaker.enter()
        await breaker.failed(DOWN)

    for _ in range(THRESHOLD * 2):
        await fail()
        passes(store, 10.0)
    assert await state() == "closed", "never five within thirty seconds"
    for _ in range(THRESHOLD - 2):
        breaker = await breakers.breaker(NAME, within_s=30.0)
        await breaker.enter()
        await breaker.succeeded()
        await fail()
    assert await state() == "open", "an answer takes no failure away"


@pytest.fixture
def without_store(settings: object) -> Iterator[list[float]]:
    """No store; the clock is the list's one number."""
    settings.REDIS_URL = ""  # type: ignore[attr-defined]
    now = [1_000.0]
    breakers.forget(lambda: now[0])
    yield now
    breakers.forget()


async def test_in_memory_it_opens_half_opens_and_closes(without_store: list[float]) -> None:
    assert await state() is None
    await opened()
    without_store[0] += OPEN_S - 1
    assert await all_enter() == []
    without_store[0] += 1
    (probe,) = await all_enter()
    assert await state() == "half_open"
    await probe.failed(DOWN)
    assert await state() == "open"
    without_store[0] += OPEN_S
    (probe,) = await all_enter()
    without_store[0] += PROBE_S
    (second,) = await all_enter()
    await second.given_up()
    (third,) = await all_enter()
    await probe.succeeded()
    assert await state() == "half_open"
    await third.succeeded()
    assert await state() == "closed"


def steps() -> st.SearchStrategy[list[tuple[str, int]]]:
    """What three callers do, and how time passes: in tens of seconds, so that the store's own time changes nothing."""
    caller = st.integers(0, 2)
    probing = st.sampled_from(["enter", "enter", "failed", "succeeded", "given_up"])
    half_open = [("break", 0), ("wait", 3), ("enter", 0)]
    any_of_them = st.lists(
        st.one_of(
            st.tuples(probing, caller),
            st.tuples(probing, caller),
            st.tuples(st.just("failed"), caller),
            st.tuples(st.just("break"), caller),
            st.tuples(st.just("wait"), st.sampled_from([1, 2, 3, 6])),
        ),
        min_size=5,
        max_size=40,
    )
    return st.builds(operator.add, st.sampled_from([[], half_open]), any_of_them)


@pytest.mark.parametrize("within_s", [None, 30.0], ids=["in_a_row", "within_30_s"])
async def test_store_and_memory_follow_the_same_rules(store: redis.Redis, within_s: float | None) -> None:
    loop = asyncio.get_running_loop()

    async def run(script: list[tuple[str, int]]) -> None:
        store.delete(KEY)
        now = [0.0]
        memory = breakers.MemoryBreakers(lambda: now[0])
        shared = [breakers.Breaker(NAME, within_s=within_s) for _ in range(3)]
        for act, number in chain.from_iterable([("failed", n)] * 5 if a == "break" else [(a, n)] for a, n in script):
            me = str(number)
            if act == "wait":
                passes(store, number * 10.0)
                now[0] += number * 10.0
            elif act == "enter":
                try:
                    await shared[number].enter()
                    let_in = True
                except CircuitOpen:
                    let_in = False
                assert let_in is memory.enter(NAME, me)
            elif act == "failed":
                await shared[number].failed(DOWN)
                memory.failed(NAME, me, within_s)
            elif act == "succeeded":
                await shared[number].succeeded()
                memory.succeeded(NAME, me, within_s)
            else:
                await shared[number].given_up()
                memory.given_up(NAME, me)
            assert (await state() or "closed") == (memory.state(NAME) or "closed")

    @given(steps())
    @settings(max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    def trial(script: list[tuple[str, int]]) -> None:
        asyncio.run_coroutine_threadsafe(run(script), loop).result(LIMIT_S)

    await asyncio.to_thread(trial)
