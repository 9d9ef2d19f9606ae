"""The chat-completions dialect: one data line -> provider events.

Exists apart from the network so that every oddity of the compatible servers is tested with plain strings: reasoning
under two names, usage in a chunk without choices, content as parts, errors in the middle of the stream, halves of a
surrogate pair in two chunks. Protects the rule that what is not understood is an error, never silence.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from streaming.core.events import ModelNamed, ProviderEvent, Stopped, TextDelta, ThinkingDelta, ToolCallDelta, Usage
from streaming.core.sse import SseEvent
from streaming.core.text import Mender
from streaming.providers.base import ProviderProtocolError, ProviderRefused, ProviderUnavailable, StreamCutOff


class ChunkReader:
    """``read`` one SSE event after the other, then ``finish``. ``done``: the dialect's terminator was seen."""

    def __init__(self) -> None:
        self.done = False
        self._chunks = 0
        self._stopped: set[int] = set()
        self._model = ""
        self._menders: dict[tuple[str, int], Mender] = {}

    def read(self, item: SseEvent) -> Iterator[ProviderEvent]:
        """The events of one SSE event. Raises ``ProviderProtocolError``, ``ProviderRefused``."""
        if self.done:
            return
        if item.data.strip() == "[DONE]":
            self.done = True
            return
        try:
            chunk = json.loads(item.data)
        except (ValueError, RecursionError):
            raise ProviderProtocolError("the endpoint sent an event that is not JSON") from None
        if not isinstance(chunk, dict):
            raise ProviderProtocolError("the endpoint sent an event that is not a JSON object")
        if chunk.get("error") or item.event == "error":
            raise _in_stream(chunk.get("error") or chunk)
        if not isinstance(chunk.get("choices", []), list):
            raise ProviderProtocolError("the endpoint's choices are not a list")
        self._chunks += "choices" in chunk
        yield from self._model_named(chunk.get("model"))
        for choice in chunk.get("choices") or []:
            if isinstance(choice, dict):
                yield from self._choice(choice)
        yield from _usage(chunk.get("usage"))

    def finish(self, stray: int = 0) -> Iterator[ProviderEvent]:
        """What was held back. Raises when the stream did not say that it was done.

        ``stray``: lines that were no SSE at all, as the parser counted them.
        """
        for (channel, choice), mender in self._menders.items():
            if rest := mender.finish():
                yield TextDelta(rest, choice) if channel == "text" else ThinkingDelta(rest, choice)
        if self.done or self._stopped:
            return
        if not self._chunks:
            what = "nothing" if not stray else "something else"
            raise ProviderProtocolError(f"the endpoint sent {what} instead of a stream of chat completions")
        raise StreamCutOff("the provider's stream ended before the answer did")

    def _mend(self, channel: str, choice: int, text: str) -> str:
        return self._menders.setdefault((channel, choice), Mender()).feed(text)

    def _model_named(self, model: object) -> Iterator[ProviderEvent]:
        if isinstance(model, str) and model and model != self._model:
            self._model = model
            yield ModelNamed(model)

    def _choice(self, choice: Mapping[str, object]) -> Iterator[ProviderEvent]:
        index = _int(choice.get("index"))
        delta = choice.get("delta")
        if isinstance(delta, dict):
            thinking = _text(delta.get("reasoning_content")) or _text(delta.get("reasoning"))
            if thinking and (thinking := self._mend("thinking", index, thinking)):
                yield ThinkingDelta(thinking, index)
            # A refusal is what the model says instead of an answer, so it is shown (and gated) as one.
            text = _text(delta.get("content")) + _text(delta.get("refusal"))
            if text and (text := self._mend("text", index, text)):
                yield TextDelta(text, index)
            yield from _tool_calls(delta.get("tool_calls"), index)
        if reason := choice.get("finish_reason"):
            self._stopped.add(index)
            if reason == "error":
                raise ProviderUnavailable("the provider stopped the answer with an error")
            yield Stopped(str(reason), index)


def _tool_calls(calls: object, choice: int) -> Iterator[ProviderEvent]:
    for position, call in enumerate(calls if isinstance(calls, list) else []):
        if not isinstance(call, dict):
            continue
        function = call.get("function")
        function = function if isinstance(function, dict) else {}
        yield ToolCallDelta(
            index=_int(call.get("index"), position),
            id=_text(call.get("id")),
            name=_text(function.get("name")),
            arguments=_text(function.get("arguments")),
            choice=choice,
        )


def _usage(usage: object) -> Iterator[ProviderEvent]:
    if not isinstance(usage, dict):
        return
    details = usage.get("completion_tokens_details")
    reasoning = details.get("reasoning_tokens") if isinstance(details, dict) else None
    counts = [usage.get("prompt_tokens"), usage.get("completion_tokens"), reasoning]
    given, produced, thought = (n if isinstance(n, int) and n >= 0 else None for n in counts)
    yield Usage(given, produced, thought)


def _in_stream(error: object) -> ProviderRefused | ProviderUnavailable:
    message = error.get("message") if isinstance(error, dict) else error
    status = error.get("status_code", error.get("code")) if isinstance(error, dict) else None
    kind = error.get("type") if isinstance(error, dict) else None
    said = f"the provider reported an error: {str(message)[:300]}" if message else "the provider reported an error"
    if (isinstance(status, int) and (status >= 500 or status == 429)) or kind in ("server_error", "overloaded_error"):
        return ProviderUnavailable(said)
    return ProviderRefused(said)


def _text(value: object) -> str:
    """A string as it is; a list of content parts as their texts; anything else as nothing."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(part["text"] for part in value if isinstance(part, dict) and isinstance(part.get("text"), str))
    return ""


def _int(value: object, default: int = 0) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else default
