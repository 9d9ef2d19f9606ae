"""What the demo page shows when it is served: the stored conversation, the lanes of a policy, what is still running.

Exists so that the view stays a view. Protects the rule that a reload shows the conversation as it was: messages,
chips, blocks, findings and deferred results come from the database alone, and what has not ended yet is named so
that the page can resume it from its log.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from django.db.models import Count, Prefetch
from django.http import HttpRequest

from guardrails import selectors as policies
from guardrails.findings import Mode
from guardrails.performance import Checkpoint
from guardrails.policy import Guardrail, Policy
from streaming import stops
from streaming.listing import listed_rows
from streaming.models import AuditSession, Conversation, DeferredCheck, Finding, Message
from streaming.presentation import (
    BlockView,
    FindingView,
    MessageView,
    PromptView,
    StatusView,
    ToolView,
    pieces,
    policy_words,
    usage_words,
)
from streaming.providers.reading import objects
from streaming.selectors import conversation_messages
from streaming.sessions import Visitor, conversation_of
from streaming.standing import line_of
from streaming.timeline import TimelineView
from streaming.verdicts import book

WHEN = {
    Checkpoint.IMMEDIATE: "every chunk, before it is shown",
    Checkpoint.BATCHED: "at sentence ends",
    Checkpoint.DEFERRED: "in a worker, after the answer",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One guardrail in its lane."""

    name: str
    does: str
    status: StatusView
    hits: int = 0


@dataclass(frozen=True, slots=True)
class Lane:
    """One checkpoint with its guardrails."""

    name: str
    when: str
    rows: Sequence[Row]


@dataclass(frozen=True, slots=True)
class StoredConversation:
    """A conversation as the database tells it. ``live``: ids of sessions that have not ended."""

    id: str = ""
    messages: Sequence[MessageView | PromptView] = ()
    live: Sequence[str] = ()
    latest: AuditSession | None = None
    hits: Mapping[str, int] = field(default_factory=dict)
    lines: Mapping[str, StatusView] = field(default_factory=dict)

    @property
    def timeline(self) -> TimelineView | None:
        """Of the latest answer, when it was stored."""
        return TimelineView.of(self.latest.timing) if self.latest is not None and self.latest.timing else None


def lanes(policy: Policy | None, stored: StoredConversation) -> list[Lane]:
    """The three lanes, with what the latest answer of the conversation left in them."""
    guardrails = policy.guardrails if policy is not None else ()
    return [
        Lane(
            name=checkpoint.value,
            when=WHEN[checkpoint],
            rows=[_row(guardrail, stored) for guardrail in guardrails if guardrail.checkpoint is checkpoint],
        )
        for checkpoint in Checkpoint
    ]


def _row(guardrail: Guardrail, stored: StoredConversation) -> Row:
    return Row(
        name=guardrail.name,
        does=_does(guardrail),
        status=stored.lines.get(guardrail.name) or _before(guardrail),
        hits=stored.hits.get(guardrail.name, 0),
    )


def _before(guardrail: Guardrail) -> StatusView:
    """The state of a guardrail that no stream has asked yet: idle, unless it is known to be slow."""
    measured = book(guardrail.impl)
    if guardrail.checkpoint is guardrail.impl.performance.checkpoint and not measured.slower_than_declared:
        return StatusView(guardrail.name)
    return StatusView(guardrail.name, state="slower_than_declared", p95_ms=measured.p95_ms)


def _does(guardrail: Guardrail) -> str:
    what = {"block": "blocks", "redact": "redacts", "mask": "redacts", "warn": "warns"}[guardrail.action.value]
    if guardrail.mode is Mode.DISABLED:
        what = "switched off"
    elif guardrail.mode is Mode.MONITOR:
        what = "records only"
    if guardrail.checkpoint is not guardrail.impl.performance.checkpoint:
        what += f", was {WHEN[guardrail.impl.performance.checkpoint].partition(',')[0]}"
    return what if guardrail.kind == guardrail.name else f"{guardrail.kind} · {what}"


def policy_infos() -> Sequence[policies.PolicyInfo]:
    """Policies to choose from, the demo's own first."""
    return sorted(policies.policy_choices(), key=lambda info: (info.name != "demo", info.name != "basic", info.name))


def conversation_for(request: HttpRequest, conversation_id: str) -> StoredConversation | None:
    """The conversation if this visitor may see it; None when there is no such one for them."""
    visitor = Visitor(
        user_id=request.user.pk if request.user.is_authenticated else None,
        session_key=request.session.session_key or "",
    )
    try:
        return stored_conversation(conversation_of(visitor, conversation_id))
    except Conversation.DoesNotExist:
        return None


def stored_conversation(conversation: Conversation) -> StoredConversation:
    """Everything that the page shows of a conversation, in five queries. Of each answer's findings the first, and those
    that blocked; of the others how many there are."""
    shown = listed_rows()
    messages = list(conversation_messages(str(conversation.pk)))
    sessions = list(
        AuditSession.objects.filter(conversation=conversation)
        .order_by("started_at")
        .prefetch_related(Prefetch("findings", Finding.objects.filter(shown)), "deferred_checks")
    )
    others = Finding.objects.filter(~shown, session__in=sessions).order_by("guardrail")
    more: dict[UUID, list[tuple[str, int]]] = {}
    for key, name, number in others.values_list("session_id", "guardrail").annotate(number=Count("pk")):
        more.setdefault(key, []).append((name, number))
    by_message = {key: session for session in sessions for key in (session.prompt_id, session.answer_id) if key}
    latest = sessions[-1] if sessions else None
    hits: dict[str, int] = {}
    lines: dict[str, StatusView] = {}
    if latest is not None:
        for finding in latest.findings.all():
            hits[finding.guardrail] = hits.get(finding.guardrail, 0) + 1
        for name, number in more.get(latest.pk, ()):
            hits[name] = hits.get(name, 0) + number
        lines = _lines(latest)
    return StoredConversation(
        id=str(conversation.pk),
        messages=[_message(message, by_message.get(message.pk), more) for message in messages],
        live=[str(s.pk) for s in sessions if s.state != AuditSession.State.COMPLETE],
        latest=latest,
        hits=hits,
        lines=lines,
    )


def _lines(session: AuditSession) -> dict[str, StatusView]:
    """What the panel's lines said last of this session: as the answer left them, then what workers came to."""
    told = session.timing.get("lines") if isinstance(session.timing, Mapping) else None
    kept = told.values() if isinstance(told, Mapping) else ()
    lines = {view.guardrail: view for line in kept if isinstance(line, Mapping) for view in [StatusView.of(line)]}
    checks: dict[str, list[DeferredCheck]] = {}
    for check in session.deferred_checks.all():
        checks.setdefault(check.guardrail, []).append(check)
    for name, rows in checks.items():
        ended = [(row.finished_at, row.pk, row.result or {}) for row in rows if row.finished_at is not None]
        took = max(ended)[2].get("took_ms") if ended else None
        lines[name] = StatusView.of(line_of(rows, took).payload())
    return lines


def _message(
    message: Message, session: AuditSession | None, more: Mapping[UUID, Sequence[tuple[str, int]]]
) -> MessageView | PromptView:
    metadata: dict[str, object] = message.metadata or {}
    text = pieces(message.content, metadata.get("redactions"))
    session_id = "" if session is None else str(session.pk)
    if message.role == Message.Role.USER:
        return PromptView(id=str(message.pk), session_id=session_id, pieces=text)
    usage = metadata.get("usage")
    findings = [] if session is None else list(session.findings.all())
    return MessageView(
        id=str(message.pk),
        session_id=session_id,
        provider=message.provider,
        model=message.model,
        policy=""
        if session is None
        else policy_words({"name": session.policy_name, "version": session.policy_version}),
        status=message.status,
        state="COMPLETE" if session is None else session.state,
        outcome="" if session is None else session.outcome,
        pieces=text,
        findings=[FindingView.of(_values(finding)) for finding in findings],
        more=() if session is None else more.get(session.pk, ()),
        block=_block(session, findings, metadata) if message.status == Message.Status.BLOCKED else None,
        error="" if session is None else session.error,
        usage=usage_words(usage if isinstance(usage, Mapping) else {}),
        fallback=str(metadata.get("fallback") or ""),
        cut=stops.cut(str(metadata.get("stop_reason") or "stop")),
        thinking=str(metadata.get("thinking") or ""),
        tools=[_tool(session_id, made) for made in objects(metadata.get("tools"))],
    )


def _tool(session_id: str, made: Mapping[str, object]) -> ToolView:
    words = (str(made.get(key) or "") for key in ("id", "name", "arguments", "result", "error"))
    return ToolView(session_id, *words)


def _values(finding: Finding) -> dict[str, object]:
    return {f.name: getattr(finding, f.name) for f in Finding._meta.concrete_fields}


def _block(session: AuditSession | None, findings: Sequence[Finding], metadata: Mapping[str, object]) -> BlockView:
    by = next((f for f in findings if f.action == "block" and f.mode == "BLOCK"), None)
    guardrail = "" if by is None else by.guardrail
    what = "" if by is None else (by.category or by.rule or by.kind).replace("_", " ")
    where = "prompt" if by is not None and by.channel == "prompt" else "answer"
    said = metadata.get("blocked")
    told: Mapping[str, object] = said if isinstance(said, Mapping) else {}
    withheld = told.get("withheld_chars")
    return BlockView(
        reason=str(told.get("reason") or f"The {where} was stopped by the guardrail “{guardrail}” ({what})."),
        guardrail=guardrail,
        withheld=withheld if isinstance(withheld, int) else 0 if session is None else session.withheld,
    )
