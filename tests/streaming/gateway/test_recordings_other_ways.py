"""Recorded answers through the official libraries in the other ways of asking: asynchronous, and in one piece.

With an empty policy each is what the library makes of it at the upstream itself. Documents of answers that are not
streamed are put together here from what the recorded streams say, calls of tools and thinking included.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import anthropic
import ollama
import openai
import pytest

from streaming.gateway.speak import Gathered, Speaker
from streaming.gateway.speak_anthropic import AnthropicSpeaker
from streaming.gateway.speak_ollama import OllamaSpeaker
from streaming.gateway.speak_openai import OpenAISpeaker
from streaming.providers.anthropic import AnthropicProvider
from streaming.providers.base import ChatMessage, ProviderError, ProviderRequest
from streaming.providers.http import HttpProvider
from streaming.providers.ollama import OllamaProvider
from streaming.providers.openai import OpenAIProvider
from tests.streaming.gateway.fake import JSON, NDJSON, SSE, Answer
from tests.streaming.gateway.recorded import recordings
from tests.streaming.gateway.served import Gateway

HELLO = [{"role": "user", "content": "Hello"}]
BEGINS = {"openai": ("openai_chat", "openai_chat_compat"), "anthropic": ("anthropic",), "ollama": ("ollama_chat",)}
FILES = [(name, file) for name, begins in BEGINS.items() for file in recordings(*begins)]
every = pytest.mark.parametrize(("dialect", "file"), FILES, ids=[file.stem for _, file in FILES])


async def asked(dialect: str, url: str, key: str, *, stream: bool) -> object:
    """What the asynchronous library of the dialect makes of the answer; of an error its class and its body."""
    try:
        if dialect == "openai":
            async with openai.AsyncOpenAI(api_key=key, base_url=f"{url}/v1", max_retries=0) as one:
                got = await one.chat.completions.create(model="replay", messages=HELLO, stream=stream)  # type: ignore[call-overload]
                return [part.model_dump() async for part in got] if stream else got.model_dump()
        if dialect == "anthropic":
            async with anthropic.AsyncAnthropic(api_key=key, base_url=url, max_retries=0) as two:
                said = await two.messages.create(model="replay", max_tokens=9, messages=HELLO, stream=stream)  # type: ignore[call-overload]
                return [part.model_dump(warnings=False) async for part in said] if stream else said.model_dump()
        three = ollama.AsyncClient(host=url, headers={"Authorization": f"Bearer {key}"})
        try:
            told = await three.chat(model="replay", messages=HELLO, stream=stream)  # type: ignore[call-overload]
            return [part.model_dump() async for part in told] if stream else told.model_dump()
        finally:
            await three._client.aclose()
    except (openai.APIError, anthropic.APIError) as error:
        return type(error).__name__, error.body
    except ollama.ResponseError as error:
        return type(error).__name__, str(error)


def replay(served: Gateway, dialect: str, file: Path) -> None:
    """Play a recording to whoever asks."""
    served.fake.answers["replay"] = Answer([file.read_bytes()], NDJSON if dialect == "ollama" else SSE)


async def both(served: Gateway, dialect: str, *, stream: bool) -> tuple[object, object]:
    ours = await asked(dialect, served.url, served.keys["open"], stream=stream)
    return ours, await asked(dialect, served.fake.url, "any", stream=stream)


async def gathered(dialect: str, url: str) -> dict[str, object]:
    """The document that says what the stream says; of one that breaks off, what it said until then."""
    provider: HttpProvider
    speaker: Speaker
    if dialect == "openai":
        provider, speaker = OpenAIProvider(f"{url}/v1", "k"), OpenAISpeaker("m", "1", 1)
    elif dialect == "anthropic":
        provider, speaker = AnthropicProvider(url, "k"), AnthropicSpeaker("m", "1", 1)
    else:
        provider, speaker = OllamaProvider(url), OllamaSpeaker("m", "1", 1)
    found = Gathered()
    try:
        async for event in provider.stream(ProviderRequest((ChatMessage("user", "Hello"),), "replay")):
            found.take(event)
    except ProviderError:
        return speaker.whole(found)
    return speaker.whole(found)


@every
async def test_it_works(served: Gateway, dialect: str, file: Path) -> None:
    """Streamed, with the asynchronous library."""
    replay(served, dialect, file)
    async with asyncio.timeout(120):
        ours, theirs = await both(served, dialect, stream=True)
    assert ours == theirs
    assert ours


@every
async def test_in_one_piece_it_is_the_same_too(served: Gateway, dialect: str, file: Path) -> None:
    replay(served, dialect, file)
    async with asyncio.timeout(120):
        document = await gathered(dialect, served.fake.url)
        served.fake.answers["replay"] = Answer([json.dumps(document).encode()], JSON)
        ours, theirs = await both(served, dialect, stream=False)
    assert isinstance(theirs, dict), theirs
    assert ours == theirs


def test_every_recording_of_a_dialect_that_has_a_front_is_among_them() -> None:
    if not FILES:
        pytest.skip("the recordings are not at hand")
    there = {file for file in FILES[0][1].parent.iterdir() if file.suffix in (".sse", ".ndjson")}
    assert {file.name.split("-")[0] for file in there - {file for _, file in FILES}} <= {"ollama_generate"}
