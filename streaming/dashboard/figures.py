"""The figures of the admin's front page, counted in the database.

Exists so that a figure on the page is one definition, here, and not a phrase in a template. Protects two rules: the
number of queries is the same whatever there is to count (four), and a rate says what it was counted over: one of
nothing is unknown, not zero.

Times are counted by their first two digits, rounded down (1,234 ms counts as 1,200): so percentiles of any part, and of
all of it, come from one query. They are nearest ranks, without interpolation.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from django.db.models import Case, Count, F, IntegerField, Q, QuerySet, Sum, When
from django.db.models.expressions import Combinable
from django.db.models.functions import Trunc

from guardrails.findings import Outcome
from streaming.dashboard.period import Period
from streaming.models import AuditSession, DeferredCheck

GOOD = (Outcome.ALLOWED, Outcome.REDACTED, Outcome.WARNED, Outcome.BLOCKED)
"""Outcomes of answers that were completed: a guardrail that blocks has done its work."""
JUDGED = (DeferredCheck.State.PASSED, DeferredCheck.State.HIT, DeferredCheck.State.WOULD_BLOCK)
"""States of deferred checks that came to a verdict."""

Version = tuple[str, int]
"""Name and number; ``("", 0)`` of sessions that ran without a policy."""
Slot = tuple[datetime, Version]


@dataclass(slots=True)
class Spread:
    """Milliseconds, by how many answers took them."""

    counted: Counter[int] = field(default_factory=Counter)

    @property
    def number(self) -> int:
        """Answers that were measured."""
        return self.counted.total()

    def percentile(self, share: float) -> int | None:
        """What this share of all answers did not exceed; None: nothing was measured."""
        rank = math.ceil(share * self.number)
        for value in sorted(self.counted):
            rank -= self.counted[value]
            if rank <= 0:
                return value
        return None


@dataclass(slots=True)
class Figures:
    """Counts of sessions, and the rates that follow from them (0 to 1, None: of nothing)."""

    sessions: int = 0
    ended: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    would_block: int = 0
    fallback: int = 0
    tools_ok: int = 0
    tools_failed: int = 0
    checks: Counter[str] = field(default_factory=Counter)
    first_token: Spread = field(default_factory=Spread)
    hold: Spread = field(default_factory=Spread)

    def add(self, other: Figures) -> None:
        """Count the other in."""
        for name in ("sessions", "ended", "would_block", "fallback", "tools_ok", "tools_failed"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.outcomes.update(other.outcomes)
        self.checks.update(other.checks)
        self.first_token.counted.update(other.first_token.counted)
        self.hold.counted.update(other.hold.counted)

    def outcome_rate(self, *outcomes: Outcome) -> float | None:
        """Share of ended sessions with one of these outcomes."""
        return rate(sum(self.outcomes[outcome.value] for outcome in outcomes), self.ended)

    @property
    def block_rate(self) -> float | None:
        """Of ended sessions."""
        return self.outcome_rate(Outcome.BLOCKED)

    @property
    def redact_rate(self) -> float | None:
        """Of ended sessions."""
        return self.outcome_rate(Outcome.REDACTED)

    @property
    def would_block_rate(self) -> float | None:
        """Of ended sessions: a guardrail in MONITOR would have blocked."""
        return rate(self.would_block, self.ended)

    @property
    def completion_rate(self) -> float | None:
        """Of ended sessions: ``GOOD``."""
        return self.outcome_rate(*GOOD)

    @property
    def error_rate(self) -> float | None:
        """Of ended sessions."""
        return self.outcome_rate(Outcome.ERROR)

    @property
    def fallback_rate(self) -> float | None:
        """Of ended sessions: not streamed, or answered by another provider than the one asked first."""
        return rate(self.fallback, self.ended)

    @property
    def tool_success(self) -> float | None:
        """Of tool calls that ended."""
        return rate(self.tools_ok, self.tools_ok + self.tools_failed)

    @property
    def checks_open(self) -> int:
        """Deferred checks that wait or are being made."""
        return sum(self.checks[state.value] for state in DeferredCheck.OPEN)

    @property
    def checks_over(self) -> int:
        """Deferred checks that are not open any more."""
        return self.checks.total() - self.checks_open

    @property
    def deferred_completion(self) -> float | None:
        """Of deferred checks that are over: ``JUDGED``."""
        return rate(sum(self.checks[state.value] for state in JUDGED), self.checks_over)


@dataclass(frozen=True, slots=True)
class Report:
    """All that was counted, as a whole, by day (or hour), and by policy version. ``slots`` has every one, in order."""

    period: Period
    whole: Figures
    slots: dict[datetime, Figures]
    versions: dict[Version, Figures]


def rate(part: int, whole: int) -> float | None:
    """None: of nothing."""
    return part / whole if whole else None


def report(period: Period, *, policy: str = "") -> Report:
    """Count the sessions that began in the period, of one policy or (empty) of all. Four queries."""
    sessions = AuditSession.objects.filter(started_at__gte=period.begin, started_at__lt=period.end).order_by()
    if policy:
        sessions = sessions.filter(policy_name=policy)
    parts: dict[Slot, Figures] = {}
    _count_sessions(sessions, period, parts)
    for name in ("first_token", "hold"):
        _count_times(sessions, period, parts, name)
    _count_checks(period, policy, parts)
    return _added(period, parts)


def _added(period: Period, parts: dict[Slot, Figures]) -> Report:
    made = Report(period, Figures(), {moment: Figures() for moment in period.slots()}, {})
    for (moment, version), figures in parts.items():
        made.whole.add(figures)
        made.slots[moment].add(figures)
        made.versions.setdefault(version, Figures()).add(figures)
    return made


def _trunc(field_name: str, period: Period) -> Trunc:
    return Trunc(field_name, period.step, tzinfo=UTC)


def _count_sessions(sessions: QuerySet[AuditSession], period: Period, parts: dict[Slot, Figures]) -> None:
    ended = ~Q(outcome="")
    rows = (
        sessions.annotate(slot=_trunc("started_at", period))
        .values_list("slot", "policy_name", "policy_version", "outcome")
        .annotate(
            number=Count("*"),
            would_block=Count("pk", filter=ended & Q(would_have="blocked")),
            fell_back=Count("pk", filter=ended & ~Q(fallback="")),
            ok=Sum("tools_ok"),
            failed=Sum("tools_failed"),
        )
    )
    for slot, name, number, outcome, sessions_of, would_block, fell_back, ok, failed in rows:
        figures = parts.setdefault((slot, (name, number)), Figures())
        figures.sessions += sessions_of
        if outcome:
            figures.ended += sessions_of
            figures.outcomes[outcome] += sessions_of
        figures.would_block += would_block
        figures.fallback += fell_back
        figures.tools_ok += ok
        figures.tools_failed += failed


def _count_times(sessions: QuerySet[AuditSession], period: Period, parts: dict[Slot, Figures], name: str) -> None:
    column = f"{name}_ms"
    rows = (
        sessions.filter(**{f"{column}__isnull": False})
        .annotate(slot=_trunc("started_at", period), took=two_digits(column))
        .values_list("slot", "policy_name", "policy_version", "took")
        .annotate(number=Count("*"))
    )
    for slot, policy, version, took, number in rows:
        spread: Spread = getattr(parts.setdefault((slot, (policy, version)), Figures()), name)
        spread.counted[took] += number


def two_digits(column: str) -> Case:
    """The number in that column, rounded down to its first two digits (its last six at most)."""
    cases: Iterable[tuple[int, Combinable]] = [
        (10 ** (digits + 2), F(column) - F(column) % 10**digits) for digits in range(1, 5)
    ]
    whens = [When(**{f"{column}__lt": below}, then=value) for below, value in cases]
    largest = F(column) - F(column) % 10**5
    return Case(When(**{f"{column}__lt": 100}, then=F(column)), *whens, default=largest, output_field=IntegerField())


def _count_checks(period: Period, policy: str, parts: dict[Slot, Figures]) -> None:
    checks = DeferredCheck.objects.filter(session__started_at__gte=period.begin, session__started_at__lt=period.end)
    if policy:
        checks = checks.filter(session__policy_name=policy)
    rows = (
        checks.order_by()
        .annotate(slot=_trunc("session__started_at", period))
        .values_list("slot", "session__policy_name", "session__policy_version", "state")
        .annotate(number=Count("*"))
    )
    for slot, name, version, state, number in rows:
        parts.setdefault((slot, (name, version)), Figures()).checks[state] += number
