"""What the readers of all dialects share: bytes in, provider events out, whatever the network did to them.

Exists apart from the network so that every oddity is tested with plain bytes. Protects three rules: events that came
before an error stand (a reader yields them before it raises); a line that is not understood is never silent (it is
counted and told; too many of them end the answer, and so does a single one that holds a tool call, or comes while one
is being written, because a call with a piece missing may still be a valid one); and halves of a surrogate pair in two
chunks become one character. Pure.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TypeGuard

from streaming.core.events import ProviderEvent, ProviderNotice, Stopped, TextDelta, ThinkingDelta, ToolCallDelta
from streaming.core.sse import SseEvent, SseParser
from streaming.core.text import Mender, mend
from streaming.providers.base import ProviderProtocolError

Document = dict[str, object]

MAX_MALFORMED = 5
"""Lines of an answer that may be skipped because they are not JSON; one more is not an accident any longer."""
MAX_COUNT = 2**31 - 1
"""Above that a number counts nothing; not every store and client takes it."""
MAX_CHOICES = 128
"""The most that may be asked for; each costs a gate."""
MAX_CALLS = 1_000
"""Many more than are made, so that an endpoint which begins calls for ever is not listened to for ever."""
_CALL = re.compile(r'"tool_calls"\s*:\s*\[\s*\{|"function_call"\s*:\s*\{|"(?:\w+_)?tool_use"|"input_json_delta"')
"""What a line says that holds (a piece of) a call, in all dialects. In a text that speaks of it quotes are escaped."""


class Reader(ABC):
    """``feed`` bytes as they come, then ``finish``. ``done``: the dialect's terminator was seen."""

    def __init__(self) -> None:
        self.done = False
        self.understood = 0
        self.malformed = 0
        self.calling = False
        """Arguments of a tool call are coming in pieces; nothing may be missing among them."""
        self.ending = False
        """Nothing more comes: a last line that is not whole is a stream cut off, whatever was being written."""
        self._menders: dict[tuple[str, int], Mender] = {}
        self._of_calls: dict[tuple[int, int], Mender] = {}
        """For the arguments of calls, by choice and index."""

    @abstractmethod
    def feed(self, data: bytes) -> Iterator[ProviderEvent]:
        """Events that the bytes complete. Raises ``ProviderError``, ``SseTooLarge``."""

    @abstractmethod
    def finish(self) -> Iterator[ProviderEvent]:
        """What the end completes. Raises ``StreamCutOff`` where the terminator is missing, or ``ProviderError``."""

    def load(self, text: str) -> Document | ProviderNotice:
        """The JSON object of a line, or the notice that it was skipped. Raises ``ProviderProtocolError``."""
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, dict):
            self.understood += 1
            return found
        self.malformed += 1
        if not self.ending and (self.calling or _CALL.search(text)):
            raise ProviderProtocolError("the endpoint sent a line that is not a JSON object within a tool call")
        if self.malformed > MAX_MALFORMED:
            raise ProviderProtocolError(f"the endpoint sent {self.malformed} lines that are not JSON objects")
        said = (
            "The provider sent a line that is not JSON; it was skipped, so a few words or a tool call may be missing."
        )
        return ProviderNotice("malformed_line", said, attempt=self.malformed)

    def text(self, text: str, choice: int = 0) -> Iterator[ProviderEvent]:
        """Answer text, mended."""
        if text and (text := self._menders.setdefault(("text", choice), Mender()).feed(text)):
            yield TextDelta(text, choice)

    def thinking(self, text: str, choice: int = 0) -> Iterator[ProviderEvent]:
        """Reasoning text, mended."""
        if text and (text := self._menders.setdefault(("thinking", choice), Mender()).feed(text)):
            yield ThinkingDelta(text, choice)

    def arguments(self, text: str, index: int, choice: int = 0) -> str:
        """A piece of a call's arguments, mended together with the pieces before it."""
        return self._of_calls.setdefault((choice, index), Mender()).feed(text)

    def rest(self) -> Iterator[ProviderEvent]:
        """What was held back for a second half that never came."""
        for (channel, choice), mender in self._menders.items():
            if rest := mender.finish():
                yield TextDelta(rest, choice) if channel == "text" else ThinkingDelta(rest, choice)
        for choice, index in tuple(self._of_calls):
            yield from self.rest_of_call(index, choice)

    def rest_of_call(self, index: int, choice: int = 0) -> Iterator[ProviderEvent]:
        """The same for the arguments of a call that are complete."""
        mender = self._of_calls.pop((choice, index), None)
        if mender is not None and (rest := mender.finish()):
            yield ToolCallDelta(index, arguments=rest, choice=choice)


class SseReader(Reader):
    """A dialect over Server-Sent Events."""

    def __init__(self) -> None:
        super().__init__()
        self.parser = SseParser()

    def feed(self, data: bytes) -> Iterator[ProviderEvent]:
        """See ``Reader``."""
        for item in self.parser.feed(data):
            for event in self.item(item):
                if isinstance(event, ToolCallDelta):
                    self.calling = not event.ran_by_provider
                elif isinstance(event, Stopped):
                    self.calling = False
                yield event

    def finish(self) -> Iterator[ProviderEvent]:
        """See ``Reader``."""
        self.ending = True
        for item in self.parser.finish():
            yield from self.item(item)
        yield from self.rest()
        self.check_end()
        if stray := self.parser.stray:
            said = f"The provider sent {stray} lines that belong to no event; they were skipped."
            yield ProviderNotice("malformed_line", said, attempt=self.malformed + stray)

    @abstractmethod
    def item(self, item: SseEvent) -> Iterator[ProviderEvent]:
        """The events of one SSE event; nothing once ``done``."""

    @abstractmethod
    def check_end(self) -> None:
        """Raise where the stream may not end here."""


def is_object(value: object) -> TypeGuard[Document]:
    """A JSON object."""
    return isinstance(value, dict)


def objects(value: object) -> list[Document]:
    """The JSON objects of a list; nothing of anything else."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def string(value: object) -> str:
    """A string as it is, anything else as nothing."""
    return value if isinstance(value, str) else ""


def mended(value: object) -> str:
    """A string that can be stored and sent, made of a whole one (not of a delta); anything else is nothing."""
    return mend(string(value))


def count(value: object, default: int | None = None) -> int | None:
    """A whole number from 0 to ``MAX_COUNT``, anything else as ``default``."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT else default
