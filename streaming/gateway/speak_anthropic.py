"""Messages, spoken and understood: what a client of this dialect asks of a provider that speaks another one."""

from __future__ import annotations

import json
from collections.abc import Iterator

from streaming.core.events import ProviderEvent, TextDelta, ThinkingDelta, ToolCallDelta
from streaming.gateway.prompt import BadRequest
from streaming.gateway.speak import (
    FREE,
    Choice,
    Gathered,
    Speaker,
    all_objects,
    at_least_one,
    refuse_unknown,
    sampling_of,
    text_alone,
)
from streaming.gateway.speak_openai import dumped
from streaming.gateway.walker import Json, objects
from streaming.providers.base import ChatMessage, Provider, ProviderRequest, ToolCallMade, ToolSpec
from streaming.providers.sampling import WORDS

KNOWN = frozenset({"model", "messages", "stream", "system", "tools", "tool_choice", "max_tokens", "thinking",
                   *WORDS["anthropic"].values()})  # fmt: skip
IGNORED = frozenset({"metadata", "service_tier"})
MESSAGE = frozenset({"role", "content"})
BLOCKS = {
    "text": frozenset({"type", "text"}), "thinking": frozenset({"type", "thinking", "signature"}),
    "tool_use": frozenset({"type", "id", "name", "input"}),
    "tool_result": frozenset({"type", "tool_use_id", "content", "is_error"}),
}  # fmt: skip
"""The blocks that another dialect has words for, and what they have."""
TOOL = frozenset({"type", "name", "description", "input_schema"})
_REASONS = {
    "stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal", "": "end_turn",
    "load": "end_turn", "unload": "end_turn",
}  # fmt: skip


class AnthropicSpeaker(Speaker):
    """Events of a message."""

    def __init__(self, model: str, id_: str, created: int) -> None:
        super().__init__(model, f"msg_{id_}", created)
        self._begun = False
        self._index = -1
        self._kind: tuple[str, int] | None = None
        self._signed = False

    def _message(self, gathered: Gathered | None = None) -> Json:
        return {
            "id": self.id, "type": "message", "role": "assistant", "model": self.model, "content": [],
            "stop_reason": None, "stop_sequence": None, "usage": _usage(gathered),
        }  # fmt: skip

    def _begin(self) -> Iterator[Json]:
        if not self._begun:
            self._begun = True
            yield {"type": "message_start", "message": self._message()}

    def _block(self, kind: tuple[str, int], block: Json) -> Iterator[Json]:
        """A block of this kind is open now."""
        yield from self._begin()
        if self._kind == kind:
            return
        yield from self._close()
        self._kind, self._index = kind, self._index + 1
        yield {"type": "content_block_start", "index": self._index, "content_block": block}

    def _close(self) -> Iterator[Json]:
        if self._kind is not None:
            yield {"type": "content_block_stop", "index": self._index}
            self._kind = None

    def _delta(self, delta: Json) -> Json:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}

    def chunks(self, event: ProviderEvent) -> Iterator[Json]:
        """The events of the dialect; of several choices the first."""
        match event:
            case TextDelta(text, 0):
                yield from self._block(("text", 0), {"type": "text", "text": ""})
                yield self._delta({"type": "text_delta", "text": text})
            case ThinkingDelta(text, 0, signature):
                yield from self._block(("thinking", 0), {"type": "thinking", "thinking": "", "signature": ""})
                if text:
                    yield self._delta({"type": "thinking_delta", "thinking": text})
                if signature:
                    yield self._delta({"type": "signature_delta", "signature": signature})
            case ToolCallDelta() if not event.ran_by_provider and event.choice == 0:
                block: Json = {
                    "type": "tool_use", "id": event.id or f"toolu_{event.index}", "name": event.name, "input": {},
                }  # fmt: skip
                yield from self._block(("tool_use", event.index), block)
                if event.arguments:
                    yield self._delta({"type": "input_json_delta", "partial_json": event.arguments})

    def end(self, gathered: Gathered) -> Iterator[Json]:
        """The reason, and how many tokens."""
        yield from self._begin()
        yield from self._close()
        choice = gathered.choices.get(0, Choice())
        usage = _usage(gathered)
        yield {
            "type": "message_delta",
            "delta": {"stop_reason": _reason(choice), "stop_sequence": None},
            "usage": usage,
        }
        yield {"type": "message_stop"}

    def whole(self, gathered: Gathered) -> Json:
        """A message."""
        choice = gathered.choices.get(0, Choice())
        content: list[Json] = []
        if choice.thinking:
            content.append({"type": "thinking", "thinking": choice.thinking, "signature": choice.signature})
        if choice.text:
            content.append({"type": "text", "text": choice.text})
        content += [
            {"type": "tool_use", "id": c.id or f"toolu_{n}", "name": c.name, "input": as_object(c.arguments)}
            for n, c in sorted(choice.calls.items())
        ]
        self.model = gathered.model or self.model
        return self._message(gathered) | {"content": content, "stop_reason": _reason(choice)}


def _reason(choice: Choice) -> str:
    if choice.calls and choice.reason in ("stop", ""):
        return "tool_use"
    return _REASONS.get(choice.reason, choice.reason)


def _usage(gathered: Gathered | None) -> Json:
    usage = gathered.usage if gathered is not None else {}
    return {"input_tokens": usage.get("input_tokens", 0), "output_tokens": usage.get("output_tokens", 0)}


def as_object(arguments: str) -> Json:
    """Arguments as the object that a dialect wants; what a model got wrong is told as it was."""
    try:
        found = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {"not_an_object": arguments}


def understood(body: Json, provider: Provider, model: str) -> ProviderRequest:
    """The request for a provider that speaks another dialect. Raises ``BadRequest``."""
    refuse_unknown(body, KNOWN, IGNORED, provider)
    choice, thinking = body.get("tool_choice"), body.get("thinking")
    if choice is not None and not (isinstance(choice, dict) and choice.get("type") == "auto"):
        raise BadRequest(f"“tool_choice” cannot be passed on to “{provider.name}”.", "tool_choice", "unsupported")
    if choice is not None:  # how many calls there may be at once, for one
        refuse_unknown(choice, frozenset({"type"}), FREE, provider, "tool_choice.")
    if thinking is not None and not (isinstance(thinking, dict) and thinking.get("type") == "disabled"):
        raise BadRequest(f"“thinking” cannot be passed on to “{provider.name}”.", "thinking", "unsupported")
    messages: list[ChatMessage] = []
    if system := text_alone(body.get("system"), "system", provider):
        messages.append(ChatMessage("system", system))
    for number, message in enumerate(objects(body.get("messages"))):
        messages += _message(message, f"messages[{number}]", provider)
    return ProviderRequest(
        messages=tuple(messages),
        model=model,
        tools=tuple(_tools(body, provider)),
        max_tokens=at_least_one(body.get("max_tokens"), "max_tokens"),
        sampling=sampling_of(body, provider, "anthropic"),
    )


def _message(message: Json, where: str, provider: Provider) -> Iterator[ChatMessage]:
    role, content = str(message.get("role")), message.get("content")
    if role not in ("user", "assistant"):
        raise BadRequest(f"“{where}.role” is “user” or “assistant”.", f"{where}.role")
    refuse_unknown(message, MESSAGE, FREE, provider, f"{where}.")
    if not isinstance(content, list):
        yield ChatMessage(role, text_alone(content, f"{where}.content", provider))
        return
    texts: list[str] = []
    calls: list[ToolCallMade] = []
    thinking = signature = ""
    for number, block in enumerate(all_objects(content, f"{where}.content")):
        at = f"{where}.content[{number}]"
        if (known := BLOCKS.get(str(block.get("type")))) is not None:
            refuse_unknown(block, known, FREE, provider, f"{at}.")
        match block.get("type"):
            case "text":
                texts.append(text_alone([block], at, provider))
            case "thinking" if role == "assistant":
                thinking, signature = str(block.get("thinking", "")), str(block.get("signature", ""))
            case "tool_use" if role == "assistant":
                calls.append(ToolCallMade(str(block.get("id")), str(block.get("name")), dumped(block.get("input"))))
            case "tool_result" if role == "user":
                said = text_alone(block.get("content"), f"{at}.content", provider)
                failed = block.get("is_error") is True
                yield ChatMessage("tool", said, tool_call_id=str(block.get("tool_use_id")), failed=failed)
            case _:
                raise BadRequest(f"“{at}” cannot be passed on to “{provider.name}”.", at, "unsupported")
    if texts or calls or role == "assistant":
        text = "\n\n".join(texts)
        yield ChatMessage(role, text, tool_calls=tuple(calls), thinking=thinking, signature=signature)


def _tools(body: Json, provider: Provider) -> Iterator[ToolSpec]:
    for number, tool in enumerate(all_objects(body.get("tools"), "tools")):
        schema = tool.get("input_schema")
        if tool.get("type") not in (None, "custom") or not isinstance(schema, dict):
            said = f"“tools[{number}]” is a tool of the vendor's own, which “{provider.name}” does not have."
            raise BadRequest(said, f"tools[{number}]", "unsupported")
        refuse_unknown(tool, TOOL, FREE, provider, f"tools[{number}].")
        yield ToolSpec(str(tool.get("name", "")), str(tool.get("description") or ""), schema)
