"""A policy that the installation allows pictures under: they pass, and the record says so."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from django.test import AsyncClient
from pytest_django.fixtures import Settings

from tests.streaming.gateway.fake import JSON, Answer, Fake, upstream
from tests.streaming.gateway.test_bad_sides import MEDIA
from tests.streaming.gateway.test_openai_sdk import whole
from tests.streaming.gateway.test_records import ended, new_key
from tests.streaming.gateway.test_upstreams import closing, row

__all__ = ["closing"]
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("demo_policy", "valkey_url")]
SOUND, FILE = (message for dialect, _, message in MEDIA if dialect == "openai")


@pytest.fixture
def fake() -> Iterator[Fake]:
    with upstream() as found:
        found.answers["small"] = Answer(whole("Good morning."), JSON)
        yield found


@pytest.mark.parametrize("allowed", [["basic"], ["*"], ["medical"], []], ids=["by name", "all", "another", "none"])
async def test_it_works(fake: Fake, settings: Settings, allowed: list[str]) -> None:
    settings.SLUICEGATE_GATEWAY_MEDIA = allowed
    await row("house", f"{fake.url}/v1")
    text = {"type": "text", "text": "my card is 4111 1111 1111 1111"}
    messages = [{"role": "user", "content": [text]}, SOUND, FILE]
    response = await AsyncClient().post(
        "/v1/chat/completions",
        json.dumps({"model": "house/small", "messages": messages}),
        content_type="application/json",
        headers={"Authorization": f"Bearer {await new_key()}"},
    )
    if allowed not in (["basic"], ["*"]):
        assert response.status_code == 400
        assert fake.asked == []
        return
    assert response.status_code == 200
    sent = fake.last()["messages"]
    assert sent[1:] == [SOUND, FILE]  # type: ignore[index]
    assert "1111" not in json.dumps(sent[0])  # type: ignore[index]
    session = await ended(response["X-Sluicegate-Session"])
    assert sorted(session.timing["unguarded"]) == ["audio", "file"]
