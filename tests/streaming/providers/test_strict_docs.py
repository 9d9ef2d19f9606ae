"""The provider that the documentation writes works as it is printed, in one file and registered nowhere else."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from streaming.core.events import Stopped, TextDelta
from streaming.providers import base
from streaming.providers.base import ChatMessage, Provider, ProviderRequest, available
from tests.streaming.local_server import cuts, serve

DOCS = Path(__file__).resolve().parents[3] / "docs" / "providers.md"
ASK = ProviderRequest((ChatMessage("user", "hello"),))
WORDS = 'data: {"word": "Grüße "}\n\ndata: {oops\n\ndata: {"word": "🌍"}\n\n'.encode()
STOP = b'data: {"stop": "stop"}\n\n'


@pytest.fixture
def words() -> Iterator[None]:
    """The example as a module of the package, for as long as a test."""
    (code,) = re.findall(
        r"^```python\n(.*?)^```$", DOCS.read_text("utf-8").split("## Adding a provider")[1], re.S | re.M
    )
    module = ModuleType("streaming.providers.words")
    sys.modules[module.__name__] = module
    exec(compile(code, str(DOCS), "exec"), module.__dict__)
    yield
    del sys.modules[module.__name__], Provider._registry["words"]


async def answer(url: str, *, streaming: bool = True, request: ProviderRequest = ASK) -> list[object]:
    provider = available({"WORDS_BASE_URL": url, "WORDS_API_KEY": "sk-words"})["words"]
    return [event async for event in (provider.stream if streaming else provider.standard)(request)]


@pytest.mark.usefixtures("words")
@pytest.mark.parametrize("most", [1, 5])
async def test_it_works(most: int) -> None:
    async with serve(cuts(WORDS + STOP, seed=1, most=most)) as endpoint:
        events = await answer(endpoint.base_url)
    assert [event for event in events if isinstance(event, TextDelta)] == [TextDelta("Grüße "), TextDelta("🌍")]
    assert Stopped("stop") in events
    assert b"Bearer sk-words" in endpoint.requests[0]


@pytest.mark.usefixtures("words")
async def test_it_also_answers_whole() -> None:
    async with serve([json.dumps({"text": "Grüße 🌍"}).encode()]) as endpoint:
        assert await answer(endpoint.base_url, streaming=False) == [TextDelta("Grüße 🌍"), Stopped("stop")]


@pytest.mark.usefixtures("words")
async def test_it_fails_as_the_others_do() -> None:
    async with serve([WORDS]) as endpoint:
        with pytest.raises(base.StreamCutOff):
            await answer(endpoint.base_url)
    async with serve([WORDS, b'data: {"error": "sk-words is nobody\'s"}\n\n']) as endpoint:
        with pytest.raises(base.ProviderRefused, match=r"\[key\] is nobody's"):
            await answer(endpoint.base_url)
    with pytest.raises(base.ProviderRefused, match="several choices"):
        await answer(endpoint.base_url, request=ProviderRequest(ASK.messages, choices=2))


def test_it_is_gone_when_its_file_is() -> None:
    assert "words" not in available({"WORDS_BASE_URL": "http://127.0.0.1:9"})
