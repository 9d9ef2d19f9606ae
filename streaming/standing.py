"""What the database says of a session's deferred checks, as the events that a reader should have been told.

Exists because who stores a result and who tells it are not one step: a worker may die in between, and a check that is
given up has nobody who could tell. Protects two rules: a reader that is told COMPLETE has been told how every check
ended, and what the log has said already is not said twice.
"""

from __future__ import annotations

from collections.abc import Sequence

from guardrails.findings import Action, Mode
from guardrails.findings import Finding as FoundHit
from guardrails.performance import Checkpoint
from streaming.breakers import NOT_ASKED
from streaming.core.events import FindingEvent, GuardrailStatus, ServerEvent
from streaming.log import LogUnavailable, SessionLog
from streaming.models import DeferredCheck, Finding

READ_AT_ONCE = 500
_RANK = ["waiting", "circuit_open", "checking", "would_block", "hit", "expired", "timeout", "error", "passed"]


def state_of(row: DeferredCheck) -> str:
    """The state as readers are told it: one that waits because its guardrail's circuit is open says that."""
    held_up = row.state == DeferredCheck.State.WAITING and row.error.startswith(NOT_ASKED)
    return "circuit_open" if held_up else row.state


def line_of(rows: Sequence[DeferredCheck], took_ms: float | None = None) -> GuardrailStatus:
    """One guardrail may judge prompt and answer; its one line says the worst of what is known of both."""
    row = min(rows, key=lambda row: _RANK.index(state_of(row)))
    if took_ms is None and row.result is not None:
        took_ms = row.result.get("took_ms")
    return GuardrailStatus(
        row.guardrail, Checkpoint.DEFERRED.value, state_of(row), took_ms, took_ms, row.error or None
    )  # fmt: skip


def lines_of(session_id: str, *, but: str = "") -> list[ServerEvent]:
    """Findings of the session's deferred checks, then a line for each of their guardrails; ``but``: leave one out."""
    checks: dict[str, list[DeferredCheck]] = {}
    for row in DeferredCheck.objects.filter(session__pk=session_id).exclude(guardrail=but).order_by("id"):
        checks.setdefault(row.guardrail, []).append(row)
    if not checks:
        return []
    found = Finding.objects.filter(session__pk=session_id, guardrail__in=list(checks)).order_by("n")
    return [*(FindingEvent(_hit(row)) for row in found), *map(line_of, checks.values())]


async def untold(
    log: SessionLog, session_id: str, events: Sequence[ServerEvent], *, after: int = 0
) -> list[ServerEvent]:
    """Those of these that the log does not say; all of them while it cannot be asked.

    ``after``: a seq behind which deferred checks are told, so that an answer's chunks need not be read again.
    """
    if not events:
        return []
    findings: set[object] = set()
    states: dict[object, object] = {}
    try:
        while batch := await log.read(session_id, after, READ_AT_ONCE):
            for event in batch:
                after = int(str(event["seq"]))
                if event["type"] == FindingEvent.type:
                    findings.add(event["n"])
                elif event["type"] == GuardrailStatus.type:
                    states[event["guardrail"]] = event["state"]
    except LogUnavailable:
        pass
    return [event for event in events if not _said(event, findings, states)]


def _said(event: ServerEvent, findings: set[object], states: dict[object, object]) -> bool:
    if isinstance(event, FindingEvent):
        return event.finding.n in findings
    return isinstance(event, GuardrailStatus) and states.get(event.guardrail) == event.state


def _hit(row: Finding) -> FoundHit:
    return FoundHit(
        guardrail=row.guardrail,
        kind=row.kind,
        rule=row.rule,
        category=row.category,
        start=row.start,
        end=row.end,
        mode=Mode(row.mode),
        action=Action(row.action),
        channel=row.channel,
        score=row.score,
        exposed=row.exposed,
        n=row.n,
        would_have=row.would_have or None,
    )
