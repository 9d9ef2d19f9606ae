"""How many answers may be under way: for each key, and at each upstream."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from channels.db import database_sync_to_async
from django.core.exceptions import ImproperlyConfigured
from django.test import AsyncClient
from pytest_django.fixtures import Settings

from guardrails.kinds import base
from guardrails.models import ApiKey
from guardrails.policy import compile_policy
from guardrails.selectors import Running
from project import environment
from streaming import registry
from streaming.access import Access
from streaming.api.gateway import front
from streaming.gateway import places
from streaming.gateway.standing import Standing, begin
from streaming.log import LogUnavailable
from streaming.log_redis import RedisLog, shared_log
from streaming.sessions import Visitor
from streaming.upstreams import Offered
from tests.streaming.gateway.fake import Answer, Fake, sse, upstream
from tests.streaming.gateway.test_heartbeats import Thinks
from tests.streaming.gateway.test_openai_sdk import chunk, whole
from tests.streaming.gateway.test_planted import DIALECTS, PATHS, echo
from tests.streaming.gateway.test_records import ask, new_key
from tests.streaming.gateway.test_upstreams import closing, row

__all__ = ["closing"]
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("demo_policy", "valkey_url")]


@pytest.fixture
def fake() -> Iterator[Fake]:
    with upstream() as found:
        found.answers["small"] = Answer(whole("Good morning."), "application/json")
        yield found


@asynccontextmanager
async def under_way(fake: Fake, key: str, model: str) -> AsyncIterator[None]:
    """An answer that has begun, and ends with the block."""
    free = threading.Event()
    fake.answers["slow"] = Answer(sse(chunk({"content": "Good "}), chunk({"content": "day."}, "stop")), gate=free)
    fake.writing.clear()
    asking = asyncio.create_task(ask(key, model, stream=True))
    assert await asyncio.to_thread(fake.writing.wait, 60)
    try:
        yield
    finally:
        free.set()
        assert (await asyncio.wait_for(asking, 60))[0] == 200
        if registry._tasks:
            await asyncio.wait(registry._tasks.values(), timeout=60)


@database_sync_to_async
def allow(most: int | None) -> None:
    ApiKey.objects.update(answers_at_once=most)


async def test_it_works(fake: Fake) -> None:
    """An upstream that has all the answers it may have is not asked for one more; then it is again."""
    key = await new_key()
    await row("house", f"{fake.url}/v1", model_names="small\nslow", at_once=1)
    async with under_way(fake, key, "house/slow"):
        before = len(fake.asked)
        status, said, headers = await ask(key, "house/small")
        assert (status, headers["Retry-After"]) == (429, "1")
        assert json.loads(said)["error"]["type"] == "rate_limit_error"
        assert len(fake.asked) == before
    assert (await ask(key, "house/small"))[0] == 200


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("dialect", DIALECTS)
async def test_one_call_after_the_other_finds_the_place_free(
    fake: Fake, dialect: str, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guardrail that only watches thinks on; the client has its answer, and the key its place."""
    base.all_kinds()
    monkeypatch.setattr(Thinks, "name", "trial_thinks", raising=False)
    monkeypatch.setattr(Thinks, "done", asyncio.Event())
    monkeypatch.setitem(base._REGISTRY, "trial_thinks", Thinks)  # type: ignore[arg-type]
    watcher = {"name": "t", "kind": "trial_thinks", "mode": "MONITOR", "action": "block", "applies_to": ["response"]}
    running = Running(compile_policy({"policy": "p", "guardrails": [watcher]}, version=1, digest="sha256:p"))

    def load(found: object) -> Running:
        return running

    monkeypatch.setattr(front, "running_of", load)
    fake.answers["small"] = echo(dialect, stream)
    await row("house", f"{fake.url}/v1" if dialect == "openai" else fake.url, dialect=dialect)
    key = await new_key()
    await allow(1)
    body = {"messages": [{"role": "user", "content": "Hi"}], "model": "house/small", "stream": stream, "max_tokens": 9}
    for _ in range(20 if dialect == "openai" else 5):
        response = await AsyncClient().post(
            PATHS[dialect], json.dumps(body), content_type="application/json",
            headers={"Authorization": f"Bearer {key}"},
        )  # fmt: skip
        assert response.status_code == 200
        said = b"".join([part async for part in response.streaming_content]) if stream else response.content
        assert b"Hi" in said
    assert registry._tasks, "the guardrail is still thinking"
    Thinks.done.set()
    await asyncio.wait(registry._tasks.values(), timeout=60)


async def test_while_it_has_them_the_next_one_is_asked(fake: Fake) -> None:
    key = await new_key()
    await row("house", f"{fake.url}/v1", model_names="small\nslow", at_once=1)
    await row("other", f"{fake.url}/v1", fallback=1)
    async with under_way(fake, key, "house/slow"):
        status, _, headers = await ask(key, "house/small")
    assert (status, headers["X-Sluicegate-Upstream"]) == (200, "other")


async def until(client: str) -> list[float]:
    """When places are free again that nobody gives back: milliseconds since 1970."""
    scores = "local said = {} for i, s in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')) do " \
             "if i % 2 == 0 then said[#said + 1] = s end end return said"  # fmt: skip
    return list(map(float, cast("list[str]", await shared_log().evaluate(scores, [f"sg:places:{{{client}}}"], []))))


async def test_places_are_renewed_while_the_answer_is_under_way(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer may take a day, and what nobody renews is free after a quarter of an hour; both kinds of place."""
    monkeypatch.setattr(places, "LONGEST_S", 100.0)
    monkeypatch.setattr(places, "RENEWED_S", 0.0)
    monkeypatch.setattr("streaming.gateway.relay.ALIVE_EVERY_S", 0.002)
    key = await new_key()
    client = (await ApiKey.objects.aget()).prefix
    await row("house", f"{fake.url}/v1", model_names="small\nslow", at_once=1)
    renewed = asyncio.Semaphore(0)
    renew = places.Place.renew

    async def renewing(place: places.Place) -> None:
        await renew(place)
        renewed.release()

    monkeypatch.setattr(places.Place, "renew", renewing)
    async with under_way(fake, key, "house/slow"):
        monkeypatch.setattr(places, "LONGEST_S", 10_000.0)
        async with asyncio.timeout(60):
            while not renewed.locked():  # those that were made with the shorter time
                await renewed.acquire()
            for _ in range(6):
                await renewed.acquire()
        in_an_hour = (time.time() + 3_600) * 1_000
        for whose in (client, "upstream house"):
            (at,) = await until(whose)
            assert at > in_an_hour, whose
    for whose in (client, "upstream house"):
        assert await until(whose) == []


async def test_a_place_that_was_given_back_is_not_taken_again_by_renewing_it() -> None:
    place = await places.take("c", 1)
    assert place is not None
    await place.renew()
    assert len(await until("c")) == 1
    await place.give_back()
    await place.renew()
    assert await until("c") == []


def standing(most: int) -> Standing:
    """Of a client that may have so many answers under way."""
    access = Access(Visitor(client="c"), "p", answers_at_once=most)
    return Standing(access, cast("Running", None), cast("Offered", None), ApiKey())


TAKERS: dict[str, Callable[[], Awaitable[object]]] = {
    "upstream": lambda: places.take("c", 1),
    "call": lambda: begin(standing(1)),
}


@pytest.mark.parametrize("taker", TAKERS)
async def test_who_leaves_while_a_place_is_taken_keeps_none(taker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store has taken it already, and nobody is told."""
    taken, told = asyncio.Event(), asyncio.Event()
    evaluate = RedisLog.evaluate

    async def slow(log: RedisLog, script: str, *args: Any) -> object:
        said = await evaluate(log, script, *args)
        if places.TAKE in script:
            taken.set()
            await told.wait()
        return said

    monkeypatch.setattr(RedisLog, "evaluate", slow)
    asking = asyncio.ensure_future(TAKERS[taker]())
    async with asyncio.timeout(20):
        await taken.wait()
        asking.cancel()
        await asyncio.wait({asking})
    assert asking.cancelled()
    assert len(await until("c")) == 1
    told.set()
    (leaving,) = places._leaving
    await asyncio.wait({leaving}, timeout=20)
    assert await until("c") == []


@pytest.mark.parametrize("taker", TAKERS)
async def test_a_place_of_which_the_store_told_too_late_is_given_back(
    taker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = RedisLog.evaluate

    async def late(log: RedisLog, script: str, *args: Any) -> object:
        said = await evaluate(log, script, *args)
        if places.TAKE in script:
            raise LogUnavailable("too late")
        return said

    monkeypatch.setattr(RedisLog, "evaluate", late)
    found = await TAKERS[taker]()
    place = found[1] if isinstance(found, tuple) else found
    assert len(await until("c")) == 1
    await cast("places.Place", place).give_back()
    assert await until("c") == []


async def test_a_key_has_as_many_as_it_says_itself(fake: Fake, settings: Settings) -> None:
    key = await new_key()
    await row("house", f"{fake.url}/v1", model_names="small\nslow")
    for own, setting, status in ((1, 20, 429), (2, 1, 200), (None, 1, 429), (None, 2, 200)):
        settings.SLUICEGATE_GATEWAY_AT_ONCE = setting
        await allow(own)
        async with under_way(fake, key, "house/slow"):
            assert (await ask(key, "house/small"))[0] == status


async def test_upstreams_of_the_environment_have_a_limit_too(
    fake: Fake, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await new_key()
    monkeypatch.setenv("OPENAI_BASE_URL", f"{fake.url}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    settings.SLUICEGATE_UPSTREAMS_AT_ONCE = {"openai": 1}
    async with under_way(fake, key, "slow"):
        assert (await ask(key, "small"))[0] == 429
    assert (await ask(key, "small"))[0] == 200


def test_what_is_no_limit_is_refused_when_the_server_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMITS", "openai=20, anthropic=5")
    assert environment.counts("LIMITS") == {"openai": 20, "anthropic": 5}
    for wrong in ("openai", "openai=", "=3", "openai=0", "openai=-1", "openai=many"):
        monkeypatch.setenv("LIMITS", wrong)
        with pytest.raises(ImproperlyConfigured):
            environment.counts("LIMITS")


async def test_a_call_that_is_one_too_many_a_minute_takes_no_place(fake: Fake) -> None:
    """Nor does one whose body is refused keep one; a limit that is raised counts for the next call."""
    key = await new_key()
    await row("house", f"{fake.url}/v1")

    async def limited(calls: int) -> int:
        await database_sync_to_async(ApiKey.objects.update)(calls_per_minute=calls, answers_at_once=1)
        return (await ask(key, "house/small"))[0]

    assert await limited(1) == 200
    assert [await limited(1) for _ in range(3)] == [429, 429, 429]
    headers = {"Authorization": f"Bearer {key}"}
    await database_sync_to_async(ApiKey.objects.update)(calls_per_minute=100)
    refused = await AsyncClient().post(PATHS["openai"], "[]", content_type="application/json", headers=headers)
    assert refused.status_code == 400
    assert await limited(100) == 200
