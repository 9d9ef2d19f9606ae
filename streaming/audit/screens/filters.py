"""What the list of sessions can be narrowed to, and its pages.

Exists so that the list, its further pages and the export mean the same by a filter. Protects two rules: a page costs
the same however far down it is (keyset, never an offset), and what was asked in no form is refused with the field
named, never guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from uuid import UUID

from django import forms
from django.core.exceptions import ValidationError
from django.db.models import Exists, Max, OuterRef, Q, QuerySet
from django.http import QueryDict

from guardrails.findings import Outcome
from streaming.models import AuditSession, Finding, Review

WALKED = 10_000
"""Sessions that one page looks at for their findings."""
SKEW = timedelta(hours=1)
"""By so much the clocks of two machines may differ: a finding is made after its session began."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
EARLIEST, LATEST = date(2000, 1, 1), date(2999, 12, 31)
ANY = "any"
NAME_CHARS = 200
_WOULD_HAVE = ("blocked", "redacted")


class FilterForm(forms.Form):
    """The form above the list; every field may be left empty."""

    q = forms.CharField(required=False, max_length=NAME_CHARS, label="Correlation id")
    state = forms.ChoiceField(required=False, choices=[("", "any"), *AuditSession.State.choices])
    outcome = forms.ChoiceField(required=False, choices=[("", "any"), *((one.value, one.value) for one in Outcome)])
    would_have = forms.ChoiceField(
        required=False,
        label="Would have",
        choices=[("", "–"), (ANY, "blocked or redacted"), *((one, one) for one in _WOULD_HAVE)],
    )
    policy = forms.CharField(required=False, max_length=NAME_CHARS)
    guardrail = forms.CharField(required=False, max_length=100)
    provider = forms.CharField(required=False, max_length=64)
    client = forms.CharField(required=False, max_length=64)
    since = forms.DateField(required=False, label="From")
    until = forms.DateField(required=False, label="To")
    unreviewed = forms.BooleanField(required=False)

    def clean_policy(self) -> str:
        """``name``, or ``name v3``."""
        said = str(self.cleaned_data["policy"])
        parse_policy(said)
        return said

    def clean_since(self) -> date | None:
        """A day that a calendar has."""
        return _day(self.cleaned_data["since"])

    def clean_until(self) -> date | None:
        """A day that a calendar has."""
        return _day(self.cleaned_data["until"])


def _day(said: date | None) -> date | None:
    if said is not None and not EARLIEST <= said <= LATEST:
        raise ValidationError("Name a day between the years 2000 and 2999.")
    return said


def parse_policy(said: str) -> tuple[str, int | None]:
    """``support`` or ``support v3`` as name and number. Raises ``ValidationError``."""
    name, _, number = said.rpartition(" v")
    if not name:
        return said, None
    if not (number.isascii() and number.isdigit() and len(number) <= 9):
        raise ValidationError("Write a policy as its name, or as name and version: support v3.")
    return name, int(number)


@dataclass(frozen=True, slots=True)
class Filters:
    """What is wanted. Days are whole days in UTC, ``until`` included."""

    q: str = ""
    state: str = ""
    outcome: str = ""
    would_have: str = ""
    policy: str = ""
    guardrail: str = ""
    provider: str = ""
    client: str = ""
    since: date | None = None
    until: date | None = None
    unreviewed: bool = False

    @classmethod
    def of(cls, form: FilterForm) -> Filters:
        """From a form that is valid."""
        return cls(**form.cleaned_data)

    @property
    def empty(self) -> bool:
        """Nothing was narrowed."""
        return self == Filters()

    @property
    def of_findings(self) -> bool:
        """Whether findings decide, too."""
        return bool(self.guardrail or self.unreviewed)

    def sessions(self) -> QuerySet[AuditSession]:
        """Those that fit, newest first."""
        return self.with_findings(self.by_themselves())

    def by_themselves(self) -> QuerySet[AuditSession]:
        """Those whose own columns fit, newest first."""
        rows = AuditSession.objects.order_by("-started_at", "-id")
        for name in ("state", "outcome", "provider", "client"):
            if value := getattr(self, name):
                rows = rows.filter(**{name: value})
        if self.q:
            rows = rows.filter(_named(self.q))
        if self.would_have == ANY:
            rows = rows.exclude(would_have="")
        elif self.would_have:
            rows = rows.exclude(would_have="").filter(would_have=self.would_have)
        if self.policy:
            name, number = parse_policy(self.policy)
            rows = rows.filter(policy_name=name)
            rows = rows if number is None else rows.filter(policy_version=number)
        if self.since is not None:
            rows = rows.filter(started_at__gte=_midnight(self.since))
        if self.until is not None:
            rows = rows.filter(started_at__lt=_midnight(self.until) + timedelta(days=1))
        return rows

    def with_findings(self, rows: QuerySet[AuditSession]) -> QuerySet[AuditSession]:
        """Those of ``rows`` whose findings fit."""
        if not self.of_findings:
            return rows
        found = Finding.objects.filter(session=OuterRef("pk"))
        if self.guardrail:
            found = found.filter(guardrail=self.guardrail)
        if self.unreviewed:
            found = found.filter(~Exists(Review.objects.filter(finding=OuterRef("pk"))))
        return rows.filter(Exists(found))

    def newest_possible(self) -> datetime | None:
        """No session that fits began later, as far as that is known by one look at an index."""
        if not self.guardrail:
            return None
        newest = Finding.objects.filter(guardrail=self.guardrail).aggregate(newest=Max("created"))["newest"]
        return EPOCH if newest is None else newest + SKEW


def _named(said: str) -> Q:
    """By correlation id, or by the beginning of one; a session's own id finds it as well."""
    by_correlation = Q(correlation_id__startswith=said)
    try:
        return Q(pk=UUID(said)) | Q(correlation_id=said)
    except ValueError:
        return by_correlation


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time.min, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Cursor:
    """The last session of a page; the next page begins behind it."""

    started_at: datetime
    id: UUID

    @classmethod
    def of(cls, session: AuditSession) -> Cursor:
        """Behind this one."""
        return cls(session.started_at, session.pk)

    @classmethod
    def parse(cls, said: str) -> Cursor:
        """As ``str`` writes it. Raises ``ValueError``, and ``OverflowError`` for a time before all time."""
        when, _, which = said.partition("_")
        moment = datetime.fromisoformat(when)
        if moment.tzinfo is None:
            raise ValueError("a cursor's time names its zone")
        return cls(moment.astimezone(UTC), UUID(which))

    def __str__(self) -> str:
        return f"{self.started_at.astimezone(UTC).isoformat()}_{self.id}"

    def behind(self, rows: QuerySet[AuditSession]) -> QuerySet[AuditSession]:
        """What follows in the list's order. The first condition is what an index can be walked by."""
        return rows.filter(started_at__lte=self.started_at).filter(
            Q(started_at__lt=self.started_at) | Q(started_at=self.started_at, pk__lt=self.id)
        )

    def down_to(self, rows: QuerySet[AuditSession]) -> QuerySet[AuditSession]:
        """What does not follow it, itself included."""
        return rows.filter(started_at__gte=self.started_at).filter(
            Q(started_at__gt=self.started_at) | Q(started_at=self.started_at, pk__gte=self.id)
        )


@dataclass(frozen=True, slots=True)
class Page:
    """Sessions, and behind which one the next page begins (None: there is none).

    ``searched``: the page ends early, since so many sessions had been looked at for what their findings are.
    """

    sessions: Sequence[AuditSession]
    following: Cursor | None
    searched: bool = False


def page_of(filters: Filters, after: Cursor | None, size: int) -> Page:
    """At most ``size`` sessions behind ``after``. One query; at most three where findings decide.

    No index has findings in the order of sessions, so where they decide at most ``WALKED`` sessions are looked at:
    what a page costs must not depend on how long ago something was found.
    """
    rows = filters.by_themselves()
    if after is not None:
        rows = after.behind(rows)
    edge = None
    if filters.of_findings:
        if after is None and (newest := filters.newest_possible()) is not None:
            rows = rows.filter(started_at__lte=newest)
        edge = next((Cursor(*one) for one in rows.values_list("started_at", "pk")[WALKED : WALKED + 1]), None)
        rows = filters.with_findings(rows if edge is None else edge.down_to(rows))
    found = list(rows.defer("timing", "shadow", "error")[: size + 1])
    if len(found) > size:
        return Page(found[:size], Cursor.of(found[size - 1]))
    return Page(found, edge, searched=edge is not None)


def query_of(data: QueryDict) -> str:
    """The filters of a request as a query string, without what is empty and without the page's own words."""
    kept = QueryDict(mutable=True)
    for name in FilterForm.base_fields:
        if value := data.get(name, ""):
            kept[name] = value
    return kept.urlencode()
