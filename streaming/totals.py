"""What each guardrail did in one session, added up.

Exists so that streams, answers and single checks count alike; the sums stand in the session's audit row. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import (
    NotRequired,  # pydantic reads it, and before Python 3.12 only this one
    cast,
)

from typing_extensions import TypedDict

from guardrails.findings import Finding
from streaming.core.events import GuardrailStatus, StatusState


class Totals(TypedDict):
    """One guardrail: findings, questions for it, how many of those got no verdict; times are milliseconds.

    ``state``: what the last question came to, in the words of the event ``guardrail_status``.
    """

    checks: int
    hits: int
    errors: int
    ms: float
    last_ms: float
    state: NotRequired[StatusState]


AllTotals = dict[str, Totals]
"""By guardrail; one that was never asked and found nothing has none."""


def add(totals: AllTotals, *, findings: Iterable[Finding] = (), statuses: Iterable[GuardrailStatus] = ()) -> int:
    """Count findings and answered questions in; returns how many questions."""
    for finding in findings:
        _of(totals, finding.guardrail)["hits"] += 1
    asked = 0
    for status in statuses:
        asked += 1
        mine = _of(totals, status.guardrail)
        mine["checks"] += 1
        mine["errors"] += status.state in ("error", "timeout", "circuit_open")
        mine["last_ms"] = status.last_ms or 0.0
        mine["state"] = cast("StatusState", status.state)
        mine["ms"] = round(mine["ms"] + mine["last_ms"], 3)
    return asked


def _of(totals: AllTotals, guardrail: str) -> Totals:
    return totals.setdefault(guardrail, nothing())


def nothing() -> Totals:
    """Of a guardrail that has done nothing yet."""
    return Totals(checks=0, hits=0, errors=0, ms=0.0, last_ms=0.0)
