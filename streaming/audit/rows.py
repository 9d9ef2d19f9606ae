"""A stored row as the canonical JSON that the audit log commits to.

Exists so that writing and verifying cannot disagree about a field. Protects the commitment: every column that says
what happened is in it; what only serves the running (heartbeats, last seq), or repeats what ``timing`` says
so that it can be counted (``streaming.pace``), is not.
"""

from __future__ import annotations

from datetime import UTC, datetime

from streaming.audit.chain import digest
from streaming.models import AuditSession, Finding

SESSION_FIELDS = (
    "origin", "state", "outcome", "would_have", "monitor", "policy_name", "policy_version", "policy_digest",
    "provider", "model", "streaming", "fallback", "client", "correlation_id", "started_at", "answered_at", "ended_at",
    "chars_in", "released", "withheld", "exposed", "timing", "error_code", "error",
)  # fmt: skip
SHADOW_FIELDS = ("shadow_version", "shadow_comparison", "shadow_would_have", "shadow")
"""Left out where they are empty: a session without a shadow is committed to as it always was."""
FINDING_FIELDS = (
    "n", "guardrail", "kind", "rule", "category", "channel", "start", "end", "score", "mode", "action", "would_have",
    "exposed",
)  # fmt: skip


def stamp(moment: datetime) -> str:
    """UTC, ISO 8601, always with microseconds."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def opened_body(session: AuditSession) -> dict[str, object]:
    """What an ``opened`` entry says of a session; none of it changes until the session is sealed."""
    return {
        "policy": session.policy_name,
        "version": session.policy_version,
        "digest": session.policy_digest,
        "origin": session.origin,
        "client": session.client,
    }


def session_digest(session: AuditSession) -> str:
    """Of the columns above, and the row's id."""
    shadow = {name: value for name in SHADOW_FIELDS if (value := getattr(session, name))}
    row = {"id": str(session.pk)} | {name: _plain(getattr(session, name)) for name in SESSION_FIELDS}
    return digest(row | shadow)


def finding_digest(finding: Finding) -> str:
    """Of the columns above, and the session's id."""
    return digest(
        {"session": str(finding.session_id)} | {name: _plain(getattr(finding, name)) for name in FINDING_FIELDS}
    )


def _plain(value: object) -> object:
    return stamp(value) if isinstance(value, datetime) else value
