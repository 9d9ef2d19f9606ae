"""What `/metrics` says of the gateway: each request once, by dialect, upstream and status, and what happened to it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator

import pytest
from channels.db import database_sync_to_async
from django.test import AsyncClient
from pytest_django.fixtures import Settings

from guardrails.services import install
from streaming import breakers, registry, tasks
from streaming.log_redis import close_shared_log
from streaming.metrics import REGISTRY
from streaming.models import Upstream
from tests.streaming.gateway.fake import JSON, Answer, Fake, sse, upstream
from tests.streaming.gateway.test_openai_sdk import chunk, whole
from tests.streaming.gateway.test_records import ask, ended, new_key

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("demo_policy", "valkey_url")]
CARD = "4111 1111 1111 1111"


@pytest.fixture(autouse=True)
async def closing(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    async def queue(session_id: str) -> None:
        return None

    monkeypatch.setattr(tasks, "queue_session", queue)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "ANTHROPIC_API_KEY", "OLLAMA_HOST"):
        monkeypatch.delenv(name, raising=False)
    settings.SLUICEGATE_FALLBACKS = []
    settings.SLUICEGATE_HOOK_HOSTS = ["127.0.0.1"]
    breakers.forget()
    yield
    await registry.shutdown()
    await close_shared_log()


@pytest.fixture
def fake() -> Iterator[Fake]:
    with upstream() as found:
        yield found


@database_sync_to_async
def row(name: str, url: str, **more: object) -> None:
    fields = {"dialect": "openai", "base_url": url, "model_names": "small", "key": "one"} | more
    Upstream.objects.update_or_create(name=name, defaults=fields)


class Since:
    """How much counters have grown."""

    def __init__(self) -> None:
        self._before = self._all()

    @staticmethod
    def _all() -> dict[tuple[str, ...], float]:
        return {
            (sample.name.removeprefix("sluicegate_gateway_").removesuffix("_total"), *sample.labels.values()): (
                sample.value
            )
            for metric in REGISTRY.collect()
            if metric.name.startswith("sluicegate_gateway_")
            for sample in metric.samples
        }

    def grown(self) -> dict[tuple[str, ...], float]:
        found = {key: value - self._before.get(key, 0) for key, value in self._all().items()}
        return {key: value for key, value in found.items() if value}


async def test_it_works(fake: Fake) -> None:
    """A value that the model says twice is masked once and comes back twice."""

    def twice(body: dict[str, object]) -> Answer:
        said = body["messages"][0]["content"]  # type: ignore[index]
        return Answer(whole(f"{said} Once more: {said}"), JSON)

    fake.answers["small"] = twice
    await row("house", f"{fake.url}/v1")
    key, since = await new_key(), Since()
    status, said, headers = await ask(key, "house/small", f"My card is {CARD}.")
    await ended(headers["X-Sluicegate-Session"])
    assert (status, said.count(CARD.encode())) == (200, 2)
    assert since.grown() == {
        ("requests", "openai", "house", "200"): 1,
        ("masked_values", "openai"): 1,
        ("restored_values", "openai"): 2,
    }


async def test_what_nobody_was_asked_for_says_so() -> None:
    document = {"policy": "no", "guardrails": [{"name": "w", "kind": "keywords", "config": {"keywords": ["heron"]}}]}
    await database_sync_to_async(install)(document=document)
    key, since = await new_key("no"), Since()
    assert (await ask(key, "scripted-1", "a heron"))[0] == 200
    assert (await ask(key, "nobody/knows"))[0] == 404
    assert (await ask(key, "scripted-1", messages=[]))[0] == 400
    assert since.grown() == {("requests", "openai", "none", status): 1 for status in ("200", "400", "404")}


async def test_an_upstream_that_fails_and_the_one_behind_it_are_told_apart(fake: Fake) -> None:
    fake.answers["small"] = Answer([b'{"error": {"message": "full"}}'], JSON, 503)
    fake.answers["large"] = Answer(whole("Good morning."), JSON)
    await row("first", f"{fake.url}/v1")
    key, since = await new_key(), Since()
    assert (await ask(key, "first/small"))[0] == 503
    assert since.grown() == {("requests", "openai", "first", "503"): 1}
    await row("second", f"{fake.url}/v1", model_names="large", fallback=1)
    since = Since()
    assert (await ask(key, "first/small"))[0] == 200
    assert since.grown() == {
        ("requests", "openai", "second", "200"): 1,
        ("fallbacks", "openai", "second", "provider_unavailable"): 1,
    }


async def test_signs_of_life_are_counted_in_the_dialect_that_hears_them(fake: Fake, settings: Settings) -> None:
    settings.SLUICEGATE_GATEWAY_HEARTBEAT_S = 0.02
    gate = threading.Event()
    said = [chunk({"role": "assistant", "content": "Good day."}), chunk({}, "stop")]
    fake.answers["small"] = Answer(sse(*said), gate=gate)
    await row("house", f"{fake.url}/v1")
    key, since = await new_key(), Since()
    body = json.dumps({"model": "house/small", "messages": [{"role": "user", "content": "Hi"}]})
    response = await AsyncClient().post(
        "/api/chat", body, content_type="application/json", headers={"Authorization": f"Bearer {key}"}
    )
    async with asyncio.timeout(60):
        lines = [json.loads(line) async for line in _until_open(response.streaming_content, gate)]
    quiet = sum(line.get("model") is None and line["message"]["content"] == "" for line in lines)
    assert quiet >= 3
    assert since.grown()["heartbeats", "ollama"] == quiet
    await ended(response["X-Sluicegate-Session"])


async def _until_open(parts: AsyncIterator[bytes], gate: threading.Event) -> AsyncIterator[bytes]:
    """Lines; the upstream goes on when three signs of life have been heard."""
    quiet = 0
    async for part in parts:
        for line in part.splitlines():
            quiet += b'"model"' not in line
            if quiet >= 3:
                gate.set()
            yield line
