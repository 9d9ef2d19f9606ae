"""What the admin's front page shows above the list of models (``UNFOLD["DASHBOARD_CALLBACK"]``).

Exists because whoever runs the service wants to see at a glance how it goes. Protects the rule that figures of sessions
are for those who may see sessions, and circuits for those who may see guardrails at work: others get the list of models
as ever, and nothing is counted for them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from django.http import HttpRequest
from django.utils import timezone

from guardrails.findings import Outcome
from guardrails.models import Policy
from streaming import breakers
from streaming.at_work import AtWork, guardrails_at_work_now
from streaming.dashboard.charts import Chart, Mark, Series, bar, chart, percent, times, whole
from streaming.dashboard.figures import Figures, Report, Version, report
from streaming.dashboard.period import WORDS, Period
from streaming.upstreams import offered_now

SESSIONS = "streaming.view_auditsession"
AT_WORK = "streaming.view_demotion"
VERSIONS = 10
"""Policy versions that have a row of their own; the rest are counted together."""
STACK = (
    ("allowed", 1, (Outcome.ALLOWED, Outcome.WARNED)),
    ("redacted", 2, (Outcome.REDACTED,)),
    ("blocked", 3, (Outcome.BLOCKED,)),
    ("error", 4, (Outcome.ERROR,)),
    ("not finished", 5, ()),
)
"""What a column of sessions is made of; the last is all the rest: interrupted, abandoned, expired, still open."""


@dataclass(frozen=True, slots=True)
class Tile:
    """One figure with what it was counted over."""

    name: str
    value: str
    over: str


@dataclass(frozen=True, slots=True)
class VersionRow:
    """One policy version's figures; ``bar`` is as long as its share of the most used one's sessions."""

    name: str
    cells: Sequence[str]
    bar: Sequence[Mark]


@dataclass(frozen=True, slots=True)
class Circuit:
    """A breaker that everybody shares. ``state``: closed, open or half open."""

    name: str
    state: str

    @property
    def closed(self) -> bool:
        """Is it asked as usual?"""
        return self.state == "closed"


VERSION_HEAD = (
    "Sessions", "Blocked", "Redacted", "Would have blocked", "Completed", "Errors", "Fallback", "First token p50",
    "p95", "Longest hold p50", "p95", "Tool success", "Deferred completion",
)  # fmt: skip


def dashboard(request: HttpRequest, context: dict[str, object]) -> dict[str, object]:
    """The callback: adds ``dashboard`` and ``circuits`` for those who may see them."""
    user = request.user
    if user.has_perm(SESSIONS):
        context["dashboard"] = view_of(request)
    if user.has_perm(SESSIONS) or user.has_perm(AT_WORK):
        context["circuits"] = circuits()
    return context


def view_of(request: HttpRequest) -> dict[str, object]:
    """What the template of the dashboard is given."""
    period = Period.of(request.GET.get("period", ""), timezone.now())
    names = list(Policy.objects.order_by("name").values_list("name", flat=True))
    policy = request.GET.get("policy", "")
    policy = policy if policy in names else ""
    made = report(period, policy=policy)
    return {
        "period": period,
        "periods": WORDS.items(),
        "policies": names,
        "policy": policy,
        "empty": not made.whole.sessions,
        "tiles": tiles(made.whole),
        "charts": charts(made),
        "version_head": VERSION_HEAD,
        "versions": versions(made),
        "stack": [Series(name, look, ()) for name, look, _ in STACK],
    }


def tiles(whole_period: Figures) -> list[Tile]:
    """The figures of the whole period."""
    each = whole_period
    ended = f"of {each.ended:,} answered"
    made = [Tile("Sessions", whole(each.sessions), f"{each.sessions - each.ended:,} under way")]
    made += [
        Tile(name, percent(value), ended)
        for name, value in (
            ("Blocked", each.block_rate),
            ("Redacted", each.redact_rate),
            ("Would have blocked", each.would_block_rate),
            ("Completed", each.completion_rate),
            ("Errors", each.error_rate),
            ("Fallback", each.fallback_rate),
        )
    ]
    for name, spread in (("First token", each.first_token), ("Longest hold", each.hold)):
        over = f"p95 {times(spread.percentile(0.95))}, of {spread.number:,} measured"
        made.append(Tile(f"{name}, p50", times(spread.percentile(0.5)), over))
    made.append(Tile("Tool success", percent(each.tool_success), f"of {each.tools_ok + each.tools_failed:,} calls"))
    over = f"of {each.checks_over:,} over, {each.checks_open:,} open"
    made.append(Tile("Deferred completion", percent(each.deferred_completion), over))
    return made


def charts(made: Report) -> list[Chart]:
    """The drawings, by day or hour."""
    figures = list(made.slots.values())
    labels = [made.period.label(slot) for slot in made.slots]

    def line(name: str, look: int, of: Callable[[Figures], float | None]) -> Series:
        return Series(name, look, [of(each) for each in figures])

    return [
        chart(
            "sessions", "Sessions", "By outcome.", labels,
            [line(name, look, lambda each, name=name: _stack(each)[name]) for name, look, _ in STACK],  # type: ignore[misc]
            whole, stacked=True,
        ),
        chart(
            "hits", "What guardrails did", "Share of answered sessions.", labels,
            [
                line("blocked", 3, lambda each: each.block_rate),
                line("redacted", 2, lambda each: each.redact_rate),
                line("would have blocked", 5, lambda each: each.would_block_rate),
            ],
            percent, most=1,
        ),
        chart(
            "first-token", "First token", "From the answer's start, to two digits.", labels,
            [
                line("p50", 1, lambda each: each.first_token.percentile(0.5)),
                line("p95", 3, lambda each: each.first_token.percentile(0.95)),
            ],
            times,
        ),
        chart(
            "hold", "Longest hold", "The longest time that text of an answer was held, to two digits.", labels,
            [
                line("p50", 1, lambda each: each.hold.percentile(0.5)),
                line("p95", 3, lambda each: each.hold.percentile(0.95)),
            ],
            times,
        ),
        chart(
            "success", "Completed", "Answers, tool calls and deferred checks that came to their end.", labels,
            [
                line("answers", 1, lambda each: each.completion_rate),
                line("tool calls", 2, lambda each: each.tool_success),
                line("deferred checks", 5, lambda each: each.deferred_completion),
            ],
            percent, most=1,
        ),
        chart(
            "trouble", "Errors and fallback", "Share of answered sessions.", labels,
            [
                line("errors", 4, lambda each: each.error_rate),
                line("fallback", 5, lambda each: each.fallback_rate),
            ],
            percent, most=1,
        ),
    ]  # fmt: skip


def versions(made: Report) -> list[VersionRow]:
    """The most used policy versions, most used first, then what the others come to."""
    used = sorted(made.versions.items(), key=lambda item: (-item[1].sessions, item[0]))
    shown = [(_version(version), figures) for version, figures in used[:VERSIONS]]
    if rest := used[VERSIONS:]:
        together = Figures()
        for _, figures in rest:
            together.add(figures)
        shown.append((f"{len(rest)} others", together))
    most = max((figures.sessions for _, figures in shown), default=0)
    return [_row(name, figures, most) for name, figures in shown]


def _version(version: Version) -> str:
    name, number = version
    return f"{name} v{number}" if number else name or "no policy"


def _row(name: str, each: Figures, most: int) -> VersionRow:
    first, hold = each.first_token, each.hold
    cells = [
        whole(each.sessions),
        *map(percent, (each.block_rate, each.redact_rate, each.would_block_rate, each.completion_rate)),
        *map(percent, (each.error_rate, each.fallback_rate)),
        *map(times, (first.percentile(0.5), first.percentile(0.95), hold.percentile(0.5), hold.percentile(0.95))),
        *map(percent, (each.tool_success, each.deferred_completion)),
    ]
    stack = _stack(each)
    return VersionRow(name, cells, bar([(look, stack[said]) for said, look, _ in STACK], most))


def _stack(each: Figures) -> dict[str, int]:
    counted = {name: sum(each.outcomes[outcome.value] for outcome in outcomes) for name, _, outcomes in STACK}
    counted[STACK[-1][0]] = each.sessions - sum(counted.values())
    return counted


def circuits() -> list[Circuit]:
    """Breakers of all providers that are offered, and of guardrails of active policies that leave the process."""
    names = list(offered_now().providers)
    found = breakers.states_now([breakers.PROVIDER + name for name in names])
    made = [Circuit(f"Provider {name}", _said(found.get(breakers.PROVIDER + name, "closed"))) for name in names]
    at_work: list[AtWork] = [one for one in guardrails_at_work_now() if one.breaker]
    return [*made, *(Circuit(f"{one.policy} / {one.guardrail}", _said(one.breaker)) for one in at_work)]


def _said(state: str) -> str:
    return state.replace("_", " ")
