"""Event -> bytes: JSON text for sockets, frames for Server-Sent Events.

Exists so that every transport writes the same event the same way. Protects the contract that an SSE frame's
``event:`` is the type and its ``id:`` the seq, and that no text of a model can break out of its frame (JSON escapes
line ends, so ``data:`` is always one line).
"""

from __future__ import annotations

import json
from collections.abc import Mapping

HEARTBEAT = b": keep-alive\n\n"
"""Sent on SSE every 15 s, so that proxies keep the connection and a dead peer shows."""

_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
"""Kept: ``json.dumps`` makes one for each text."""


def to_json(event: Mapping[str, object]) -> str:
    """Compact JSON text of a stamped event. Raises ``TypeError`` for what JSON cannot carry."""
    return _ENCODER.encode(event)


def from_json(text: str | bytes) -> dict[str, object]:
    """The event that ``to_json`` wrote. Raises ``ValueError`` when it is not a JSON object."""
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("an event is a JSON object")
    return value


def to_sse(event: Mapping[str, object]) -> bytes:
    """One SSE frame of a stamped event, UTF-8. Seq 0 stands in no log and must not become a reader's place: no id."""
    place = f"id: {event['seq']}\n" if event["seq"] else ""
    return f"event: {event['type']}\n{place}data: {to_json(event)}\n\n".encode()
