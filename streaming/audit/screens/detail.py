"""One session as the page tells it: its text, what was found, how long it took, and whether all of it is as written.

Exists so that the template only writes down. Protects two rules: what is said of the record is verified when it is
said, for this session alone and at its cost; and a text is lengths and placeholders until somebody has said why they
look (``streaming.audit.people``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from guardrails.loading import PolicyUnavailable, verified_document
from guardrails.models import PolicyVersion
from streaming import stops
from streaming.audit.chain import Entry, Fault
from streaming.audit.rows import finding_digest
from streaming.audit.screens.overlay import Hit, Overlay, overlay
from streaming.audit.verify import one_moment, session_faults
from streaming.models import AuditEntry, AuditSession, DeferredCheck, Finding, Message, Review
from streaming.presentation import FindingView, milliseconds, outcome_words, state_words, whole_number
from streaming.timeline import TimelineView

CHANNELS = {"prompt": ("prompt",), "answer": ("text", "response")}
"""Whose places are places of which stored text."""
ENTRIES_SHOWN = 200
FINDINGS_SHOWN = 1_000


@dataclass(frozen=True, slots=True)
class Judged:
    """A finding with what was said of it, and whether its row is as it was sealed."""

    finding: Finding
    view: FindingView
    reviews: Sequence[Review]
    altered: bool = False

    @property
    def newest(self) -> Review | None:
        """The one that counts."""
        return self.reviews[-1] if self.reviews else None


@dataclass(frozen=True, slots=True)
class TextView:
    """Prompt or answer: in runs, hidden or shown."""

    name: str
    stored: bool
    chars: int
    shown: bool
    over: Overlay


@dataclass(frozen=True, slots=True)
class Cost:
    """What a guardrail did and took in this session."""

    name: str
    checks: int
    hits: int
    errors: int
    total: str
    each: str


@dataclass(frozen=True, slots=True)
class Signature:
    """Whether the version that the session ran under is there, signed and as it was signed, now."""

    good: bool
    words: str
    version: PolicyVersion | None = None


@dataclass(frozen=True, slots=True)
class Chain:
    """The entries of a session and what is wrong with them."""

    entries: Sequence[Entry]
    faults: Sequence[Fault]

    @property
    def bad(self) -> frozenset[int]:
        """Numbers of the entries that a fault points at."""
        return frozenset(fault.seq for fault in self.faults)


@dataclass(frozen=True, slots=True)
class SessionView:
    """Everything on the page of a session."""

    session: AuditSession
    texts: Sequence[TextView]
    findings: Sequence[Judged]
    more_findings: int
    timeline: TimelineView | None
    costs: Sequence[Cost]
    signature: Signature
    deferred: Sequence[DeferredCheck]
    chain: Chain

    @property
    def state(self) -> str:
        """In words."""
        return state_words(self.session.state, self.session.outcome)

    @property
    def outcome(self) -> str:
        """In words."""
        return outcome_words(self.session.outcome)

    @property
    def stop_reason(self) -> str:
        """Why the provider ended the answer, as it said; empty: it did not say."""
        answer = self.session.answer
        return str(answer.metadata.get("stop_reason") or "") if answer is not None else ""

    @property
    def cut(self) -> str:
        """Why the answer is not complete, in words; empty: nothing says so."""
        return stops.cut(self.stop_reason or "stop")


def session_view(session: AuditSession, revealed: Mapping[str, str] | None = None) -> SessionView:
    """``session`` with prompt and answer selected. ``revealed``: texts that the log says were looked at just now."""
    with one_moment():
        entries, faults = session_faults(session)
        rows = list(session.findings.order_by("n").prefetch_related("reviews")[:FINDINGS_SHOWN])
        number = len(rows) if len(rows) < FINDINGS_SHOWN else session.findings.count()
        sealed = _sealed(entries)
        deferred = list(session.deferred_checks.order_by("id"))
    return SessionView(
        session=session,
        texts=_texts(session, rows, revealed),
        findings=[_judged(row, sealed) for row in rows],
        more_findings=number - len(rows),
        timeline=TimelineView.of(session.timing) if "calls" in session.timing else None,
        costs=_costs(session.timing),
        signature=signature_of(session),
        deferred=deferred,
        chain=Chain(entries[-ENTRIES_SHOWN:], faults),
    )


def _texts(session: AuditSession, findings: Sequence[Finding], revealed: Mapping[str, str] | None) -> list[TextView]:
    """Prompt and answer. What was checked for a client stands in the answer's place, also where it is a prompt."""
    looked = frozenset(revealed or ())
    answer = session.answer
    if session.prompt is None and answer is not None and answer.role == Message.Role.USER:
        return [_text("prompt", answer, findings, shown="answer" in looked)]
    texts = (("prompt", session.prompt), ("answer", answer))
    return [_text(name, message, findings, shown=name in looked) for name, message in texts]


def _text(name: str, message: Message | None, findings: Sequence[Finding], *, shown: bool) -> TextView:
    content = "" if message is None else message.content
    metadata = {} if message is None else message.metadata
    hits = [_hit(finding) for finding in findings if finding.channel in CHANNELS[name]]
    over = overlay(content, _pairs(metadata.get("redactions")), hits)
    return TextView(name, bool(content), len(content), shown, over)


def _hit(finding: Finding) -> Hit:
    hidden = finding.mode == "BLOCK" and finding.action in ("redact", "mask")
    return Hit(finding.n, finding.start, finding.end, hidden)


def _pairs(value: object) -> list[tuple[int, str]]:
    found = value if isinstance(value, list) else []
    return [
        (one[0], str(one[1]))
        for one in found
        if isinstance(one, list | tuple) and len(one) == 2 and isinstance(one[0], int) and one[0] >= 0
    ]


def _sealed(entries: Sequence[Entry]) -> frozenset[str] | None:
    """What the log says of findings' rows, those that came late too; None where it does not say that it is all.

    A row's digest holds its session and number, so a row is as it was written if its digest is among them, whatever
    was added or deleted beside it.
    """
    said: list[object] = []
    whole = False
    for entry in entries:
        if entry.kind == AuditEntry.Kind.SEALED:
            listed = entry.body.get("findings")
            whole = isinstance(listed, list)
            said += listed if isinstance(listed, list) else []
        elif entry.kind == AuditEntry.Kind.FINDING:
            said.append(entry.body.get("row"))
    return frozenset(one for one in said if isinstance(one, str)) if whole else None


def _judged(row: Finding, sealed: frozenset[str] | None) -> Judged:
    values = {one.name: getattr(row, one.name) for one in Finding._meta.concrete_fields}
    reviews = sorted(row.reviews.all(), key=lambda review: review.version)
    altered = sealed is not None and finding_digest(row) not in sealed
    return Judged(row, FindingView.of(values), reviews, altered)


def _costs(timing: Mapping[str, object]) -> list[Cost]:
    totals = timing.get("guardrails") if isinstance(timing, Mapping) else None
    return [
        _cost(str(name), one)
        for name, one in sorted(totals.items() if isinstance(totals, Mapping) else ())
        if isinstance(one, Mapping)
    ]


def _cost(name: str, one: Mapping[str, object]) -> Cost:
    checks, ms = whole_number(one.get("checks")), one.get("ms")
    took = float(ms) if isinstance(ms, int | float) else None
    return Cost(
        name=name,
        checks=checks,
        hits=whole_number(one.get("hits")),
        errors=whole_number(one.get("errors")),
        total=milliseconds(took if checks else None),
        each=milliseconds(took / checks if took is not None and checks else None),
    )


def signature_of(session: AuditSession) -> Signature:
    """Of the version that the session names by its digest; verified with the keys that are trusted now."""
    if not session.policy_digest:
        return Signature(good=False, words="The session names no version.")
    version = PolicyVersion.objects.select_related("policy").filter(digest=session.policy_digest).first()
    if version is None:
        return Signature(good=False, words="No version with this digest is stored.")
    if (version.policy.name, version.number) != (session.policy_name, session.policy_version):
        return Signature(good=False, words=f"The digest is that of {version}, which is another one.", version=version)
    try:
        verified_document(version)
    except PolicyUnavailable as error:
        return Signature(good=False, words=str(error), version=version)
    return Signature(good=True, words="signed, and unaltered since", version=version)
