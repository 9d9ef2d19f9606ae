"""Ollama, chat or generate.

Configured by the names that the vendor's own tools read: ``OLLAMA_HOST`` (an address, or host and port alone),
``OLLAMA_MODEL`` and, where the server asks for one, ``OLLAMA_API_KEY``; offered only when host or model is set.
``OLLAMA_API=generate`` asks ``/api/generate`` instead of ``/api/chat``, for models without a chat template. Protects
the form of the request; what the dialect has no words for is refused before anything is sent.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from streaming.core.events import ProviderEvent
from streaming.providers import base
from streaming.providers.http import Call, HttpProvider
from streaming.providers.ollama_lines import LineReader, whole
from streaming.providers.sampling import written

DEFAULT_MODEL = "llama3.2"
DEFAULT_PORTS = {"": 11434, "http": 80, "https": 443}
"""By the scheme that is written; without one the address is the vendor's own server."""


class OllamaProvider(HttpProvider):
    """``POST {host}/api/chat`` or ``/api/generate``."""

    name = "ollama"
    label = "Ollama"
    calls_in_text = True
    answers_at = "/api/chat"
    lists_at = "/api/tags"

    def __init__(
        self,
        base_url: str,
        model: str = "",
        limits: base.TimeLimits | None = None,
        *,
        api_key: str = "",
        generate: bool = False,
    ) -> None:
        super().__init__(base_url, api_key, model or DEFAULT_MODEL, limits)
        self._generate = generate

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> OllamaProvider | None:
        """None when neither host nor model is set. Raises ``ValueError``."""
        host, model, key, api = (env.get(f"OLLAMA_{part}", "").strip() for part in ("HOST", "MODEL", "API_KEY", "API"))
        if not (host or model):
            return None
        if api.lower() not in ("", "chat", "generate"):
            raise ValueError("OLLAMA_API is “chat” or “generate”")
        limits = base.TimeLimits.from_environment(env, cls.name)
        return cls(address(host), model, limits, api_key=key, generate=api.lower() == "generate")

    def _call(self, request: base.ProviderRequest, *, streaming: bool) -> Call:
        if request.choices != 1:
            raise base.ProviderRefused("this provider gives one answer at a time; ask with one choice")
        body: dict[str, object] = {"model": request.model or self._model, "stream": streaming}
        options = written(request.sampling, self.name)
        if request.max_tokens is not None:
            options["num_predict"] = request.max_tokens
        if options:
            body["options"] = options
        headers = self.headers(streaming=streaming)
        if self._generate:
            if request.tools or any(m.role == "tool" or m.tool_calls for m in request.messages):
                raise base.ProviderRefused("Ollama's “generate” knows no tools; set OLLAMA_API=chat")
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
        return Call(self.answers_at, headers, body)

    def headers(self, *, streaming: bool) -> dict[str, str]:
        """What goes with every request."""
        headers = {"Accept": "application/x-ndjson" if streaming else "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        return headers

    def _reader(self, request: base.ProviderRequest) -> LineReader:
        return LineReader(_calls_made(request))

    def _whole(self, document: dict[str, object], request: base.ProviderRequest) -> Iterable[ProviderEvent]:
        return whole(document, _calls_made(request))


def address(host: str) -> str:
    """``OLLAMA_HOST`` as an address: scheme, host and port may each be left out."""
    scheme, separator, rest = host.partition("://")
    if not separator:
        scheme, rest = "", host
    name, slash, path = rest.partition("/")
    if name.count(":") > 1 and not name.startswith("["):
        name = f"[{name}]"  # an IPv6 address alone
    at = name.rfind(":")
    name, port = (name, "") if at < 0 or name.endswith("]") else (name[:at], name[at + 1 :])
    if name in ("", "0.0.0.0", "[::]"):  # noqa: S104 - where a server listens is not where a client connects
        name = "127.0.0.1"
    return f"{scheme or 'http'}://{name}:{port or DEFAULT_PORTS.get(scheme, '')}{slash}{path}".rstrip("/")


def _calls_made(request: base.ProviderRequest) -> int:
    return sum(len(message.tool_calls) for message in request.messages)


def _messages(messages: tuple[base.ChatMessage, ...]) -> list[dict[str, object]]:
    names = {call.id: call.name for message in messages for call in message.tool_calls}
    out: list[dict[str, object]] = []
    for message in messages:
        # The dialect has no flag for a call that failed, so the text says so.
        text = f"Error: {message.text}" if message.failed else message.text
        entry: dict[str, object] = {"role": message.role, "content": text}
        if message.role == "tool":
            # Results are told apart by name here; an id that is not known stands for itself.
            entry["tool_name"] = names.get(message.tool_call_id, message.tool_call_id)
        if message.thinking:
            entry["thinking"] = message.thinking
        if message.tool_calls:
            entry["tool_calls"] = [
                {"function": {"name": call.name, "arguments": _object(call.arguments)}} for call in message.tool_calls
            ]
        out.append(entry)
    return out


def _object(arguments: str) -> dict[str, object]:
    """The arguments as the object that the dialect wants; what a model got wrong is told to it as it was."""
    try:
        found = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {"not_an_object": arguments}


def _as_prompt(messages: tuple[base.ChatMessage, ...]) -> dict[str, object]:
    """A conversation as one prompt: the last message alone, or all of them with their roles named."""
    system = "\n\n".join(message.text for message in messages if message.role == "system")
    said = [message for message in messages if message.role != "system"]
    if len(said) == 1:
        prompt = said[0].text
    else:
        prompt = "\n\n".join(f"{message.role.capitalize()}: {message.text}" for message in said) + "\n\nAssistant:"
    return {"prompt": prompt, **({"system": system} if system else {})}
