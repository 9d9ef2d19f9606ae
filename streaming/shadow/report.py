"""The difference between a policy's active version and its shadow, over the sessions since the shadow began.

Exists so that page and command say the same. Protects the rule that a figure names what it was counted over: sessions
without a comparison are counted as such, and where only the newest sessions were looked through, it is said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime

from django.db.models import Count, QuerySet

from guardrails.models import Policy, ShadowChange
from guardrails.selectors import version_state
from streaming.models import AuditSession, Finding
from streaming.shadow.record import COMPARISON_WORDS, Comparison

NEWEST = 2_000
"""Sessions that are looked through for what single guardrails found."""
EXAMPLES = 5
"""Sessions that are named of each kind of difference."""
TOLD = (Comparison.ONLY_ACTIVE, Comparison.ONLY_SHADOW, Comparison.UNKNOWN)


@dataclass(slots=True)
class GuardrailLine:
    """One guardrail's hits under both versions, and in how many sessions. ``not_run``: the shadow's was not asked in
    some of them, or has not answered."""

    name: str
    active_hits: int = 0
    active_sessions: int = 0
    shadow_hits: int = 0
    shadow_sessions: int = 0
    not_run: bool = False


@dataclass(frozen=True, slots=True)
class Example:
    """One session. ``active`` is its outcome, ``shadow`` what the shadow would have done; ``why`` it is unknown."""

    session_id: str
    started_at: datetime
    active: str
    shadow: str
    why: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """``counts`` has every ``Comparison``; ``without`` sessions have none (under way, or lost).

    ``looked`` is the number of sessions behind ``guardrails`` and ``mean_ms``. ``error``: why the version does not run
    now. ``ended_at`` None: it is the shadow now. ``paid``: its
    guardrails that go over the network are asked. ``actives``: the versions that were active in these sessions.
    """

    policy: str
    active: int | None
    shadow: int
    began_at: datetime
    began_by: str
    note: str
    ended_at: datetime | None
    paid: bool
    error: str
    sessions: int
    without: int
    counts: dict[str, int]
    looked: int
    mean_ms: float | None
    actives: list[int] = field(default_factory=list)
    guardrails: list[GuardrailLine] = field(default_factory=list)
    examples: dict[str, list[Example]] = field(default_factory=dict)

    @property
    def lines(self) -> list[tuple[str, str, int]]:
        """Comparison, words, number; in the order in which they are read."""
        return [(name, COMPARISON_WORDS[name], number) for name, number in self.counts.items()]

    def as_dict(self) -> dict[str, object]:
        """JSON-ready but for its times."""
        return asdict(self)


def report(policy: Policy) -> Report | None:
    """Of the shadow that runs, else of the last one that did; None when there never was one."""
    began = policy.shadow_changes.exclude(version=None).select_related("version__policy", "changed_by").first()
    if began is None or began.version is None:
        return None
    ended = policy.shadow_changes.filter(id__gt=began.pk).order_by("id").first()
    sessions = sessions_of(began)
    counted = dict(sessions.order_by().values_list("shadow_comparison").annotate(Count("pk")))
    window = list(sessions.order_by("-started_at").values_list("pk", "shadow")[:NEWEST])
    lines, costs = _by_guardrail(sessions, window)
    by = began.changed_by
    return Report(
        policy=policy.name,
        active=policy.active_version.number if policy.active_version else None,
        shadow=began.version.number,
        began_at=began.changed_at,
        began_by=by.get_username() if by is not None else "",
        note=began.note,
        ended_at=ended.changed_at if ended else None,
        paid=began.asks_paid,
        error=version_state(began.version)[1],
        sessions=sum(counted.values()),
        without=counted.get("", 0),
        counts={name.value: counted.get(name.value, 0) for name in Comparison},
        looked=len(window),
        mean_ms=round(sum(costs) / len(costs), 3) if costs else None,
        actives=sorted(set(sessions.order_by().values_list("policy_version", flat=True).distinct())),
        guardrails=lines,
        examples={name.value: _examples(sessions, name) for name in TOLD},
    )


def sessions_of(began: ShadowChange) -> QuerySet[AuditSession]:
    """The sessions that ran with this shadow since it began."""
    number = began.version.number if began.version else 0
    return AuditSession.objects.filter(
        policy_name=began.policy.name, shadow_version=number, started_at__gte=began.changed_at
    )


def _by_guardrail(
    sessions: QuerySet[AuditSession], window: Sequence[tuple[object, dict[str, object]]]
) -> tuple[list[GuardrailLine], list[float]]:
    """Hits of both versions in the newest sessions, by guardrail, most hits first; and what the shadow cost in each."""
    lines: dict[str, GuardrailLine] = {}
    costs: list[float] = []

    def line(name: str) -> GuardrailLine:
        return lines.setdefault(name, GuardrailLine(name))

    newest = sessions.order_by("-started_at").values("pk")[:NEWEST]
    rows = Finding.objects.filter(session__in=AuditSession.objects.filter(pk__in=newest))
    for name, hits, held in (
        rows.order_by().values_list("guardrail").annotate(Count("pk"), Count("session", distinct=True))
    ):
        line(name).active_hits, line(name).active_sessions = hits, held
    for _, details in window:
        if not details:
            continue
        if isinstance(ms := details.get("ms"), int | float):
            costs.append(float(ms))
        for name, hits in Counter(_names(details)).items():
            line(name).shadow_hits += hits
            line(name).shadow_sessions += 1
        for name in _missing(details)[1]:
            line(name).not_run = True
    order = sorted(lines.values(), key=lambda one: (-(one.active_hits + one.shadow_hits), one.name))
    return order, costs


def _names(details: dict[str, object]) -> list[str]:
    found = details.get("findings")
    return [str(finding["guardrail"]) for finding in found] if isinstance(found, list) else []


def _examples(sessions: QuerySet[AuditSession], comparison: Comparison) -> list[Example]:
    newest = sessions.filter(shadow_comparison=comparison.value).order_by("-started_at")[:EXAMPLES]
    return [
        Example(str(row.pk), row.started_at, row.outcome or row.state, row.shadow_would_have or "nothing",
                why(row.shadow) if comparison is Comparison.UNKNOWN else "")
        for row in newest
    ]  # fmt: skip


def why(details: dict[str, object]) -> str:
    """What a shadow did not look at, in words."""
    said = []
    if error := details.get("error"):
        said.append(str(error))
    if unanswered := details.get("unanswered"):
        said.append(f"{unanswered} texts got no verdict in time")
    failures = details.get("failures")
    for name, times in failures.items() if isinstance(failures, dict) else ():
        said.append(f"“{name}” failed {times} times")
    for words, names in zip(("not answered yet", "not run"), _missing(details), strict=True):
        if names:
            said.append(f"{words}: " + ", ".join(names))
    return "; ".join(said)


def _missing(details: dict[str, object]) -> tuple[list[str], list[str]]:
    """Guardrails of the shadow that workers are still to ask, and those that nobody has asked."""
    listed, late = details.get("not_run"), details.get("late")
    not_run = [str(name) for name in listed] if isinstance(listed, list) else []
    out = [name for name in not_run if isinstance(late, dict) and name in late]
    return out, [name for name in not_run if name not in out]
