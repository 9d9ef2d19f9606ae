"""Chat completions, spoken and understood: what a client of this dialect asks of a provider that speaks another one."""

from __future__ import annotations

import json
from collections.abc import Iterator

from streaming.core.events import ProviderEvent, Stopped, TextDelta, ThinkingDelta, ToolCallDelta
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
from streaming.gateway.walker import Json, objects
from streaming.providers.base import ChatMessage, Provider, ProviderRequest, ToolCallMade
from streaming.providers.sampling import WORDS

KNOWN = frozenset(
    {"model", "messages", "stream", "stream_options", "tools", "tool_choice", "n", "max_tokens",
     "max_completion_tokens", *WORDS["openai"].values()}
)  # fmt: skip
IGNORED = frozenset({"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"})
"""Nothing in the answer depends on them, or nothing that a client could rely on."""
MESSAGE = frozenset({"role", "content", "tool_calls", "tool_call_id", "reasoning_content", "refusal"})
_REASONS = {
    "end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length", "tool_use": "tool_calls",
    "refusal": "content_filter", "load": "stop", "unload": "stop",
}  # fmt: skip


def reason_of(reason: str, *, calls: bool) -> str:
    """A reason to stop in this dialect's words."""
    return "tool_calls" if calls and reason in ("stop", "") else _REASONS.get(reason, reason or "stop")


class OpenAISpeaker(Speaker):
    """Chunks of ``chat.completion.chunk``."""

    def __init__(self, model: str, id_: str, created: int, *, include_usage: bool = False) -> None:
        super().__init__(model, f"chatcmpl-{id_}", created)
        self._begun: set[int] = set()
        self._ended: dict[int, str] = {}
        self._called: set[int] = set()
        self._include_usage = include_usage

    def _chunk(self, choices: list[Json]) -> Json:
        return {
            "id": self.id, "object": "chat.completion.chunk", "created": self.created, "model": self.model,
            "choices": choices,
        }  # fmt: skip

    def _said(self, choice: int, delta: Json) -> Iterator[Json]:
        if choice not in self._begun:
            self._begun.add(choice)
            delta = {"role": "assistant", **delta}
        yield self._chunk([{"index": choice, "delta": delta, "finish_reason": None}])

    def chunks(self, event: ProviderEvent) -> Iterator[Json]:
        """One chunk an event."""
        match event:
            case TextDelta(text, choice):
                yield from self._said(choice, {"content": text})
            case ThinkingDelta(text, choice) if text:
                yield from self._said(choice, {"reasoning_content": text})
            case ToolCallDelta() if not event.ran_by_provider:
                self._called.add(event.choice)
                function: Json = {"arguments": event.arguments}
                call: Json = {"index": event.index, "function": function}
                if event.name:
                    function["name"] = event.name
                    call |= {"id": event.id or f"call_{event.index}", "type": "function"}
                yield from self._said(event.choice, {"tool_calls": [call]})
            case Stopped(reason, choice):
                self._ended[choice] = reason

    def end(self, gathered: Gathered) -> Iterator[Json]:
        """Reasons, then usage if it was asked for."""
        for index in sorted(set(gathered.choices) | {0}):
            if index not in self._begun:
                yield from self._said(index, {"content": ""})
            reason = reason_of(self._ended.get(index, "stop"), calls=index in self._called)
            yield self._chunk([{"index": index, "delta": {}, "finish_reason": reason}])
        if self._include_usage:
            yield self._chunk([]) | {"usage": usage_of(gathered)}

    def whole(self, gathered: Gathered) -> Json:
        """A ``chat.completion``."""
        choices = gathered.choices or {0: Choice()}
        return {
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": gathered.model or self.model,
            "choices": [_choice(index, choice) for index, choice in sorted(choices.items())],
            "usage": usage_of(gathered),
        }


def _choice(index: int, choice: Choice) -> Json:
    message: Json = {"role": "assistant", "content": choice.text or None, "refusal": None}
    if choice.thinking:
        message["reasoning_content"] = choice.thinking
    if choice.calls:
        message["tool_calls"] = [
            {
                "id": call.id or f"call_{number}",
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments or "{}"},
            }
            for number, call in sorted(choice.calls.items())
        ]
    else:
        message["content"] = choice.text
    reason = reason_of(choice.reason, calls=bool(choice.calls))
    return {"index": index, "message": message, "logprobs": None, "finish_reason": reason}


def usage_of(gathered: Gathered) -> Json:
    """Tokens in and out; nought where the provider did not say."""
    sent, made = gathered.usage.get("input_tokens", 0), gathered.usage.get("output_tokens", 0)
    return {"prompt_tokens": sent, "completion_tokens": made, "total_tokens": sent + made}


def understood(body: Json, provider: Provider, model: str) -> ProviderRequest:
    """The request for a provider that speaks another dialect. Raises ``BadRequest``."""
    refuse_unknown(body, KNOWN, IGNORED, provider)
    if body.get("tool_choice") not in (None, "auto"):
        raise BadRequest(f"“tool_choice” cannot be passed on to “{provider.name}”.", "tool_choice", "unsupported")
    named = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    choices = at_least_one(body.get("n"), "n")
    if choices is not None and choices > 1 and provider.name != "openai":
        raise BadRequest(f"“n” cannot be passed on: “{provider.name}” gives one answer at a time.", "n", "unsupported")
    return ProviderRequest(
        messages=tuple(_messages(body, provider)),
        model=model,
        tools=tuple(functions_of(body, provider)),
        max_tokens=at_least_one(body.get(named), named),
        sampling=sampling_of(body, provider, "openai"),
    )


def _messages(body: Json, provider: Provider) -> Iterator[ChatMessage]:
    for number, message in enumerate(objects(body.get("messages"))):
        where = f"messages[{number}]"
        role = str(message.get("role"))
        text = text_alone(message.get("content"), f"{where}.content", provider)
        known = MESSAGE | {"name"} if role == "tool" else MESSAGE  # a result is told by its call
        refuse_unknown(message, known, FREE, provider, f"{where}.")
        if role not in ("system", "developer", "user", "assistant", "tool"):
            raise BadRequest(
                f"“{where}.role” cannot be passed on to “{provider.name}”.", f"{where}.role", "unsupported"
            )
        calls: list[ToolCallMade] = []
        for at, call in enumerate(all_objects(message.get("tool_calls"), f"{where}.tool_calls")):
            said = function_of(call, frozenset({"name", "arguments"}), f"{where}.tool_calls[{at}]", provider)
            calls.append(
                ToolCallMade(str(call.get("id", "")), str(said.get("name", "")), str(said.get("arguments", "")))
            )
        yield ChatMessage(
            "system" if role == "developer" else role,
            text or str(message.get("refusal") or ""),
            tool_calls=tuple(calls),
            tool_call_id=str(message.get("tool_call_id") or ""),
            thinking=str(message.get("reasoning_content") or "") if role == "assistant" else "",
        )


def dumped(value: object) -> str:
    """JSON text."""
    return json.dumps(value, ensure_ascii=False)
