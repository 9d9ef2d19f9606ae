"""What readers of a client-owned stream's events are told.

Exists so that a second screen, or the client itself, learns of findings and of checks that end later. Protects the
rule that events follow what is stored: they are written after it, by the one process that stored it; where the log is
away only the notice is lost.
"""

from __future__ import annotations

from datetime import datetime

from guardrails.findings import FindingDict
from streaming.answer import block_reason
from streaming.checks import CheckedText
from streaming.core.events import (
    Blocked,
    Done,
    FindingEvent,
    MessageNew,
    MessageUpdate,
    PolicyRef,
    ServerEvent,
    StateChange,
)
from streaming.deferred import tell
from streaming.guarded.record import Record, finding_of
from streaming.log import LogUnavailable, SessionLog
from streaming.models import AuditSession, Message


async def tell_start(log: SessionLog, record: Record) -> None:
    """The first events of the session."""
    policy = PolicyRef(name=record.policy, version=record.version, digest=record.policy_digest)
    role = "user" if record.kind == "prompt" else "assistant"
    events: list[ServerEvent] = [
        StateChange(AuditSession.State.ACTIVE.value),
        MessageNew(record.message_id, record.conversation_id, role, "", "", policy),
        *_findings(record.findings),
    ]
    try:
        await log.append(record.session_id, [event.payload() for event in events], ms=0)
    except LogUnavailable:
        return


async def tell_update(log: SessionLog, record: Record, new: list[FindingDict], text: CheckedText) -> None:
    """New findings, and the block if there is one; clean text costs nothing."""
    await _tell(log, record, [*_findings(new), *_block(record, text)])


async def tell_end(
    log: SessionLog, record: Record, state: AuditSession.State, new: list[FindingDict], text: CheckedText
) -> None:
    """The last events of the answer."""
    metadata = {"status": Message.Status.COMPLETE.value, "redactions": [list(pair) for pair in record.redactions]}
    last: list[ServerEvent] = [
        MessageUpdate(record.message_id, record.visible, metadata),
        Done(record.visible, record.ended),
        StateChange(state.value, record.ended),
    ]
    await _tell(log, record, [*_findings(new), *_block(record, text), *last])


def _findings(new: list[FindingDict]) -> list[ServerEvent]:
    return [FindingEvent(finding_of(data)) for data in new]


def _block(record: Record, text: CheckedText) -> list[ServerEvent]:
    if (block := text.blocked) is None:
        return []
    withheld = record.counts[0] - record.counts[1]
    where = "prompt" if record.kind == "prompt" else "answer"
    return [Blocked(record.message_id, block_reason(block, where), block.guardrail, withheld)]


async def _tell(log: SessionLog, record: Record, events: list[ServerEvent]) -> None:
    if events:
        await tell(log, record.session_id, datetime.fromisoformat(record.started_at), 0, events)
