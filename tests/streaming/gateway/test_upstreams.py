"""Upstreams of the admin as the gateway asks them: at once, in order, and only where rows may lead."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Iterator

import pytest
from channels.db import database_sync_to_async
from django.test import AsyncClient
from pytest_django.fixtures import Settings

from streaming import breakers, registry, tasks
from streaming.log_redis import close_shared_log
from streaming.models import Upstream
from tests.streaming.gateway.fake import JSON, Answer, Fake, sse, upstream
from tests.streaming.gateway.test_openai_sdk import chunk, whole
from tests.streaming.gateway.test_records import ask, ended, new_key

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("demo_policy", "valkey_url")]


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
        found.answers["small"] = found.answers["large"] = Answer(whole("Good morning."), JSON)
        yield found


@database_sync_to_async
def row(name: str, url: str, **more: object) -> None:
    fields = {"dialect": "openai", "base_url": url, "model_names": "small", "key": "one"} | more
    Upstream.objects.update_or_create(name=name, defaults=fields)


async def test_it_works(fake: Fake) -> None:
    """What is changed is changed for the next request; nothing is started again."""
    key = await new_key()
    assert (await ask(key, "house/small"))[0] == 404
    for secret in ("one", "two"):
        await row("house", f"{fake.url}/v1", key=secret)
        status, said, headers = await ask(key, "house/small")
        assert (status, headers["X-Sluicegate-Upstream"]) == (200, "house")
        assert json.loads(said)["choices"][0]["message"]["content"] == "Good morning."
        assert fake.asked[-1][1]["Authorization"] == f"Bearer {secret}"
        assert fake.last()["model"] == "small"
        assert (await ended(headers["X-Sluicegate-Session"])).provider == "house"
    listing = await AsyncClient().get("/v1/models", headers={"Authorization": f"Bearer {key}"})
    assert "house/small" in [one["id"] for one in json.loads(listing.content)["data"]]
    assert (await ask(key, "small"))[0] == 200
    await Upstream.objects.all().adelete()
    assert (await ask(key, "house/small"))[0] == 404


async def test_who_answers_is_named_only_once_it_does(fake: Fake, settings: Settings) -> None:
    """The first one says nothing until the head has gone out, and fails; who answers then is named by the record."""
    settings.SLUICEGATE_GATEWAY_HEARTBEAT_S = 0.02
    gate = threading.Event()
    fake.answers["small"] = Answer([b'{"error": {"message": "full"}}'], JSON, 503, gate=gate, gated_head=True)
    fake.answers["large"] = Answer(sse(chunk({"content": "Good day."}, "stop")))
    await row("first", f"{fake.url}/v1")
    await row("second", f"{fake.url}/v1", model_names="large", fallback=1)
    body = {"model": "first/small", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    response = await AsyncClient().post(
        "/v1/chat/completions", json.dumps(body), content_type="application/json",
        headers={"Authorization": f"Bearer {await new_key()}"},
    )  # fmt: skip
    gate.set()
    said = b"".join([part async for part in response.streaming_content])
    assert b"Good day." in said
    assert "X-Sluicegate-Upstream" not in response.headers
    assert (await ended(response["X-Sluicegate-Session"])).provider == "second"


async def test_the_next_one_is_asked_where_the_first_one_fails(fake: Fake) -> None:
    fake.answers["small"] = Answer([b'{"error": {"message": "full"}}'], JSON, 503)
    await row("first", f"{fake.url}/v1")
    await row("second", f"{fake.url}/v1", model_names="large", fallback=1)
    status, _, headers = await ask(await new_key(), "first/small")
    assert (status, headers["X-Sluicegate-Upstream"]) == (200, "second")
    assert [json.loads(raw)["model"] for _, _, raw in fake.asked] == ["small", "large"]
    await ended(headers["X-Sluicegate-Session"])


@pytest.mark.parametrize("dialect", ["openai", "ollama"])
async def test_a_row_that_leads_into_the_house_is_not_followed(fake: Fake, settings: Settings, dialect: str) -> None:
    """Neither where the request is passed on nor where it is translated, whatever stood there when it was saved."""
    settings.SLUICEGATE_HOOK_HOSTS = []
    await row("house", fake.url.replace("127.0.0.1", "localhost"), dialect=dialect)
    status, said, _ = await ask(await new_key(), "house/small")
    assert status == 502
    assert b"private address" in said
    assert fake.asked == []


async def test_upstreams_list_their_own_models_and_the_configured_ones_stand_for_who_does_not(fake: Fake) -> None:
    key = await new_key()
    own = {
        "object": "list",
        "data": [
            {"id": "brand-new", "object": "model", "owned_by": "them", "more": 1},
            {"id": 3},
            {"id": "ssn 536-22-8145"},
        ],
    }
    fake.answers["GET /v1/models"] = Answer([json.dumps(own).encode()], JSON)
    fake.answers["GET /api/tags"] = Answer([json.dumps({"models": [{"name": "llama", "size": 7}]}).encode()], JSON)
    await row("house", f"{fake.url}/v1")
    await row("silent", f"{fake.url}/nothing")
    await row("stable", fake.url, dialect="ollama")
    bearer = {"Authorization": f"Bearer {key}"}
    data = {
        one["id"]: one for one in json.loads((await AsyncClient().get("/v1/models", headers=bearer)).content)["data"]
    }
    assert data["house/brand-new"] == {"id": "house/brand-new", "object": "model", "owned_by": "them", "more": 1}
    assert {"silent/small", "stable/small"} <= data.keys()
    assert "house/ssn [SSN]" in data
    assert "house/small" not in data
    tags = json.loads((await AsyncClient().get("/api/tags", headers=bearer)).content)["models"]
    assert {"name": "stable/llama", "model": "stable/llama", "size": 7} in tags
    assert "house/small" in [one["name"] for one in tags]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_what_an_upstreams_error_says_is_looked_at_and_recorded(fake: Fake, stream: bool) -> None:
    """The client gets it without the value, and the row has the finding: it is looked at before the row is closed."""
    said = json.dumps({"error": {"message": "no such thing as 536-22-8145", "type": "invalid_request_error"}}).encode()
    fake.answers["small"] = Answer([said], JSON, 400)
    fake.answers["later"] = Answer(sse(chunk({"content": "Good "}), json.loads(said)))
    await row("house", f"{fake.url}/v1", model_names="small\nlater")
    key = await new_key()
    for model, status in [("small", 400)] + [("later", 200)] * stream:
        answered, told, headers = await ask(key, f"house/{model}", stream=stream)
        assert answered == status
        assert b"[SSN]" in told
        assert b"8145" not in told
        session = await ended(headers["X-Sluicegate-Session"])
        assert (session.outcome, [one.category async for one in session.findings.all()]) == ("error", ["ssn"])
        assert "8145" not in session.error
