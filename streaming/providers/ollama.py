"""Ollama, chat or generate.

Configured by the names that the vendor's own tools read: ``OLLAMA_HOST`` (an address, or host and port alone) and
``OLLAMA_MODEL``; offered only when one of them is set. ``OLLAMA_API=generate`` asks ``/api/generate`` instead of
``/api/chat``, for models without a chat template. Protects the form of the request; what the dialect has no words for
is refused before anything is sent.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from streaming.core.events import ProviderEvent
from streaming.providers import base
from streaming.providers.http import Call, HttpProvider
from streaming.providers.ollama_lines import LineReader, whole

DEFAULT_HOST = "http://127.0.0.1:11434"
DEFAULT_PORT = 11434
DEFAULT_MODEL = "llama3.2"


class OllamaProvider(HttpProvider):
    """``POST {host}/api/chat`` or ``/api/generate``."""

    name = "ollama"
    label = "Ollama"

    def __init__(
        self, base_url: str, model: str = "", limits: base.TimeLimits | None = None, *, generate: bool = False
    ) -> None:
        super().__init__(base_url, "", model or DEFAULT_MODEL, limits)
        self._generate = generate

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> OllamaProvider | None:
        """None when neither host nor model is set."""
        host, model = (env.get(f"OLLAMA_{part}", "").strip() for part in ("HOST", "MODEL"))
        if not (host or model):
            return None
        generate = env.get("OLLAMA_API", "").strip().lower() == "generate"
        limits = base.TimeLimits.from_environment(env, cls.name)
        return cls(address(host) if host else DEFAULT_HOST, model, limits, generate=generate)

    def _call(self, request: base.ProviderRequest, *, streaming: bool) -> Call:
        if request.choices != 1:
            raise base.ProviderRefused("this provider gives one answer at a time; ask with one choice")
        body: dict[str, object] = {"model": request.model or self._model, "stream": streaming}
        if request.max_tokens is not None:
            body["options"] = {"num_predict": request.max_tokens}
        headers = {"Accept": "application/x-ndjson" if streaming else "application/json"}
        if self._generate:
            if request.tools or any(message.role == "tool" for message in request.messages):
                raise base.ProviderRefused("“generate” knows no tools; ask “chat”")
            return Call("/api/generate", headers, body | _as_prompt(request.messages))
        body["messages"] = _messages(request.messages)
        if request.tools:
            body["tools"] = [
                {
                    "type": "function",
                    "function": {"name": tool.name, "description": tool.description, "parameters": tool.parameters},
                }
                for tool in request.tools
            ]
        return Call("/api/chat", headers, body)

    def _reader(self, request: base.ProviderRequest) -> LineReader:
        return LineReader()

    def _whole(self, document: dict[str, object], request: base.ProviderRequest) -> Iterable[ProviderEvent]:
        return whole(document)


def address(host: str) -> str:
    """``OLLAMA_HOST`` as an address: scheme and port may be left out, and 0.0.0.0 is where a server listens."""
    scheme, separator, rest = host.partition("://")
    if not separator:
        scheme, rest = "http", host
    name, slash, path = rest.partition("/")
    bare = name.removeprefix("[").partition("]")[0] if name.startswith("[") else name.partition(":")[0]
    has_port = name.rpartition("]")[2].count(":") == 1
    if bare == "0.0.0.0":  # noqa: S104 - what a server listens on, not where a client connects
        name = name.replace(bare, "127.0.0.1", 1)
    port = "" if has_port or scheme != "http" else f":{DEFAULT_PORT}"
    return f"{scheme}://{name}{port}{slash}{path}".rstrip("/")


def _messages(messages: tuple[base.ChatMessage, ...]) -> list[dict[str, object]]:
    names = {call.id: call.name for message in messages for call in message.tool_calls}
    out: list[dict[str, object]] = []
    for message in messages:
        entry: dict[str, object] = {"role": message.role, "content": message.text}
        if message.role == "tool":
            entry["tool_name"] = names.get(message.tool_call_id, "")
        if message.thinking:
            entry["thinking"] = message.thinking
        if message.tool_calls:
            entry["tool_calls"] = [
                {"function": {"name": call.name, "arguments": json.loads(call.arguments or "{}")}}
                for call in message.tool_calls
            ]
        out.append(entry)
    return out


def _as_prompt(messages: tuple[base.ChatMessage, ...]) -> dict[str, object]:
    """A conversation as one prompt: the last message alone, or all of them with their roles named."""
    system = "\n\n".join(message.text for message in messages if message.role == "system")
    said = [message for message in messages if message.role != "system"]
    if len(said) == 1:
        prompt = said[0].text
    else:
        prompt = "\n\n".join(f"{message.role.capitalize()}: {message.text}" for message in said) + "\n\nAssistant:"
    return {"prompt": prompt, **({"system": system} if system else {})}
