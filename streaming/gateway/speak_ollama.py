"""Ollama's chat dialect, spoken and understood: what a client of it asks of a provider that speaks another one."""

from __future__ import annotations

from collections.abc import Iterator

from streaming.core.events import ProviderEvent, TextDelta, ThinkingDelta
from streaming.gateway.prompt import BadRequest
from streaming.gateway.speak import Choice, Gathered, Speaker, most_tokens, refuse_unknown, sampling_of, text_alone
from streaming.gateway.speak_anthropic import as_object
from streaming.gateway.speak_openai import dumped
from streaming.gateway.walk_ollama import stamp
from streaming.gateway.walker import Json, objects
from streaming.providers.base import ChatMessage, Provider, ProviderRequest, ToolCallMade, ToolSpec
from streaming.providers.sampling import WORDS

KNOWN = frozenset({"model", "messages", "stream", "tools", "options"})
IGNORED = frozenset({"keep_alive"})
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
        tools=tuple(_tools(body)),
        max_tokens=None if unlimited else most_tokens(most, "options.num_predict"),
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
        text = text_alone(message.get("content"), f"{where}.content", provider)
        calls: list[ToolCallMade] = []
        for at, call in enumerate(objects(message.get("tool_calls"))):
            if isinstance(function := call.get("function"), dict):
                name, id_ = str(function.get("name", "")), f"call_{number}_{at}"
                ids[name] = id_  # results are told apart by name here
                calls.append(ToolCallMade(id_, name, dumped(function.get("arguments") or {})))
        answers = ids.get(str(message.get("tool_name") or message.get("name") or ""), next(reversed(ids.values()), ""))
        yield ChatMessage(role, text, tool_calls=tuple(calls), tool_call_id=answers if role == "tool" else "")


def _tools(body: Json) -> Iterator[ToolSpec]:
    for number, tool in enumerate(objects(body.get("tools"))):
        function = tool.get("function")
        if not isinstance(function, dict):
            raise BadRequest(f"“tools[{number}]” is not a function.", f"tools[{number}]", "unsupported")
        parameters = function.get("parameters")
        yield ToolSpec(
            str(function.get("name", "")),
            str(function.get("description") or ""),
            parameters if isinstance(parameters, dict) else {"type": "object", "properties": {}},
        )
