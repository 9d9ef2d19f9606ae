"""Ollama's dialect: one line of JSON -> provider events, for chat and generate alike.

Exists apart from the network so that lines and characters cut anywhere are tested with plain bytes. Protects two rules:
only ``"done": true`` is an end, and a line that never ends is cut off before it fills the memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from streaming.core.events import ModelNamed, ProviderEvent, ProviderNotice, Stopped, ToolCallDelta, Usage
from streaming.core.sse import MAX_EVENT_BYTES, SseTooLarge
from streaming.providers.base import (
    ProviderError,
    ProviderProtocolError,
    ProviderRefused,
    ProviderUnavailable,
    StreamCutOff,
)
from streaming.providers.reading import Document, Reader, count, is_object, mended, objects, string


class LineReader(Reader):
    """``feed`` what comes, then ``finish``. ``calls_made``: tool calls of earlier rounds, so that ids stay unique."""

    def __init__(self, calls_made: int = 0) -> None:
        super().__init__()
        self._calls_made = calls_made
        self._buffer = bytearray()
        self._model = ""
        self._calls = 0
        self._answered = False

    def feed(self, data: bytes) -> Iterator[ProviderEvent]:
        """See ``Reader``."""
        searched = len(self._buffer)
        self._buffer += data
        start = 0
        while (end := self._buffer.find(b"\n", max(start, searched))) >= 0:
            line = bytes(self._buffer[start:end])
            start = end + 1
            yield from self._line(line)
        del self._buffer[:start]
        if len(self._buffer) > MAX_EVENT_BYTES:
            raise SseTooLarge(f"one line is larger than {MAX_EVENT_BYTES} bytes")

    def finish(self) -> Iterator[ProviderEvent]:
        """See ``Reader``."""
        self.ending = True
        line = bytes(self._buffer)
        self._buffer.clear()
        yield from self._line(line)
        yield from self.rest()
        if self.done:
            return
        if not self._answered:
            what = "something else" if self.understood or self.malformed else "nothing"
            raise ProviderProtocolError(f"the endpoint sent {what} instead of an answer")
        raise StreamCutOff("the provider's stream ended before the answer did")

    def _line(self, raw: bytes) -> Iterator[ProviderEvent]:
        if self.done or not (text := raw.decode("utf-8", "replace").strip()):
            return
        document = self.load(text)
        if isinstance(document, ProviderNotice):
            yield document
        else:
            yield from self.document(document)

    def document(self, document: Document) -> Iterator[ProviderEvent]:
        """The events of one line, or of a whole answer. Raises ``ProviderError``."""
        if error := document.get("error"):
            raise _reported(error, document.get("status_code"))
        message = document.get("message")
        self._answered = self._answered or is_object(message) or "response" in document or bool(document.get("done"))
        if (model := mended(document.get("model"))) and model != self._model:
            self._model = model
            yield ModelNamed(model)
        said: Document = message if is_object(message) else {"content": document.get("response"), **_thought(document)}
        yield from self.thinking(string(said.get("thinking")))
        yield from self.text(string(said.get("content")))
        for call in objects(said.get("tool_calls")):
            yield from self._call(call)
        if document.get("done") is True:
            self.done = True
            yield from self.rest()
            yield Usage(count(document.get("prompt_eval_count")), count(document.get("eval_count")))
            reason = mended(document.get("done_reason")) or "stop"
            yield Stopped("tool_calls" if self._calls and reason == "stop" else reason)

    def _call(self, call: Document) -> Iterator[ProviderEvent]:
        function = call.get("function")
        if not is_object(function):
            return
        given = function.get("arguments")
        arguments = mended(given) if isinstance(given, str) else json.dumps({} if given is None else given)
        # The dialect gives most calls no id, and results are found by it.
        id_ = mended(call.get("id")) or f"call_{self._calls_made + self._calls}"
        yield ToolCallDelta(self._calls, id_, mended(function.get("name")), arguments)
        self._calls += 1


def whole(document: Document, calls_made: int = 0) -> Iterator[ProviderEvent]:
    """The events of an answer that was not streamed. Raises ``ProviderError``."""
    reader = LineReader(calls_made)
    yield from reader.document(document)
    if not reader.done:
        raise ProviderProtocolError("the endpoint's answer does not say that it is done")


def _thought(document: Document) -> Document:
    return {"thinking": document["thinking"]} if "thinking" in document else {}


def _reported(error: object, status: object) -> ProviderError:
    words = mended(error.get("message") if is_object(error) else error)
    said = f"the provider reported an error: {words}" if words else "the provider reported an error"
    if isinstance(status, int) and status >= 400:
        refused = status < 500 and status not in (408, 429)
    else:
        # Most lines carry no code: what names the request is ours to change, everything else may pass.
        refused = any(word in words.lower() for word in ("not found", "does not support", "invalid", "unsupported"))
    return ProviderRefused(said) if refused else ProviderUnavailable(said)
