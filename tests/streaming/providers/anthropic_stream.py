"""Streams of the Messages dialect, written event by event, and what a reader of them said."""

from __future__ import annotations

import json
from collections.abc import Iterable

from streaming.core.events import (
    ProviderEvent,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
)
from streaming.providers.anthropic_events import MessageReader

Event = dict[str, object]


def sse(*events: Event) -> bytes:
    return b"".join(
        b"event: %s\ndata: %s\n\n" % (str(e["type"]).encode(), json.dumps(e, ensure_ascii=False).encode())
        for e in events
    )


def start(**usage: object) -> Event:
    given_ = {"input_tokens": 10, "output_tokens": 1, **usage}
    return {"type": "message_start", "message": {"model": "claude-x", "content": [], "usage": given_}}


def opens(index: int, **block: object) -> Event:
    return {"type": "content_block_start", "index": index, "content_block": block}


def delta(index: int, **delta: object) -> Event:
    return {"type": "content_block_delta", "index": index, "delta": delta}


def closes(index: int) -> Event:
    return {"type": "content_block_stop", "index": index}


def ends(reason: str = "end_turn", **usage: object) -> tuple[Event, Event]:
    last: Event = {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": {"output_tokens": 7, **usage}}
    return last, {"type": "message_stop"}


def text(words: str, index: int = 0) -> tuple[Event, Event, Event]:
    return opens(index, type="text", text=""), delta(index, type="text_delta", text=words), closes(index)


def read(data: bytes, size: int = 0) -> list[ProviderEvent]:
    reader, step = MessageReader(), size or len(data) or 1
    events = [event for at in range(0, len(data), step) for event in reader.feed(data[at : at + step])]
    return [*events, *reader.finish()]


def said(events: Iterable[ProviderEvent]) -> str:
    return "".join(e.text for e in events if isinstance(e, TextDelta))


def thought(events: Iterable[ProviderEvent]) -> str:
    return "".join(e.text for e in events if isinstance(e, ThinkingDelta))


def calls(events: Iterable[ProviderEvent]) -> dict[int, tuple[str, str, str, bool]]:
    """Id, name, arguments and who runs it, by index."""
    out: dict[int, tuple[str, str, str, bool]] = {}
    for e in events:
        if isinstance(e, ToolCallDelta):
            id_, name, arguments, away = out.get(e.index, ("", "", "", False))
            out[e.index] = (id_ or e.id, name or e.name, arguments + e.arguments, away or e.ran_by_provider)
    return out
