"""What endpoints say of a failure: told to readers and stored, so nothing of it may be more than words."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from streaming.providers.anthropic import AnthropicProvider
from streaming.providers.base import (
    Provider,
    ProviderAuthError,
    ProviderError,
    ProviderRateLimited,
    ProviderRefused,
    ProviderUnavailable,
)
from streaming.providers.failures import MAX_HEARD_CHARS, Failures
from streaming.providers.ollama import OllamaProvider
from streaming.providers.openai import OpenAIProvider
from tests.streaming.faults.server import status
from tests.streaming.local_server import HEAD, serve
from tests.streaming.providers.test_limits import text_and_error

KEY = "sk-" + "0123456789abcdef" * 4
MAKE: dict[str, Callable[[str], Provider]] = {
    "openai": lambda url: OpenAIProvider(url, KEY),
    "anthropic": lambda url: AnthropicProvider(url, KEY),
    "ollama": lambda url: OllamaProvider(url, api_key=KEY),
}


def in_stream(adapter: str, message: str) -> bytes:
    """The error inside a stream, as the dialect has it."""
    if adapter == "ollama":
        return json.dumps({"error": message}).encode() + b"\n"
    error = {"type": "error", "error": {"type": "invalid_request_error", "message": message}}
    return b"event: error\ndata: %s\n\n" % json.dumps(error).encode()


async def told(adapter: str, where: str, message: str) -> ProviderError:
    """What becomes of an error that stands in the body of a 400, in the stream or instead of a whole answer."""
    if where == "status":
        head, pieces = b"", [status("400 Bad Request", json.dumps({"error": {"message": message}}).encode())]
    elif where == "stream":
        head, pieces = HEAD, [in_stream(adapter, message)]
    else:
        body = json.dumps({"error": message if adapter == "ollama" else {"type": "odd", "message": message}}).encode()
        head, pieces = b"", [status("200 OK", body)]
    async with serve(pieces, head=head) as endpoint:
        _, error = await text_and_error(MAKE[adapter](endpoint.base_url), streaming=where != "whole")
    assert error is not None
    return error


WHERE = pytest.mark.parametrize("where", ["status", "stream", "whole"])
ADAPTER = pytest.mark.parametrize("adapter", MAKE)


@WHERE
@ADAPTER
async def test_it_works(adapter: str, where: str) -> None:
    assert str(await told(adapter, where, "the model is unsupported")).endswith(": the model is unsupported")


@WHERE
@ADAPTER
@pytest.mark.parametrize("at", [0, 1_950, 1_970, 1_990, 1_999, 5_000])
async def test_no_part_of_a_key_is_told_wherever_the_message_is_cut(adapter: str, where: str, at: int) -> None:
    said = str(await told(adapter, where, "unsupported: ".ljust(at, "w") + KEY + " is what you sent " + "w " * 1_500))
    assert "sk-" not in said
    assert "0123" not in said
    assert len(said) <= MAX_HEARD_CHARS


@ADAPTER
async def test_a_word_is_not_cut_in_two(adapter: str) -> None:
    """What a guardrail would have known as a whole stays out as a whole."""
    said = str(await told(adapter, "status", "number 123-45-6789 " * 200))
    assert said.endswith(" …")
    assert set(said.partition(": ")[2].split()) == {"number", "123-45-6789", "…"}


@WHERE
@ADAPTER
async def test_what_can_be_neither_sent_nor_stored_is_replaced(adapter: str, where: str) -> None:
    said = str(await told(adapter, where, "unsupported \0 and \ud800."))
    assert said.endswith(": unsupported \ufffd and \ufffd.")


@pytest.mark.parametrize("key", ["", "1", "e", '"', "sk-key", "k" * 300])
def test_an_error_in_the_endpoints_own_words_stays_json_whatever_the_key(key: str) -> None:
    said: dict[str, object] = {"error": {"message": f"bad {key}!", f"{key}": [1, True, None, {"again": f"{key}{key}"}]}}
    cleaned = Failures("box", key).cleaned(said)
    assert json.loads(json.dumps(cleaned)) == cleaned
    if key in ("sk-key", "k" * 300):
        assert cleaned == {"error": {"message": "bad [key]!", "[key]": [1, True, None, {"again": "[key][key]"}]}}
    deep: dict[str, object] = {}
    for _ in range(5_000):
        deep = {"error": deep}
    assert "error" in Failures("box", key).cleaned(deep)


@ADAPTER
@pytest.mark.parametrize("packed", ["br", "gzip, gzip", "gzip"])
async def test_a_body_that_cannot_be_unpacked_does_not_hide_the_status(adapter: str, packed: str) -> None:
    """A proxy's page before the endpoint; nobody asked for it to be packed, and what counts is that it may pass."""
    kinds = {"429 Slow": ProviderRateLimited, "503 Busy": ProviderUnavailable, "401 Who": ProviderAuthError,
             "400 Bad": ProviderRefused}  # fmt: skip
    for line, kind in kinds.items():
        body = status(line, b"\x8b\x02\x80no JSON\x03", f"Content-Encoding: {packed}", "Retry-After: 7")
        async with serve([body], head=b"") as endpoint:
            _, error = await text_and_error(MAKE[adapter](endpoint.base_url))
        assert type(error) is kind, str(error)
        assert str(error).startswith(f"the provider answered {line[:3]}")
        assert not isinstance(error, ProviderRateLimited) or error.retry_after_s == 7


async def test_a_body_that_is_no_http_does_not_hide_the_status() -> None:
    head = b"HTTP/1.1 429 Slow\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with serve([b"this is no length\r\n"], head=head) as endpoint:
        _, error = await text_and_error(MAKE["openai"](endpoint.base_url))
    assert type(error) is ProviderRateLimited, str(error)


def test_every_failure_is_mended_whoever_says_it() -> None:
    assert str(ProviderRateLimited("wait\0 \udfff", 1.0)) == "wait\ufffd \ufffd"
