"""From a client's call to a vendor's schema: conversations that clients hand over, and the pictures that they may not.

The whole way is taken (call, guardrails, adapter, socket) because each step alone says nothing about what arrives.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncIterable, AsyncIterator
from typing import cast

import pytest
from channels.db import database_sync_to_async
from django.test import AsyncClient

from guardrails.services import create_api_key
from streaming import registry
from streaming.conf import Conf
from streaming.frames import FrameError, StartFrame, parse_frame
from streaming.log_redis import close_shared_log

from .strict import CALL_ME, CALL_STRANGERS, STRANGERS, Vendor, vendor

Json = dict[str, object]
PICTURES: dict[str, Json] = {
    "openai": {"content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBO"}}]},
    "anthropic": {
        "content": [
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBO"}},
            {"type": "text", "text": "What is this?"},
        ]
    },
    "one object": {"content": {"type": "input_audio", "input_audio": {"data": "UklG", "format": "wav"}}},
}
CONVERSATION: list[Json] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Is it warm in Bonn and in Ulm?"},
    {
        "role": "assistant",
        "content": "Let me see.",
        "tool_calls": [
            {"id": "call:1", "name": "weather", "arguments": '{"city": "Bonn"}'},
            {"id": "call:2", "name": "weather", "arguments": '{"city": "Ulm"}'},
        ],
    },
    {"role": "tool", "tool_call_id": "call:1", "content": "warm"},
    {"role": "tool", "tool_call_id": "call:2", "content": "cold"},
    {"role": "assistant", "content": "In Bonn it is."},
    {"role": "user", "content": "Thank you. And in Kiel?"},
]


def final(events: str) -> str:
    """What the event ``done`` says of an event stream."""
    (done,) = [json.loads(line[5:]) for line in events.split("\n") if line.startswith("data:") and '"done"' in line]
    return str(done["final"])


def start(**fields: object) -> str:
    return json.dumps({"type": "start", **fields})


def test_it_works() -> None:
    frame = parse_frame(start(messages=CONVERSATION), Conf())
    assert isinstance(frame, StartFrame)
    assert frame.messages is not None
    assert [message.role for message in frame.messages] == [message["role"] for message in CONVERSATION]


@pytest.mark.parametrize("shape", PICTURES)
def test_a_picture_on_a_socket_is_refused_by_its_place(shape: str) -> None:
    for before in ([], [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]):
        with pytest.raises(FrameError, match="images") as caught:
            parse_frame(start(messages=[*before, {"role": "user", **PICTURES[shape]}]), Conf())
        assert caught.value.field == f"messages[{len(before)}].content"
        assert caught.value.code == "invalid_field"


def test_a_picture_beside_the_text_is_not_dropped_unseen() -> None:
    with pytest.raises(FrameError, match="images") as caught:
        parse_frame(start(messages=[{"role": "user", "content": "What is this?", "images": ["iVBO"]}]), Conf())
    assert caught.value.field == "messages[0].images"


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("demo_policy", "valkey_url")
class TestCalls:
    @pytest.fixture(autouse=True)
    async def tidied(self) -> AsyncIterator[None]:
        yield
        await registry.shutdown()
        await close_shared_log()

    async def call(self, **body: object) -> tuple[int, Json, str]:
        """Status, answer, and what its events say (empty unless it began)."""
        key = await database_sync_to_async(create_api_key)(
            name=f"key {time.monotonic_ns()}", scopes=("stream",), policy="demo"
        )
        http, headers = AsyncClient(), {"Authorization": f"Bearer {key[1]}"}
        response = await http.post("/v1/chat", json.dumps(body), content_type="application/json", headers=headers)
        said: Json = json.loads(response.content)
        if response.status_code != 201:
            return response.status_code, said, ""
        events = await http.get(str(said["events_url"]), headers=headers)
        raw = cast(AsyncIterable[bytes], events)
        return 201, said, b"".join([part async for part in raw]).decode()

    @pytest.mark.parametrize("shape", PICTURES)
    async def test_a_picture_is_unprocessable_and_the_error_names_its_place(self, shape: str) -> None:
        status, said, _ = await self.call(provider="scripted", messages=[{"role": "user", **PICTURES[shape]}])
        assert status == 422
        error = said["error"]
        assert isinstance(error, dict)
        assert error["field"] == "messages[0].content"
        assert "images" in error["message"]

    @pytest.fixture
    async def fake(self, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Vendor]:
        """All three vendors, configured as one would."""
        async with vendor() as fake:
            monkeypatch.setenv("OPENAI_BASE_URL", f"{fake.base_url}/v1")
            monkeypatch.setenv("OPENAI_API_KEY", "sk-strict")
            monkeypatch.setenv("ANTHROPIC_BASE_URL", fake.base_url)
            monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-strict")
            monkeypatch.setenv("ANTHROPIC_THINKING_TOKENS", "2048")
            monkeypatch.setenv("OLLAMA_HOST", fake.base_url)
            yield fake
            await registry.shutdown()

    @pytest.mark.parametrize("use_streaming", [True, False], ids=["streamed", "whole"])
    @pytest.mark.parametrize("provider", ["openai", "anthropic", "ollama"])
    async def test_a_conversation_handed_over_reaches_every_vendor_in_its_own_form(
        self, provider: str, use_streaming: bool, fake: Vendor
    ) -> None:
        status, _, events = await self.call(
            provider=provider, policy="basic", messages=CONVERSATION, use_streaming=use_streaming
        )
        assert status == 201
        assert final(events) == "fine"
        assert len(fake.taken) == 1
        for words in ("Be brief.", "In Bonn it is.", "Thank you. And in Kiel?", "Ulm", "cold"):
            assert words in json.dumps(fake.taken[0])

    @pytest.mark.parametrize("use_streaming", [True, False], ids=["streamed", "whole"])
    @pytest.mark.parametrize("provider", ["openai", "anthropic", "ollama"])
    async def test_results_and_failures_of_our_tools_go_back_in_every_vendors_form(
        self, provider: str, use_streaming: bool, fake: Vendor
    ) -> None:
        status, _, events = await self.call(
            provider=provider, policy="basic", prompt=CALL_ME, tools=True, use_streaming=use_streaming
        )
        assert status == 201
        assert final(events) == "fine"
        first, second = (json.dumps(body["messages"]) for body in fake.taken)
        assert "42" not in first
        assert "42" in second, "the result of the call that could be run"
        assert "Field required" in second, "why the other one could not"
        if provider == "anthropic":
            assert '"signature": "c2ln"' in second
            assert '"is_error": true' in second

    @pytest.mark.parametrize("use_streaming", [True, False], ids=["streamed", "whole"])
    @pytest.mark.parametrize("provider", ["openai", "anthropic", "ollama"])
    async def test_names_that_no_vendor_takes_back_are_sent_in_a_form_that_all_do(
        self, provider: str, use_streaming: bool, fake: Vendor
    ) -> None:
        status, _, events = await self.call(
            provider=provider, policy="basic", prompt=CALL_STRANGERS, tools=True, use_streaming=use_streaming
        )
        assert status == 201
        assert final(events) == "fine"
        assert len(fake.taken) == 2
        second = json.dumps(fake.taken[1]["messages"], ensure_ascii=False)
        assert second.count("there is no tool named") == len(STRANGERS)
        for sent in ("nameless", "x" * 64, "name_withheld", "multi_tool_use_parallel", "Wetter_in_K_ln", "_"):
            assert re.search(rf'"name": "{sent}"', second), sent
        assert "there is no tool named “multi_tool_use.parallel” here" in second, "who wrote it may know it again"
