"""Server-Sent Events, read from bytes as they come.

Exists because the line splitters of the HTTP libraries also split at U+2028 and other separators that may stand in
JSON. Protects the reading of a provider's stream against every way of cutting it: inside a line, between CR and LF,
inside a UTF-8 sequence. A pure parser: bytes in, events out.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_EVENT_BYTES = 4 * 1024 * 1024
"""A single event larger than this is not a stream of tokens but garbage (or an attack on memory)."""


class SseTooLarge(ValueError):
    """One event or line grew beyond ``MAX_EVENT_BYTES``."""


@dataclass(frozen=True, slots=True)
class SseEvent:
    """One event: its type (empty: "message") and its data lines joined with line feeds."""

    event: str
    data: str


class SseParser:
    """``feed`` bytes, get the events that they complete. ``stray`` counts lines that are no SSE field at all."""

    __slots__ = ("_buffer", "_data", "_event", "_first", "_scanned", "_size", "stray")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._scanned = 0
        self._event = ""
        self._data: list[str] = []
        self._size = 0
        self._first = True
        self.stray = 0

    def feed(self, data: bytes) -> list[SseEvent]:
        """Events that are complete now. Raises ``SseTooLarge``."""
        self._buffer += data
        out: list[SseEvent] = []
        start = 0
        while (cut := self._line_end(max(start, self._scanned))) is not None:
            end, following = cut
            self._line(bytes(self._buffer[start:end]), out)
            start = self._scanned = following
        del self._buffer[:start]
        # A lone CR at the end is looked at again when the next byte says whether an LF belongs to it.
        self._scanned = max(0, len(self._buffer) - 1)
        if len(self._buffer) + self._size > MAX_EVENT_BYTES:
            raise SseTooLarge(f"one event is larger than {MAX_EVENT_BYTES} bytes")
        return out

    def finish(self) -> list[SseEvent]:
        """What the end of the stream completes: servers that close without the last blank line are common."""
        out: list[SseEvent] = []
        if self._buffer:
            self._line(bytes(self._buffer.rstrip(b"\r")), out)
            self._buffer.clear()
        self._dispatch(out)
        return out

    def _line_end(self, start: int) -> tuple[int, int] | None:
        lf = self._buffer.find(b"\n", start)
        # Not searched beyond the LF: with many lines in one piece that would be the whole rest, line by line.
        cr = self._buffer.find(b"\r", start, lf if lf >= 0 else len(self._buffer))
        if lf < 0 and cr < 0:
            return None
        if cr < 0:
            return lf, lf + 1
        if cr + 1 == len(self._buffer):
            return None
        return cr, cr + (2 if self._buffer[cr + 1] == 0x0A else 1)

    def _line(self, raw: bytes, out: list[SseEvent]) -> None:
        line = raw.decode("utf-8", "replace")
        if self._first:
            line = line.removeprefix("\ufeff")
            self._first = False
        if not line:
            self._dispatch(out)
            return
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
            self._size += len(value) + 1  # with the line feed that joins it: empty lines take room as well
        elif name == "event":
            self._event = value
        elif name not in ("", "id", "retry"):
            self.stray += 1

    def _dispatch(self, out: list[SseEvent]) -> None:
        if self._data:
            out.append(SseEvent(self._event, "\n".join(self._data)))
        self._event, self._data, self._size = "", [], 0
