"""The chat-completions dialect: one data line -> provider events.

Exists apart from the network so that every oddity of the compatible servers is tested with plain strings: reasoning
under two names, usage in a chunk without choices, content as parts, errors in the middle of the stream, halves of a
surrogate pair in two chunks. Protects the rule that what is not understood is an error, never silence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from streaming.core.events import ModelNamed, ProviderEvent, ProviderNotice, Stopped, ToolCallDelta, Usage
from streaming.core.sse import SseEvent
from streaming.providers.base import ProviderProtocolError, ProviderRefused, ProviderUnavailable, StreamCutOff
from streaming.providers.reading import SseReader, objects


class ChunkReader(SseReader):
    """``feed`` what comes, then ``finish``."""

    def __init__(self) -> None:
        super().__init__()
        self._chunks = 0
        self._stopped: set[int] = set()
        self._model = ""

    def item(self, item: SseEvent) -> Iterator[ProviderEvent]:
        """The events of one SSE event. Raises ``ProviderError``."""
        if self.done:
            return
        if item.data.strip() == "[DONE]":
            self.done = True
            return
        chunk = self.load(item.data)
        if isinstance(chunk, ProviderNotice):
            yield chunk
            return
        if chunk.get("error") or item.event == "error":
            raise _in_stream(chunk.get("error") or chunk)
        if not isinstance(chunk.get("choices") or [], list):
            raise ProviderProtocolError("the endpoint's choices are not a list")
        self._chunks += "choices" in chunk
        yield from self._model_named(chunk.get("model"))
        for choice in objects(chunk.get("choices")):
            yield from self._choice(choice)
        yield from _usage(chunk.get("usage"))

    def check_end(self) -> None:
        """Raises when the stream did not say that it was done."""
        if self.done or self._stopped:
            return
        if not self._chunks:
            what = "nothing" if not self.parser.stray else "something else"
            raise ProviderProtocolError(f"the endpoint sent {what} instead of a stream of chat completions")
        raise StreamCutOff("the provider's stream ended before the answer did")

    def _model_named(self, model: object) -> Iterator[ProviderEvent]:
        if isinstance(model, str) and model and model != self._model:
            self._model = model
            yield ModelNamed(model)

    def _choice(self, choice: Mapping[str, object]) -> Iterator[ProviderEvent]:
        index = _int(choice.get("index"))
        delta = choice.get("delta")
        if isinstance(delta, dict):
            yield from self._said(delta, index)
        if reason := choice.get("finish_reason"):
            self._stopped.add(index)
            if reason == "error":
                raise ProviderUnavailable("the provider stopped the answer with an error")
            yield Stopped(str(reason), index)

    def _said(self, said: Mapping[str, object], index: int) -> Iterator[ProviderEvent]:
        yield from self.thinking(_text(said.get("reasoning_content")) or _text(said.get("reasoning")), index)
        # A refusal is what the model says instead of an answer, so it is shown (and gated) as one.
        yield from self.text(_text(said.get("content")) + _text(said.get("refusal")), index)
        yield from _tool_calls(said.get("tool_calls"), index)

    def message(self, document: Mapping[str, object]) -> Iterator[ProviderEvent]:
        """The events of a whole answer."""
        if document.get("error"):
            raise _in_stream(document["error"])
        choices = objects(document.get("choices"))
        if not choices:
            raise ProviderProtocolError("the endpoint's answer has no choices")
        yield from self._model_named(document.get("model"))
        for choice in choices:
            index, said = _int(choice.get("index")), choice.get("message")
            if isinstance(said, dict):
                yield from self._said(said, index)
        yield from self.rest()
        yield from _usage(document.get("usage"))
        for choice in choices:
            yield from self._choice({**choice, "delta": None})


def whole(document: Mapping[str, object]) -> Iterator[ProviderEvent]:
    """The events of an answer that was not streamed. Raises ``ProviderError``."""
    return ChunkReader().message(document)


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
