"""What readers of a client-owned stream's events are told.

Exists so that a second screen, or the client itself, learns of findings and of checks that end later. Protects the
rule that events follow from what is stored and from nothing else: while a stream is open its events are a function of
its record, the n-th has seq n, and they are appended with the record in one step (``streaming.guarded.store``). So
they can be told again to a log that has lost them, and a reader who had them sees no difference.
"""

from __future__ import annotations

from guardrails.findings import Outcome
from streaming.core.events import (
    Blocked,
    Done,
    FindingEvent,
    Json,
    MessageNew,
    MessageUpdate,
    PolicyRef,
    ServerEvent,
    StateChange,
    Timing,
)
from streaming.guarded.record import Record, finding_of, rows_of
from streaming.models import AuditSession, Message

LAST = 4
"""So many events end an answer."""


_STATUS = {
    Outcome.BLOCKED: Message.Status.BLOCKED,
    Outcome.EXPIRED: Message.Status.INTERRUPTED,
    Outcome.ERROR: Message.Status.ERROR,
}


def message_status(outcome: Outcome) -> Message.Status:
    """What the message is called, in its row and to its readers."""
    return _STATUS.get(outcome, Message.Status.COMPLETE)


def metadata(record: Record, outcome: Outcome) -> dict[str, object]:
    """What is known of the message beside its text."""
    return {"status": message_status(outcome).value, "redactions": [list(pair) for pair in record.redactions]}


def events_after(record: Record, before: int) -> list[Json]:
    """The events of an answer up to its end, but for the first ``before``."""
    if before >= record.events:
        return []
    policy = PolicyRef(name=record.policy, version=record.version, digest=record.policy_digest)
    role = "user" if record.kind == "prompt" else "assistant"
    events: list[ServerEvent] = [
        StateChange(AuditSession.State.ACTIVE.value),
        MessageNew(record.message_id, record.conversation_id, role, "", "", policy),
        *(FindingEvent(finding_of(data)) for data in record.findings),
    ]
    if (block := record.block) is not None:
        blocked = Blocked(record.message_id, block["reason"], block["guardrail"], block["withheld"])
        events.insert(2 + block["after"], blocked)
    return [event.payload() for event in events[before:]]


def last_events(record: Record, state: AuditSession.State, outcome: str) -> list[Json]:
    """The last events of the answer."""
    last: list[ServerEvent] = [
        MessageUpdate(record.message_id, record.visible, metadata(record, Outcome(outcome))),
        Timing(record.arrivals, record.releases, record.calls, rows_of(record), record.naive or 0),
        Done(record.visible, outcome),
        StateChange(state.value, outcome),
    ]
    return [event.payload() for event in last]
