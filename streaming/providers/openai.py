"""Any OpenAI-compatible chat-completions endpoint.

Configured by the names that the vendor's own tools read: ``OPENAI_BASE_URL``, ``OPENAI_API_KEY``, ``OPENAI_MODEL``;
offered only when one of them is set. Protects the form of the request: what is asked for is written as the vendor's
schema has it, and what it has no words for is refused before anything is sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from streaming.core.events import ProviderEvent
from streaming.providers import base
from streaming.providers.http import Call, HttpProvider
from streaming.providers.openai_chunks import ChunkReader, whole
from streaming.providers.sampling import written

DEFAULT_BASE_URL = "https://api.openai.com/v1"
DEFAULT_MODEL = "gpt-4o-mini"


class OpenAIProvider(HttpProvider):
    """``POST {base_url}/chat/completions``."""

    name = "openai"
    label = "OpenAI-compatible"
    calls_in_text = True
    answers_at = "/chat/completions"
    lists_at = "/models"

    def __init__(
        self, base_url: str, api_key: str = "", model: str = "", limits: base.TimeLimits | None = None
    ) -> None:
        super().__init__(base_url, api_key, model or DEFAULT_MODEL, limits)

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> OpenAIProvider | None:
        """None when neither base URL, key nor model is set."""
        url, key, model = (env.get(f"OPENAI_{part}", "").strip() for part in ("BASE_URL", "API_KEY", "MODEL"))
        if not (url or key or model):
            return None
        return cls(url or DEFAULT_BASE_URL, key, model, base.TimeLimits.from_environment(env, cls.name))

    def _call(self, request: base.ProviderRequest, *, streaming: bool) -> Call:
        body: dict[str, object] = {
            "model": request.model or self._model,
            "messages": [_message(message) for message in request.messages],
            "stream": streaming,
        }
        if streaming:
            body["stream_options"] = {"include_usage": True}
        if request.tools:
            body["tools"] = [
                {
                    "type": "function",
                    "function": {"name": tool.name, "description": tool.description, "parameters": tool.parameters},
                }
                for tool in request.tools
            ]
        if request.choices != 1:
            body["n"] = request.choices
        if request.max_tokens is not None:
            # The vendor's own newer models refuse the old name, and most compatible servers know no other.
            body["max_completion_tokens" if self._base_url == DEFAULT_BASE_URL else "max_tokens"] = request.max_tokens
        body |= written(request.sampling, self.name)
        return Call(self.answers_at, self.headers(streaming=streaming), body)

    def headers(self, *, streaming: bool) -> dict[str, str]:
        """What goes with every request."""
        headers = {"Accept": "text/event-stream" if streaming else "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        return headers

    def _reader(self, request: base.ProviderRequest) -> ChunkReader:
        return ChunkReader()

    def _whole(self, document: dict[str, object], request: base.ProviderRequest) -> Iterable[ProviderEvent]:
        return whole(document)


def _message(message: base.ChatMessage) -> dict[str, object]:
    if message.role == "tool":
        # The dialect has no flag for a call that failed, so the text says so.
        text = f"Error: {message.text}" if message.failed else message.text
        return {"role": "tool", "tool_call_id": message.tool_call_id, "content": text}
    if not message.tool_calls:
        return {"role": message.role, "content": message.text}
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in message.tool_calls
    ]
    return {"role": message.role, "content": message.text or None, "tool_calls": calls}
