"""The dialect of the Messages API: one server-sent event -> provider events.

Exists apart from the network so that every oddity is tested with plain bytes: blocks that carry their content already
when they start, tools without parameters whose arguments never come, tools that the vendor runs itself, errors in the
middle. Protects two rules: an answer is over only with ``message_stop``, and event and block types that are not known
are passed over, because the vendor promises to add some, while anything that is an error ends the answer as one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping

from streaming.core.events import (
    ModelNamed,
    ProviderEvent,
    ProviderNotice,
    Stopped,
    ThinkingDelta,
    ToolCallDelta,
    Usage,
)
from streaming.core.sse import SseEvent
from streaming.providers import base
from streaming.providers.anthropic_results import tool_result
from streaming.providers.reading import Document, SseReader, count, is_object, mended, objects, string

REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
}
"""The vendor's stop reasons in our words; the others (``refusal``, ``pause_turn``, new ones) stay the vendor's."""

_INPUT_COUNTS = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")

_PASSING: dict[str, type[base.ProviderUnavailable]] = {
    "overloaded_error": base.ProviderUnavailable,
    "api_error": base.ProviderUnavailable,
    "timeout_error": base.ProviderUnavailable,
    "rate_limit_error": base.ProviderRateLimited,
}
"""Errors that another try may not meet; every other kind is final."""
_KIND = re.compile("[a-z_]{1,64}")
"""What is told of a kind stands before the colon, where nobody looks for an endpoint's own words; so it has none."""


class MessageReader(SseReader):
    """``feed`` what comes, then ``finish``; or ``message`` for an answer that was not streamed."""

    def __init__(self) -> None:
        super().__init__()
        self._begun = False
        self._counts: dict[str, int] = {}
        self._inputs: dict[int, object] = {}
        """Tool blocks of which no piece of arguments has come, with the input that they started with."""
        self._signatures: dict[int, str] = {}
        self._thoughts = 0

    def item(self, item: SseEvent) -> Iterator[ProviderEvent]:
        """The events of one SSE event. Raises ``ProviderError``."""
        if self.done:
            return
        document = self.load(item.data)
        if isinstance(document, ProviderNotice):
            yield document
            return
        index = count(document.get("index"), 0) or 0
        match document.get("type") or item.event:
            case "message_start" if is_object(message := document.get("message")):
                self._begun = True
                yield from self._named(message)
            case "content_block_start" if is_object(block := document.get("content_block")):
                yield from self._block(index, block)
            case "content_block_delta" if is_object(delta := document.get("delta")):
                yield from self._delta(index, delta)
            case "content_block_stop":
                yield from self._block_end(index)
            case "message_delta":
                yield from self._ending(document.get("delta"), document.get("usage"))
            case "message_stop":
                self.done = True
            case "error":
                raise in_stream(document.get("error"))

    def check_end(self) -> None:
        """Raises unless the vendor said that the message is over."""
        if self.done:
            return
        if not self._begun:
            what = "something else" if self.parser.stray or self.understood or self.malformed else "nothing"
            raise base.ProviderProtocolError(f"the endpoint sent {what} instead of a stream of a message")
        raise base.StreamCutOff("the provider's stream ended before the answer did")

    def message(self, document: Document) -> Iterator[ProviderEvent]:
        """The events of a whole message. Raises ``ProviderError``."""
        if document.get("type") == "error" or document.get("error"):
            raise in_stream(document.get("error"))
        if not isinstance(document.get("content"), list):
            raise base.ProviderProtocolError("the endpoint's answer is not a message")
        yield from self._named(document)
        for index, block in enumerate(objects(document["content"])):
            yield from self._block(index, block)
            yield from self._block_end(index)
        yield from self.rest()
        yield from self._ending(document, None)

    def _named(self, message: Document) -> Iterator[ProviderEvent]:
        if model := mended(message.get("model")):
            yield ModelNamed(model)
        yield from self._usage(message.get("usage"))

    def _block(self, index: int, block: Document) -> Iterator[ProviderEvent]:
        kind = string(block.get("type"))
        if kind == "text":
            yield from self.text(string(block.get("text")))
        elif kind == "thinking":
            self._thoughts += 1
            yield from self.thinking(string(block.get("thinking")))
            self._signatures[index] = string(block.get("signature"))
        elif kind == "redacted_thinking":
            # Nothing to show; counted because an answer that has one is not repeated by sending its signed part back.
            self._thoughts += 1
        elif kind == "tool_use" or kind.endswith("_tool_use"):
            self._inputs[index] = block.get("input")
            here = kind == "tool_use"
            yield ToolCallDelta(index, mended(block.get("id")), mended(block.get("name")), ran_by_provider=not here)
        elif kind.endswith("_tool_result"):
            yield tool_result(block)

    def _delta(self, index: int, delta: Document) -> Iterator[ProviderEvent]:
        match delta.get("type"):
            case "text_delta":
                yield from self.text(string(delta.get("text")))
            case "thinking_delta":
                yield from self.thinking(string(delta.get("thinking")))
            case "signature_delta":
                self._signatures[index] = self._signatures.get(index, "") + string(delta.get("signature"))
            case "input_json_delta" if piece := string(delta.get("partial_json")):
                self._inputs.pop(index, None)
                if arguments := self.arguments(piece, index):
                    yield ToolCallDelta(index, arguments=arguments)

    def _block_end(self, index: int) -> Iterator[ProviderEvent]:
        if index in self._inputs:
            # A tool without parameters gets no piece at all: its arguments are the (empty) input of its start.
            given = self._inputs.pop(index)
            yield ToolCallDelta(index, arguments=mended(_written(given)))
        yield from self.rest_of_call(index)

    def _ending(self, ended: object, usage: object) -> Iterator[ProviderEvent]:
        yield from self._usage(usage)
        if self._thoughts == 1 and (signature := "".join(self._signatures.values())):
            # Only a single thought can be sent back as it was: several would need a signature each.
            self._thoughts = 0
            yield ThinkingDelta("", signature=signature)
        if is_object(ended) and (reason := mended(ended.get("stop_reason"))):
            yield Stopped(REASONS.get(reason, reason))

    def _usage(self, usage: object) -> Iterator[ProviderEvent]:
        """Counts are cumulative. What is written to and read from the vendor's cache is input like any other."""
        if not is_object(usage):
            return
        for name in (*_INPUT_COUNTS, "output_tokens"):
            if (number := count(usage.get(name))) is not None:
                self._counts[name] = number
        given = [self._counts[name] for name in _INPUT_COUNTS if name in self._counts]
        details = usage.get("output_tokens_details")
        yield Usage(
            sum(given) if given else None,
            self._counts.get("output_tokens"),
            count(details.get("thinking_tokens")) if is_object(details) else None,
        )


def _written(given: object) -> str:
    return json.dumps(given if is_object(given) else {}, ensure_ascii=False)


def in_stream(error: object) -> base.ProviderError:
    """The error that the vendor reports instead of (the rest of) an answer."""
    kind, message = (mended(error.get(key)) for key in ("type", "message")) if is_object(error) else ("", "")
    if kind in ("authentication_error", "permission_error"):
        return base.ProviderAuthError("the provider reported that the API key is missing or not accepted")
    said = f"the provider reported an error ({kind})" if _KIND.fullmatch(kind) else "the provider reported an error"
    return _PASSING.get(kind, base.ProviderRefused)(f"{said}: {message}" if message else said)


def whole(document: Mapping[str, object]) -> Iterator[ProviderEvent]:
    """The events of an answer that was not streamed. Raises ``ProviderError``."""
    return MessageReader().message(dict(document))
