"""What a status says of a stream: where it stands, what it has cost, and how each guardrail of its policy does.

Exists so that a client that was away, or whoever looks after it, learns in one call what its answers would have told
it. Protects the rule that an open stream is told by its record and one that is over by the audit record, in the same
fields; a guardrail that was never asked is there as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import (
    Literal,
    NotRequired,  # pydantic reads it, and before Python 3.12 only this one
    cast,
)

from typing_extensions import TypedDict

from guardrails.findings import Action, AppliesTo, Mode
from guardrails.performance import Checkpoint
from guardrails.policy import Guardrail, Policy
from guardrails.selectors import PolicyUnavailable, policy_by_digest
from streaming.core.events import StatusState
from streaming.guarded.record import Record
from streaming.guarded.rows import Count, summary
from streaming.models import AuditSession, DeferredCheck, GuardedStream, Message
from streaming.standing import line_of
from streaming.totals import AllTotals, Totals, nothing
from streaming.verdicts import book


class Counts(TypedDict):
    """Characters, and what it has cost: those of a stream that never got further are not there."""

    chars_in: Count
    released: Count
    withheld: Count
    exposed: Count
    calls: NotRequired[Count]
    chunks: NotRequired[Count]
    checks: NotRequired[Count]


class DeferredAbout(TypedDict):
    """A check that a worker makes."""

    guardrail: str
    applies_to: Literal["prompt", "response", "thinking", "tool_arguments", "tool_result", "document"]
    state: Literal["waiting", "checking", "passed", "hit", "would_block", "error", "timeout", "expired"]


class GuardrailAbout(TypedDict):
    """One guardrail in one stream. ``state`` as in the event ``guardrail_status``; times are milliseconds.
    ``checkpoint`` and ``mode`` are empty where the policy cannot be loaded any more.

    ``ms``: all its checks together. ``last_ms``, ``p95_ms``: None while nothing was measured, as of rules that run over
    the text in one pass with all others. ``p95_ms`` is over what the answering process has measured lately; of a
    deferred check it is the one measurement that there is.
    """

    checkpoint: Literal["IMMEDIATE", "BATCHED", "DEFERRED", ""]
    mode: Literal["BLOCK", "MONITOR", "DISABLED", ""]
    state: StatusState
    checks: Count
    hits: Count
    errors: Count
    ms: float
    last_ms: float | None
    p95_ms: float | None


def about(*, session_id: str, record: Record | None) -> dict[str, object]:
    """What a status says: of an open stream by its record, of one that is over by the audit record."""
    session = AuditSession.objects.select_related("answer").prefetch_related("deferred_checks").get(pk=session_id)
    stream = GuardedStream.objects.filter(session__pk=session_id).first()
    chars_in, released, withheld, exposed = (
        record.counts if record else (session.chars_in, session.released, session.withheld, session.exposed)
    )
    told: Mapping[str, object] = cast("Mapping[str, object]", summary(record)) if record else session.timing
    return {
        "session_id": str(session.pk),
        "state": session.state,
        "outcome": session.outcome,
        "policy": {
            "name": session.policy_name,
            "version": session.policy_version,
            "digest": session.policy_digest,
        },
        "counts": {
            "chars_in": chars_in,
            "released": released,
            "withheld": withheld,
            "exposed": exposed,
            **{name: told[name] for name in ("calls", "chunks", "checks") if name in told},
        },
        "guardrails": _guardrails(session, record, cast("AllTotals", told.get("guardrails", {})), chars_in),
        "deferred": [
            {"guardrail": check.guardrail, "applies_to": check.applies_to, "state": check.state}
            for check in session.deferred_checks.all()
        ],
        "held_chars": record.held if record else 0,
        "expected_seq": record.expected_seq if record else (stream.seq + 1 if stream else 1),
    }


def _guardrails(
    session: AuditSession, record: Record | None, totals: AllTotals, chars_in: int
) -> dict[str, GuardrailAbout]:
    """By name, in the policy's order; of a policy that cannot be loaded any more those that did something."""
    later = {check.guardrail: check for check in session.deferred_checks.all()}
    prompt = session.answer is not None and session.answer.role == Message.Role.USER
    kind = AppliesTo.PROMPT if prompt else AppliesTo.RESPONSE
    try:
        policy: Policy = policy_by_digest(session.policy_digest)
    except PolicyUnavailable:
        return {name: _about(None, mine, later.get(name), idle=True) for name, mine in totals.items()}
    moved: Mapping[str, str] = record.demoted if record else dict.fromkeys(later, Checkpoint.DEFERRED.value)
    policy = policy.demoted({name: Checkpoint(checkpoint) for name, checkpoint in moved.items()})
    running = {one.name for one in policy.running(kind)}
    return {
        one.name: _about(one, totals.get(one.name), later.get(one.name), idle=one.name not in running or not chars_in)
        for one in policy.guardrails
    }


def _about(
    guardrail: Guardrail | None, totals: Totals | None, later: DeferredCheck | None, *, idle: bool
) -> GuardrailAbout:
    mine = totals or nothing()
    last_ms, p95_ms = (mine["last_ms"] if mine["checks"] else None), None
    if guardrail is not None:
        p95_ms = book(guardrail.impl).p95_ms
    state = _state(guardrail, mine, idle=idle)
    if later is not None:
        line = line_of([later])
        state, last_ms, p95_ms = cast("StatusState", line.state), line.last_ms, line.p95_ms
    return {
        "checkpoint": guardrail.checkpoint.value if guardrail else "",
        "mode": guardrail.mode.value if guardrail else "",
        "state": state,
        "checks": mine["checks"],
        "hits": mine["hits"],
        "errors": mine["errors"],
        "ms": mine["ms"],
        "last_ms": last_ms,
        "p95_ms": None if p95_ms is None else round(p95_ms, 3),
    }


def _state(guardrail: Guardrail | None, totals: Totals, *, idle: bool) -> StatusState:
    """What its last check came to; what it has found is not forgotten over one that passed."""
    last = totals.get("state")
    if last not in (None, "passed", "slower_than_declared"):
        return last
    if totals["hits"]:
        monitored = guardrail is not None and guardrail.mode is Mode.MONITOR and guardrail.action is not Action.WARN
        return "would_block" if monitored else "hit"
    if last:
        return last
    return "passed" if guardrail is not None and guardrail.checkpoint is Checkpoint.IMMEDIATE and not idle else "idle"
