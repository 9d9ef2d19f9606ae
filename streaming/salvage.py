"""What a pump that died had told, out of the session's log.

Exists because text and findings are written through every few seconds only, and a process that is killed writes
nothing more. Protects the rule that the record says what readers have seen: no text that was shown and no finding that
was told is lost with the process. Without a log, or with one whose beginning is gone, the text stays what had been
written through.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import structlog

from guardrails.findings import Finding, FindingDict
from streaming.guarded.record import finding_of
from streaming.log import LogUnavailable, SessionLog

logger = structlog.get_logger(__name__)

AT_ONCE = 500


@dataclass(slots=True)
class Salvaged:
    """``content``: the visible text, None when the log cannot tell all of it. ``released``: characters shown.

    ``redactions``: visible offset and placeholder. ``several``: the answer has choices beside the first.
    ``last_seq``: of the last event in the log.
    """

    content: str | None = ""
    released: int = 0
    redactions: list[tuple[int, str]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    several: bool = False
    last_seq: int = 0


async def salvage(log: SessionLog, session_id: str, message_id: str) -> Salvaged | None:
    """What the log says of a session whose answer is ``message_id``; None when there is no log to ask."""
    found = Salvaged()
    try:
        while events := await log.read(session_id, found.last_seq, AT_ONCE):
            for event in events:
                seq = int(str(event["seq"]))
                if seq != found.last_seq + 1:
                    found.content = None
                found.last_seq = seq
                _take(found, event, message_id)
    except LogUnavailable:
        return None
    return found if found.last_seq else None


def _take(found: Salvaged, event: Mapping[str, object], message_id: str) -> None:
    if event["type"] == "finding":
        found.findings += _finding(event)
    if event.get("message_id") != message_id or event.get("channel") != "text":
        return
    match event:
        case {"type": "message_stream", "choice": 0, "chunk": str(chunk)}:
            found.released += len(chunk)
            _show(found, chunk)
        case {"type": "message_stream"}:
            found.several = True
        case {"type": "redaction", "at": int(at), "label": str(label)}:
            found.redactions.append((at, label))
            if found.several or (found.content is not None and at != len(found.content)):
                found.content = None  # it may stand in another choice
            _show(found, label)


def _show(found: Salvaged, text: str) -> None:
    if found.content is not None:
        found.content += text


def _finding(event: Mapping[str, object]) -> list[Finding]:
    """A finding as it was told. One that another release wrote in another form is not worth the whole repair."""
    try:
        return [finding_of(cast("FindingDict", {name: event[name] for name in FindingDict.__annotations__}))]
    except (KeyError, ValueError, TypeError):
        logger.warning("finding_not_salvaged", session=event.get("session_id"), seq=event.get("seq"))
        return []
