"""Findings that wait for a verdict, one after the other.

Exists so that a reviewer needs nothing but five keys. Protects the rule that a finding is met once on the way down:
the queue is a place in the order of findings (newest first), not a list that shifts while others judge too.
"""

from __future__ import annotations

from dataclasses import dataclass

from django.db.models import Exists, OuterRef, QuerySet

from streaming.models import Finding, Review
from streaming.presentation import FindingView

WAITING, SECOND, ALL = "waiting", "second", "all"
SHOWS = {WAITING: "not judged", SECOND: "second opinion", ALL: "all findings"}


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which findings are gone through: by whether they are judged, and by guardrail, rule, policy and version."""

    show: str = WAITING
    guardrail: str = ""
    rule: str = ""
    policy: str = ""
    version: int | None = None

    def findings(self, reviewer: str) -> QuerySet[Finding]:
        """Newest first."""
        rows = Finding.objects.select_related("session").order_by("-pk")
        for name, value in (
            ("guardrail", self.guardrail),
            ("rule", self.rule),
            ("session__policy_name", self.policy),
            ("session__policy_version", self.version),
        ):
            if value not in ("", None):
                rows = rows.filter(**{name: value})
        reviews = Review.objects.filter(finding=OuterRef("pk"))
        if self.show == WAITING:
            return rows.filter(~Exists(reviews))
        if self.show == SECOND:
            return rows.filter(Exists(reviews), ~Exists(reviews.filter(by=reviewer)))
        return rows


@dataclass(frozen=True, slots=True)
class Card:
    """A finding to be judged, and what was said of it so far. ``seen``: the version that a verdict names."""

    finding: Finding
    view: FindingView
    reviews: list[Review]

    @classmethod
    def of(cls, finding: Finding) -> Card:
        """Two queries: the finding's session came with it."""
        values = {one.name: getattr(finding, one.name) for one in Finding._meta.concrete_fields}
        return cls(finding, FindingView.of(values), list(finding.reviews.order_by("-version")))

    @property
    def seen(self) -> int:
        """Version of the newest review, 0 for none."""
        return self.reviews[0].version if self.reviews else 0


def step(wanted: Wanted, reviewer: str, *, at: int | None = None, back: bool = False) -> Finding | None:
    """The finding behind the one with key ``at`` (``back``: before it), or the first; None at the end."""
    rows = wanted.findings(reviewer)
    if at is None:
        return rows.first()
    return rows.filter(pk__gt=at).order_by("pk").first() if back else rows.filter(pk__lt=at).first()
