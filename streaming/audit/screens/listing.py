"""The list of sessions as it is shown.

Exists so that a page of the list is three queries, whatever it shows: the sessions, their findings counted by
guardrail, and what of them was judged. Protects the rule that a list shows names and numbers and never a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

from django.db.models import Count, Exists, OuterRef, Q

from guardrails.models import ApiKey, Policy, PolicyVersion
from streaming.models import AuditSession, Finding, Review
from streaming.presentation import outcome_words

NAMES_SHOWN = 3
CHOICES = 500
"""Suggestions for a field; what is not among them can be typed."""


@dataclass(frozen=True, slots=True)
class Hits:
    """Findings of a session: by guardrail, and how many nobody has judged."""

    by_guardrail: dict[str, int] = field(default_factory=dict)
    waiting: int = 0

    @property
    def number(self) -> int:
        """All of them."""
        return sum(self.by_guardrail.values())

    @property
    def names(self) -> str:
        """The guardrails with their numbers, the most frequent first."""
        ordered = sorted(self.by_guardrail.items(), key=lambda pair: (-pair[1], pair[0]))
        words = [f"{name} × {number}" if number > 1 else name for name, number in ordered[:NAMES_SHOWN]]
        return ", ".join(words) + (f" and {len(ordered) - NAMES_SHOWN} more" if len(ordered) > NAMES_SHOWN else "")


@dataclass(frozen=True, slots=True)
class Line:
    """One session in the list."""

    session: AuditSession
    hits: Hits

    @property
    def policy(self) -> str:
        """Name and version."""
        return f"{self.session.policy_name} v{self.session.policy_version}" if self.session.policy_name else "–"

    @property
    def outcome(self) -> str:
        """In words; a dash while there is none."""
        return outcome_words(self.session.outcome) or "–"

    @property
    def sign(self) -> str:
        """A shape beside the colour."""
        return {"allowed": "✓", "redacted": "◐", "warned": "▲", "blocked": "■", "error": "✕"}.get(
            self.session.outcome, "○"
        )


def lines(sessions: Sequence[AuditSession]) -> list[Line]:
    """The sessions with their findings counted, in one query."""
    judged = Exists(Review.objects.filter(finding=OuterRef("pk")))
    counted = (
        Finding.objects.filter(session__in=[session.pk for session in sessions])
        .alias(judged=judged)
        .order_by()
        .values("session_id", "guardrail")
        .annotate(number=Count("pk"), waiting=Count("pk", filter=Q(judged=False)))
    )
    hits: dict[UUID, dict[str, int]] = {}
    waiting: dict[UUID, int] = {}
    for row in counted:
        hits.setdefault(row["session_id"], {})[row["guardrail"]] = row["number"]
        waiting[row["session_id"]] = waiting.get(row["session_id"], 0) + row["waiting"]
    return [Line(one, Hits(hits.get(one.pk, {}), waiting.get(one.pk, 0))) for one in sessions]


@dataclass(frozen=True, slots=True)
class Choices:
    """What the fields suggest. Names come from policies, keys and providers, never from walking the sessions."""

    policies: Sequence[str]
    guardrails: Sequence[str]
    clients: Sequence[tuple[str, str]]


def choices() -> Choices:
    """Three queries."""
    versions = PolicyVersion.objects.order_by("policy__name", "-number").values_list("policy__name", "number")
    active = Policy.objects.exclude(active_version=None).select_related("active_version")
    names: set[str] = set()
    for policy in active:
        if policy.active_version is not None:
            names |= set(_guardrails(policy.active_version))
    keys = ApiKey.objects.order_by("name").values_list("prefix", "name")
    return Choices([f"{name} v{number}" for name, number in versions[:CHOICES]], sorted(names), list(keys[:CHOICES]))


def _guardrails(version: PolicyVersion) -> list[str]:
    try:
        listed = version.document.get("guardrails")
    except (ValueError, KeyError, TypeError):
        return []  # a version that was tampered with suggests nothing; the page of its sessions says so
    entries = listed if isinstance(listed, list) else []
    return [str(one["name"]) for one in entries if isinstance(one, dict) and "name" in one]
