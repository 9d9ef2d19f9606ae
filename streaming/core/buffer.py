"""Coalescing: neighbouring releases of one channel become one event.

Exists because a reader that is behind gains nothing from five frames where one says the same, and because a provider
that is faster than the log must not cost one round trip per token. Protects order: only *neighbouring* chunks of the
same message, channel and choice are joined, so a redaction or a hold between two chunks stays between them.
"""

from __future__ import annotations

from collections.abc import Iterable

from streaming.core.events import MessageStream, ServerEvent

MAX_CHUNK = 4_096
"""Characters a joined chunk may have; longer ones would delay the first paint of a reader that catches up."""


def joinable(first: MessageStream, second: MessageStream) -> bool:
    """Whether ``second`` only continues ``first``."""
    return (
        not first.is_final
        and not second.is_final
        and first.message_id == second.message_id
        and first.channel == second.channel
        and first.choice == second.choice
        and len(first.chunk) + len(second.chunk) <= MAX_CHUNK
    )


def coalesce(events: Iterable[ServerEvent]) -> list[ServerEvent]:
    """The same events with neighbouring releases joined."""
    out: list[ServerEvent] = []
    for event in events:
        last = out[-1] if out else None
        if isinstance(event, MessageStream) and isinstance(last, MessageStream) and joinable(last, event):
            out[-1] = MessageStream(last.message_id, last.channel, last.choice, last.chunk + event.chunk)
        else:
            out.append(event)
    return out


def coalesce_stamped(events: Iterable[dict[str, object]]) -> list[dict[str, object]]:
    """The same on stamped events, for a reader that catches up: a joined event has the *last* seq and ms.

    A reader that has seen seq n has seen everything up to n, so a later resume from n misses nothing.
    """
    out: list[dict[str, object]] = []
    for event in events:
        last = out[-1] if out else None
        if last is not None and _continues(last, event):
            out[-1] = {**event, "chunk": f"{last['chunk']}{event['chunk']}"}
        else:
            out.append(event)
    return out


def _continues(first: dict[str, object], second: dict[str, object]) -> bool:
    if first["type"] != "message_stream" or second["type"] != "message_stream":
        return False
    if first["is_final"] or second["is_final"]:
        return False
    same = all(first[key] == second[key] for key in ("message_id", "channel", "choice"))
    return same and len(str(first["chunk"])) + len(str(second["chunk"])) <= MAX_CHUNK
