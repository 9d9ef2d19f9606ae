"""A stored row as the canonical JSON that the audit log commits to.

Exists so that writing and verifying cannot disagree about a field. Protects the commitment: every column that says
what happened is in it, of the session, its findings, its deferred checks and the messages' rows; what only serves the
running (heartbeats, last seq) is not. A test names every column of these tables that is left out, and why.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime

from streaming.audit.chain import digest
from streaming.models import AuditSession, DeferredCheck, Finding, Message

SESSION_FIELDS = (
    "origin", "state", "outcome", "would_have", "monitor", "policy_name", "policy_version", "policy_digest",
    "provider", "model", "streaming", "fallback", "client", "correlation_id", "started_at", "answered_at", "ended_at",
    "chars_in", "released", "withheld", "exposed", "timing", "error_code", "error",
)  # fmt: skip
SHADOW_FIELDS = ("shadow_version", "shadow_comparison", "shadow_would_have", "shadow")
"""Left out where they are empty: a session without a shadow is committed to as it always was. Where verdicts of the
shadow were still out when the session was sealed, they have a digest of their own."""
BESIDE_FIELDS = ("conversation_id", "first_token_ms", "hold_ms", "tools_ok", "tools_failed")
"""Of the session too, in a digest of their own: logs that were begun without them stay whole."""
CHECK_FIELDS = (
    "guardrail", "applies_to", "state", "attempts", "queued_at", "started_at", "finished_at", "error", "digest",
    "sentences",
)  # fmt: skip
MESSAGE_FIELDS = ("role", "status", "provider", "model", "created")
KEPT_METADATA = frozenset(
    {"provider", "model", "usage", "in_reply_to", "streaming", "fallback", "stop_reason", "status"}
)
"""What of a message's metadata says nothing of its words: it outlives them."""
TEXT_REMOVED = "-"
"""In the place of a salt: the text is removed, and no key opens the metadata beside it, which waits for one."""
_EXACT = 2**53
"""Below it a whole number is itself, however it is stored."""
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


def session_digest(session: AuditSession, *, shadow: bool = True) -> str:
    """Of the columns above, and the row's id. ``shadow``: with those of the shadow."""
    beside = {name: value for name in SHADOW_FIELDS if (value := getattr(session, name)) and shadow}
    row = {"id": str(session.pk)} | {name: _plain(getattr(session, name)) for name in SESSION_FIELDS}
    return digest(row | beside)


def shadow_digest(session: AuditSession) -> str:
    """Of what the session's shadow came to."""
    return digest({"id": str(session.pk)} | {name: getattr(session, name) for name in SHADOW_FIELDS})


def shadow_is_over(session: AuditSession) -> bool:
    """Whether no verdict of its shadow is out that would come by a check of its own."""
    return not (isinstance(session.shadow, dict) and session.shadow.get("late"))


def finding_digest(finding: Finding) -> str:
    """Of the columns above, and the session's id."""
    return digest(
        {"session": str(finding.session_id)} | {name: _plain(getattr(finding, name)) for name in FINDING_FIELDS}
    )


def beside_digest(session: AuditSession) -> str:
    """Of the session's columns that its first digest does not have."""
    return digest({name: _word(getattr(session, name)) for name in BESIDE_FIELDS})


def check_name(check: DeferredCheck) -> str:
    """What the log calls a check of its session; no two have the same."""
    return f"{check.place}/{check.guardrail}"


def check_digest(check: DeferredCheck) -> str:
    """Of the columns above, the session's id, the verdict, and whether the text is wiped."""
    row = {name: _plain(getattr(check, name)) for name in CHECK_FIELDS}
    if check.shown is not None:  # so that rows without it are committed to as they always were
        row["shown"] = check.shown
    told = {"session": str(check.session_id), "result": stored_json(check.result), "wiped": check.sealed_text is None}
    return digest(row | told)


def message_digest(message: Message) -> str:
    """Of what a message's row says beside its words; the same after these are purged."""
    links = {"id": str(message.pk), "conversation": str(message.conversation_id)}
    answers = _word(message.in_reply_to_id)
    kept = {name: message.metadata[name] for name in KEPT_METADATA if name in message.metadata}
    row = {name: _plain(getattr(message, name)) for name in MESSAGE_FIELDS}
    return digest(row | links | {"in_reply_to": answers, "metadata": stored_json(kept)})


def stored_json(value: object) -> str:
    """Stored JSON as one text. It takes what canonical JSON does not, whole numbers of any size and half a surrogate
    pair: providers and tools say such things, and a session must end whatever they said."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _word(value: object) -> object:
    return value if value is None or isinstance(value, int) else str(value)


def _plain(value: object) -> object:
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        return int(value)  # RFC 8785 writes both in the same way, and whole numbers at a fifth of the time
    return stamp(value) if isinstance(value, datetime) else value
