"""The chat-completions dialect: one data line -> provider events.

Exists apart from the network so that every oddity of the compatible servers is tested with plain strings: reasoning
under two names, usage in a chunk without choices, content as parts, errors in the middle of the stream, halves of a
surrogate pair in two chunks, several tool calls under one index. Protects the rule that what is not understood is an
error, never silence.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from streaming.core.events import ModelNamed, ProviderEvent, ProviderNotice, Stopped, ToolCallDelta, Usage
from streaming.core.sse import SseEvent
from streaming.providers.base import (
    ProviderAuthError,
    ProviderError,
    ProviderProtocolError,
    ProviderRateLimited,
    ProviderRefused,
    ProviderUnavailable,
    StreamCutOff,
)
from streaming.providers.reading import (
    MAX_CALLS,
    MAX_CHOICES,
    Document,
    SseReader,
    count,
    is_object,
    mended,
    objects,
    string,
)

_PASSING = {"server_error", "overloaded_error", "api_error", "timeout", "service_unavailable"}
"""Kinds of error that another try may not meet; every other kind is final."""


class ChunkReader(SseReader):
    """``feed`` what comes, then ``finish``."""

    def __init__(self) -> None:
        super().__init__()
        self._chunks = 0
        self._seen: set[int] = set()
        self._stopped: set[int] = set()
        self._model = ""
        self._calls: dict[tuple[int, int], tuple[int, str]] = {}
        """(choice, index as sent) -> the call that is written there: its index as we tell it, and its id."""
        self._by_id: dict[tuple[int, int, str], int] = {}
        """(choice, index as sent, id) -> the index as we tell it, for calls that share one."""
        self._taken: dict[int, set[int]] = {}
        """choice -> every index that we have told."""

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
        """Raises when the stream did not say that it was done: by its terminator, or choice by choice."""
        if self.done or (self._seen and self._seen <= self._stopped):
            return
        if not self._chunks:
            what = "something else" if self.parser.stray or self.understood or self.malformed else "nothing"
            raise ProviderProtocolError(f"the endpoint sent {what} instead of a stream of chat completions")
        raise StreamCutOff("the provider's stream ended before the answer did")

    def _model_named(self, model: object) -> Iterator[ProviderEvent]:
        if (name := mended(model)) and name != self._model:
            self._model = name
            yield ModelNamed(name)

    def _choice(self, choice: Mapping[str, object]) -> Iterator[ProviderEvent]:
        index = _index(choice)
        self._seen.add(index)
        delta = choice.get("delta")
        if isinstance(delta, dict):
            yield from self._said(delta, index)
        if reason := choice.get("finish_reason"):
            self._stopped.add(index)
            if reason == "error":
                raise ProviderUnavailable("the provider stopped the answer with an error")
            yield Stopped(mended(reason) or "stop", index)

    def _said(self, said: Mapping[str, object], index: int, *, whole: bool = False) -> Iterator[ProviderEvent]:
        yield from self.thinking(_text(said.get("reasoning_content")) or _text(said.get("reasoning")), index)
        # A refusal is what the model says instead of an answer, so it is shown (and gated) as one.
        yield from self.text(_text(said.get("content")) + _text(said.get("refusal")), index)
        yield from self._tool_calls(said.get("tool_calls"), index, whole=whole)

    def _tool_calls(self, calls: object, choice: int, *, whole: bool) -> Iterator[ProviderEvent]:
        for position, call in enumerate(objects(calls)):
            function = call.get("function")
            function = function if is_object(function) else {}
            id_, arguments = mended(call.get("id")), function.get("arguments")
            # Of a whole answer the list says which is which; some servers give all of them one index there, and no id.
            sent = position if whole else _int(call.get("index"), position)
            index = self._call_index(choice, sent, id_)
            yield ToolCallDelta(
                index=index,
                id=id_,
                name=mended(function.get("name")),
                # Some servers send the object itself instead of its text.
                arguments=json.dumps(arguments)
                if is_object(arguments)
                else self.arguments(string(arguments), index, choice),
                choice=choice,
            )

    def _call_index(self, choice: int, sent: int, id_: str) -> int:
        """The call's index; another id under an index that is taken is another call, which some servers send."""
        index, known = self._calls.get((choice, sent), (-1, ""))
        if index < 0 or (id_ and known and id_ != known):
            index = self._by_id.get((choice, sent, id_), -1)
            known = ""
        if index < 0:
            if sum(map(len, self._taken.values())) >= MAX_CALLS:
                raise ProviderProtocolError(f"the endpoint began more than {MAX_CALLS:,} tool calls")
            taken = self._taken.setdefault(choice, set())
            index = sent if sent not in taken else max(taken) + 1
            taken.add(index)
        id_ = id_ or known
        self._calls[choice, sent] = (index, id_)
        if id_:
            self._by_id[choice, sent, id_] = index
        return index

    def message(self, document: Mapping[str, object]) -> Iterator[ProviderEvent]:
        """The events of a whole answer."""
        if document.get("error"):
            raise _in_stream(document["error"])
        choices = objects(document.get("choices"))
        if not choices:
            raise ProviderProtocolError("the endpoint's answer has no choices")
        numbered = [(_index(choice), choice) for choice in choices]  # all are looked at before one is told
        yield from self._model_named(document.get("model"))
        for index, choice in numbered:
            if isinstance(said := choice.get("message"), dict):
                yield from self._said(said, index, whole=True)
        yield from self.rest()
        yield from _usage(document.get("usage"))
        for choice in choices:
            yield from self._choice({**choice, "delta": None})


def whole(document: Mapping[str, object]) -> Iterator[ProviderEvent]:
    """The events of an answer that was not streamed. Raises ``ProviderError``."""
    return ChunkReader().message(document)


def _index(choice: Mapping[str, object]) -> int:
    index = _int(choice.get("index"))
    if index >= MAX_CHOICES:
        raise ProviderProtocolError(f"the endpoint sent more than {MAX_CHOICES:,} choices")
    return index


def _usage(usage: object) -> Iterator[ProviderEvent]:
    if not is_object(usage):
        return
    details = usage.get("completion_tokens_details")
    yield Usage(
        count(usage.get("prompt_tokens")),
        count(usage.get("completion_tokens")),
        count(details.get("reasoning_tokens")) if is_object(details) else None,
    )


def _in_stream(error: object) -> ProviderError:
    """The error that is reported instead of (the rest of) an answer."""
    about: Document = error if is_object(error) else {"message": error}
    said = "the provider reported an error"
    words = {str(about.get(name)) for name in ("code", "type", "status_code")}
    if words & {"401", "403", "invalid_api_key", "authentication_error"}:
        return ProviderAuthError(f"{said}: the API key is missing or not accepted")
    if message := mended(about.get("message")):
        said += f": {message}"
    if words & {"429", "rate_limit_exceeded", "rate_limit_error"}:
        return ProviderRateLimited(said)
    if words & _PASSING or any(len(word) == 3 and word.isdecimal() and word >= "500" for word in words):
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
    found = count(value)
    return default if found is None else found
