"""Ollama's chat dialect, spoken and understood: what a client of it asks of a provider that speaks another one."""

from __future__ import annotations

from collections.abc import Iterator

from streaming.core.events import ProviderEvent, TextDelta, ThinkingDelta
from streaming.gateway.prompt import BadRequest
from streaming.gateway.speak import (
    FREE,
    Choice,
    Gathered,
    Speaker,
    all_objects,
    at_least_one,
    function_of,
    functions_of,
    refuse_unknown,
    sampling_of,
    text_alone,
)
from streaming.gateway.speak_anthropic import as_object
from streaming.gateway.speak_openai import dumped
from streaming.gateway.walk_ollama import stamp
from streaming.gateway.walker import Json, objects
from streaming.providers.base import ChatMessage, Provider, ProviderRequest, ToolCallMade
from streaming.providers.sampling import WORDS

KNOWN = frozenset({"model", "messages", "stream", "tools", "options"})
IGNORED = frozenset({"keep_alive"})
MESSAGE = frozenset({"role", "content", "thinking", "images", "tool_calls", "tool_name", "tool_call_id"})
CALL = frozenset({"name", "arguments", "index", "description"})
_REASONS = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length", "tool_calls": "stop",
            "tool_use": "stop", "": "stop"}  # fmt: skip


class OllamaSpeaker(Speaker):
    """Lines of a chat."""

    def __init__(self, model: str, id_: str, created: int) -> None:
        super().__init__(model, id_, created)

    def _line(self, message: Json, **more: object) -> Json:
        return {
            "model": self.model, "created_at": stamp(self.created), "message": {"role": "assistant", **message},
            "done": False, **more,
        }  # fmt: skip

    def chunks(self, event: ProviderEvent) -> Iterator[Json]:
        """One line an event; calls come complete, at the end."""
        match event:
            case TextDelta(text, 0):
                yield self._line({"content": text})
            case ThinkingDelta(text, 0) if text:
                yield self._line({"content": "", "thinking": text})

    def end(self, gathered: Gathered) -> Iterator[Json]:
        """Calls, then the last line."""
        choice = gathered.choices.get(0, Choice())
        if choice.calls:
            yield self._line({"content": "", "tool_calls": _calls(choice)})
        yield self._line({"content": ""}, **_ended(gathered, choice))

    def whole(self, gathered: Gathered) -> Json:
        """The one line."""
        choice = gathered.choices.get(0, Choice())
        self.model = gathered.model or self.model
        message: Json = {"content": choice.text}
        if choice.thinking:
            message["thinking"] = choice.thinking
        if choice.calls:
            message["tool_calls"] = _calls(choice)
        return self._line(message, **_ended(gathered, choice))


def _calls(choice: Choice) -> list[Json]:
    return [
        {"function": {"name": call.name, "arguments": as_object(call.arguments)}}
        for _, call in sorted(choice.calls.items())
    ]


def _ended(gathered: Gathered, choice: Choice) -> Json:
    counts: Json = {}
    for name, ours in (("prompt_eval_count", "input_tokens"), ("eval_count", "output_tokens")):
        if ours in gathered.usage:
            counts[name] = gathered.usage[ours]
    return {"done": True, "done_reason": _REASONS.get(choice.reason, choice.reason), **counts}


def understood(body: Json, provider: Provider, model: str) -> ProviderRequest:
    """The request for a provider that speaks another dialect. Raises ``BadRequest``."""
    refuse_unknown(body, KNOWN, IGNORED, provider)
    options = body.get("options")
    options = options if isinstance(options, dict) else {}
    for name, value in options.items():
        if name not in ("num_predict", "num_ctx", *WORDS["ollama"].values()) and value is not None:
            where = f"options.{name}"
            raise BadRequest(f"“{where}” cannot be passed on to “{provider.name}”.", where, "unsupported")
    most = options.get("num_predict")
    unlimited = most in (-1, -2)  # until the model ends, or its window is full
    return ProviderRequest(
        messages=tuple(_messages(body, provider)),
        model=model,
        tools=tuple(functions_of(body, provider)),
        max_tokens=None if unlimited else at_least_one(most, "options.num_predict"),
        sampling=sampling_of(options, provider, "ollama", "options."),
    )


def _messages(body: Json, provider: Provider) -> Iterator[ChatMessage]:
    ids: dict[str, str] = {}
    for number, message in enumerate(objects(body.get("messages"))):
        where = f"messages[{number}]"
        role = str(message.get("role"))
        if role not in ("system", "user", "assistant", "tool"):
            raise BadRequest(
                f"“{where}.role” cannot be passed on to “{provider.name}”.", f"{where}.role", "unsupported"
            )
        if message.get("images"):
            said = f"“{where}.images” cannot be passed on to “{provider.name}”."
            raise BadRequest(said, f"{where}.images", "unsupported")
        refuse_unknown(message, MESSAGE | {"name"} if role == "tool" else MESSAGE, FREE, provider, f"{where}.")
        text = text_alone(message.get("content"), f"{where}.content", provider)
        calls: list[ToolCallMade] = []
        for at, call in enumerate(all_objects(message.get("tool_calls"), f"{where}.tool_calls")):
            function = function_of(call, CALL, f"{where}.tool_calls[{at}]", provider)
            name, id_ = str(function.get("name", "")), str(call.get("id") or f"call_{number}_{at}")
            ids[name] = ids[id_] = id_  # results are told apart by name here, where the client names no id
            calls.append(ToolCallMade(id_, name, dumped(function.get("arguments") or {})))
        named = message.get("tool_call_id") or message.get("tool_name") or message.get("name") or ""
        yield ChatMessage(
            role,
            text,
            tool_calls=tuple(calls),
            tool_call_id=ids.get(str(named), next(reversed(ids.values()), "")) if role == "tool" else "",
            thinking=str(message.get("thinking") or "") if role == "assistant" else "",
        )
