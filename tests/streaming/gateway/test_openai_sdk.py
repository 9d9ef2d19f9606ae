"""The official OpenAI library against the gateway: what it parses is what it parses at the upstream itself."""

from __future__ import annotations

import json

from openai import OpenAI

from tests.streaming.gateway.fake import Answer, sse
from tests.streaming.gateway.served import Gateway

HELLO = [{"role": "user", "content": "Hello"}]
TOOLS = [
    {
        "type": "function",
        "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
    }
]
CARD = "4111 1111 1111 1111"


def chunk(delta: object, reason: str | None = None, index: int = 0, **more: object) -> dict[str, object]:
    choices = [{"index": index, "delta": delta, "finish_reason": reason, "logprobs": None}]
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": choices,
    } | more


def client(served: Gateway, policy: str) -> OpenAI:
    return OpenAI(api_key=served.keys[policy], base_url=f"{served.url}/v1", max_retries=0)


def direct(served: Gateway) -> OpenAI:
    return OpenAI(api_key="any", base_url=f"{served.fake.url}/v1", max_retries=0)


def streamed(of: OpenAI, model: str, **more: object) -> list[dict[str, object]]:
    with of.chat.completions.create(model=model, messages=HELLO, stream=True, **more) as found:  # type: ignore[call-overload]
        return [one.model_dump() for one in found]


SAID = [
    chunk({"role": "assistant", "content": ""}),
    chunk({"content": "Good "}),
    chunk({"content": "morning"}),
    chunk({"content": ", Ada."}, new_field={"nested": ["kept"]}),
    chunk({}, "stop"),
    {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [],
     "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}},
]  # fmt: skip


def test_it_works(served: Gateway) -> None:
    """The same chunks as from the upstream itself, fields that nobody here knows included."""
    served.fake.answers["said"] = Answer(sse(*SAID))
    got = streamed(client(served, "open"), "said", stream_options={"include_usage": True}, user="u-1")
    assert got == streamed(direct(served), "said", stream_options={"include_usage": True})
    path, headers, body = served.fake.asked[-2]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer upstream-key"
    assert json.loads(body)["user"] == "u-1"
