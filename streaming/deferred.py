"""Deferred checks: what a worker does with an outbox row, and what happens to rows that nobody finishes.

Exists apart from the tasks so that it can be driven without Celery. Protects "each check ends once": a row is leased
by a conditional UPDATE that counts attempts, and a result is stored only under the lease that it was made under, so
a worker that was taken for dead and comes back late changes nothing. The raw text is wiped with the result.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import structlog
from channels.db import database_sync_to_async
from django.db import connection, transaction
from django.db.models import F, Max
from django.utils import timezone

from guardrails.findings import Action, AppliesTo, Finding, Mode, Verdict, would_have
from guardrails.kinds.base import CheckRequest, Turn
from guardrails.performance import Checkpoint
from guardrails.policy import Guardrail, Policy
from guardrails.selectors import PolicyUnavailable, policy_by_digest
from streaming import models, sessions, totals
from streaming.aside import HIDES, SHARE_OF_LEASE, Judged, judge_sentences, shown_of
from streaming.audit import services as audit
from streaming.checks import Checked, run_check, state_after
from streaming.conf import conf
from streaming.core.events import FindingEvent, GuardrailStatus, ServerEvent, StateChange
from streaming.log import LogUnavailable, SessionLog
from streaming.models import AuditSession, DeferredCheck
from streaming.sealed import SealBroken, unseal

logger = structlog.get_logger(__name__)

SEQ_RESERVE = 1_000
"""The stored seq lags behind the log; after a lost log, counting goes on this much above it."""

FIRST_WAIT_S, LONGEST_WAIT_S, JITTER_S = 1.0, 10.0, 1.0
"""Seconds from a failed attempt to the next one: twice as many each time, with a random part so that they spread."""

LEASES = 7_306
"""Advisory locks of PostgreSQL are numbers that an application chooses; this one stands for leases."""

CheckState = DeferredCheck.State
Again = Callable[[int, float], object]
_RANK = ["waiting", "checking", "would_block", "hit", "expired", "timeout", "error", "passed"]


@dataclass(frozen=True, slots=True)
class Lease:
    """A check that this worker may make now."""

    check_id: int
    session_id: str
    guardrail: str
    applies_to: str
    attempt: int
    sealed: bytes
    policy_digest: str
    monitor: bool
    started_at: datetime
    last_seq: int
    correlation_id: str = ""
    sentences: bool = False


@dataclass(frozen=True, slots=True)
class Recorded:
    """What storing a result led to. ``completed``: this call took the session to COMPLETE."""

    findings: tuple[Finding, ...]
    status: GuardrailStatus
    completed: bool
    outcome: str


async def run_deferred(
    check_id: int, log: SessionLog, clock: Callable[[], float] = time.monotonic, again: Again | None = None
) -> bool:
    """Make one check and tell the readers. False when there was nothing to do (done, or leased by another worker).

    ``again`` queues the check once more after some seconds: when its guardrail has all the checks under way that it
    may have, when one that goes over the network failed in a way that may pass, and while its breaker is open, which
    costs no attempt. Where nothing can be queued an open breaker is a failure like any other.
    """
    lease = await database_sync_to_async(take_lease)(check_id=check_id)
    if isinstance(lease, Busy):
        if again is not None:
            again(check_id, conf().check_again_s)
        return False
    if lease is None:
        return False
    # what the worker logs leads back to the call that asked for the answer
    with structlog.contextvars.bound_contextvars(correlation_id=lease.correlation_id, session=lease.session_id):
        return await _make(lease, log, clock, again)


async def _make(lease: Lease, log: SessionLog, clock: Callable[[], float], again: Again | None) -> bool:
    await _tell(log, lease, [GuardrailStatus(lease.guardrail, Checkpoint.DEFERRED.value, "checking")])
    guardrail: Guardrail | None = None
    text = ""
    try:
        policy: Policy = await database_sync_to_async(policy_by_digest)(lease.policy_digest)
        # A guardrail that was demoted since it was declared runs here as well, with the time that checks have here.
        where = Checkpoint.BATCHED if lease.sentences else Checkpoint.DEFERRED
        guardrail = policy.demoted({lease.guardrail: where}).guardrail(lease.guardrail)
        # A check that outlived its lease would be made by two workers and believed from neither.
        limit_s = min(guardrail.time_limit_s, conf().check_lease_s * SHARE_OF_LEASE)
        guardrail = replace(guardrail, time_limit_s=limit_s)
        text = unseal(lease.sealed, context=sessions.seal_context(lease.session_id, lease.guardrail, lease.applies_to))
    except (PolicyUnavailable, KeyError, SealBroken) as error:
        judged = Judged(Checked(Verdict(hit=False, error=f"the check cannot be made: {error}"), 0.0))
    else:
        turns = await database_sync_to_async(_conversation)(lease) if guardrail.impl.wants_conversation else ()
        judged = await _judged(policy, guardrail, text, lease, turns, clock)
        if again is not None and _may_pass(guardrail, judged.checked, lease):
            words = f"{judged.checked.verdict.error}; trying again"
            spent = not judged.checked.circuit_open
            if await database_sync_to_async(give_back)(lease=lease, words=words, spent=spent):
                status = GuardrailStatus(lease.guardrail, Checkpoint.DEFERRED.value, "waiting", error=words)
                await _tell(log, lease, [status])
                again(lease.check_id, wait_s(lease.attempt) if spent else LONGEST_WAIT_S)
            return False
    recorded = await database_sync_to_async(record_result)(
        lease=lease, guardrail=guardrail, checked=judged.checked, judged_chars=len(text), judged=judged
    )
    if recorded is None:
        return False
    events: list[ServerEvent] = [FindingEvent(finding) for finding in recorded.findings]
    events.append(recorded.status)
    if recorded.completed:
        events.append(StateChange(AuditSession.State.COMPLETE.value, recorded.outcome))
    await _tell(log, lease, events)
    return True


async def _judged(
    policy: Policy, guardrail: Guardrail, text: str, lease: Lease, turns: tuple[Turn, ...], clock: Callable[[], float]
) -> Judged:
    applies_to = AppliesTo(lease.applies_to)
    if lease.sentences:
        limit_s = conf().check_lease_s * SHARE_OF_LEASE
        return await judge_sentences(policy, guardrail, text, applies_to, turns=turns, limit_s=limit_s, clock=clock)
    request = CheckRequest(text, applies_to, turns, guardrail.time_limit_s)
    return Judged(await run_check(guardrail, request, clock))


async def _tell(log: SessionLog, lease: Lease, events: list[ServerEvent]) -> None:
    await tell(log, lease.session_id, lease.started_at, lease.last_seq, events)


async def tell(
    log: SessionLog, session_id: str, started_at: datetime, last_seq: int, events: list[ServerEvent]
) -> None:
    """Append from outside the pump; where the log is away only the early notice is lost, the database says it all."""
    ms = round((timezone.now() - started_at).total_seconds() * 1000)
    try:
        payloads = [event.payload() for event in events]
        # The time is in it so that a log that is lost a second time does not count from the same seq again.
        await log.append(session_id, payloads, ms=ms, floor=last_seq + SEQ_RESERVE + ms, known=max(1, last_seq))
    except LogUnavailable:
        logger.warning("readers_not_told", session=session_id)


class Busy:
    """The check's guardrail has all the checks under way that it may have."""


def _may_pass(guardrail: Guardrail, checked: Checked, lease: Lease) -> bool:
    """Did it fail on the way to somebody else, and are there attempts left? Where nobody was asked there always are.

    That ends as well: a session waits for its checks for so long, and then the sweep lets them expire.
    """
    if checked.circuit_open:
        return True
    failed = checked.verdict.error is not None and not checked.permanent
    return failed and guardrail.impl.performance.network and lease.attempt < conf().check_attempts


def wait_s(attempt: int, chance: Callable[[], float] = random.random) -> float:
    """Seconds from the failure of the ``attempt``-th attempt (from 1) to the next one; ``chance`` gives 0..1."""
    return min(FIRST_WAIT_S * 2.0 ** (attempt - 1) + JITTER_S * chance(), LONGEST_WAIT_S)


def give_back(*, lease: Lease, words: str, spent: bool = True) -> bool:
    """Let the check wait again, with why. False when the lease is not held any more.

    Its attempts stay counted, but for one that was not ``spent`` because nobody was asked.
    """
    rows = DeferredCheck.objects.filter(pk=lease.check_id, state=CheckState.CHECKING, attempts=lease.attempt)
    attempts = lease.attempt if spent else lease.attempt - 1
    return bool(rows.update(state=CheckState.WAITING, queued_at=timezone.now(), attempts=attempts, error=words))


def take_lease(*, check_id: int) -> Lease | Busy | None:
    """Mark an open check as being made; None when it is not open or another worker holds it.

    Leases that have run out do not count as under way. Workers that look at the same moment look one after another.
    """
    with transaction.atomic():
        name = DeferredCheck.objects.filter(pk=check_id).values_list("guardrail", flat=True).first()
        if name is None:
            return None
        _one_at_a_time(name)
        held_since = timezone.now() - timedelta(seconds=conf().check_lease_s)
        under_way = DeferredCheck.objects.filter(state=CheckState.CHECKING, started_at__gte=held_since, guardrail=name)
        if under_way.exclude(pk=check_id).count() >= conf().checks_at_once:
            return Busy()
        taken = DeferredCheck.objects.filter(pk=check_id, state=CheckState.WAITING).update(
            state=CheckState.CHECKING, attempts=F("attempts") + 1, started_at=timezone.now()
        )
        if not taken:
            return None
        row = DeferredCheck.objects.select_related("session").get(pk=check_id)
    return Lease(
        check_id=row.pk,
        session_id=str(row.session_id),
        guardrail=row.guardrail,
        applies_to=row.applies_to,
        attempt=row.attempts,
        sealed=bytes(row.sealed_text or b""),
        policy_digest=row.session.policy_digest,
        monitor=row.session.monitor,
        started_at=row.session.started_at,
        last_seq=row.session.last_seq,
        correlation_id=row.session.correlation_id,
        sentences=row.sentences,
    )


def _one_at_a_time(guardrail: str) -> None:
    """Until the transaction is over nobody else counts this guardrail's checks. A file has one writer anyway."""
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s, hashtext(%s))", [LEASES, guardrail])


def record_result(
    *,
    lease: Lease,
    guardrail: Guardrail | None,
    checked: Checked,
    judged_chars: int,
    judged: Judged | None = None,
) -> Recorded | None:
    """Store a verdict, wipe the text, and complete the session if this was its last open check, in one transaction.

    ``judged``: what was found in single sentences; without that a hit is one of the whole text. None when the lease is
    not held any more: then somebody else's result stands and nothing is changed, but for a hit of a check that has
    expired meanwhile (``_late_hit``).
    """
    verdict, found = checked.verdict, judged.findings if judged is not None else ()
    state = CheckState(_check_state(guardrail, checked))
    # Not the reason: it is asked for because judges judge better with one, and it may quote what is hidden.
    result: dict[str, object] = {
        "hit": verdict.hit or bool(found), "score": verdict.score, "category": verdict.category,
        "took_ms": round(checked.took_ms, 3),
    }  # fmt: skip
    with transaction.atomic():
        session = AuditSession.objects.select_for_update().get(pk=lease.session_id)
        stored = DeferredCheck.objects.filter(
            pk=lease.check_id, state=CheckState.CHECKING, attempts=lease.attempt
        ).update(
            state=state,
            finished_at=timezone.now(),
            sealed_text=None,
            error=verdict.error or "",
            result=result,
        )
        if not stored:
            if found or (verdict.error is None and verdict.hit):
                _late_hit(session, lease, _findings(session, lease, guardrail, verdict, judged_chars, found), result)
            return None
        findings = _findings(session, lease, guardrail, verdict, judged_chars, found)
        for finding in findings:
            sessions.finding_row(lease.session_id, finding).save(force_insert=True)
        worst = sessions.worst_would_have(findings)
        if session.would_have != "blocked" and worst:
            AuditSession.objects.filter(pk=session.pk).update(would_have=worst)
        _count(session, findings, judged.statuses if judged is not None else ())
        status = _panel_status(lease, checked.took_ms)
        completed = sessions.complete_if_done(lease.session_id)
    return Recorded(findings, status, completed, session.outcome)


def _count(session: AuditSession, findings: Sequence[Finding], statuses: Sequence[GuardrailStatus]) -> None:
    """Rows of findings count in the session's record, whoever made them.

    Sentences do as if they had been asked about while the answer was made.
    """
    if not findings and not statuses:
        return
    timing: dict[str, Any] = session.timing  # as a call has written it
    counted = {"audit_rows": len(findings)}
    exposed = session.exposed
    if statuses:
        counted["checks"] = totals.add(timing.setdefault("guardrails", {}), findings=findings, statuses=statuses)
        exposed += sum(finding.exposed for finding in findings)
    for name, more in counted.items():
        timing[name] = timing.get(name, 0) + more
    AuditSession.objects.filter(pk=session.pk).update(timing=timing, exposed=exposed)


def _late_hit(session: AuditSession, lease: Lease, findings: Sequence[Finding], result: dict[str, object]) -> None:
    """The session did not wait for this hit, and its record is sealed; each finding is told by an entry of its own.

    The check stays "expired": that is what its readers saw.
    """
    expired = DeferredCheck.objects.filter(
        pk=lease.check_id, state=CheckState.EXPIRED, attempts=lease.attempt, result__isnull=True
    )
    if findings and expired.update(result=result):
        check = DeferredCheck.objects.get(pk=lease.check_id)
        for finding in findings:
            row = sessions.finding_row(lease.session_id, finding)
            row.save(force_insert=True)
            audit.late_finding(finding=row, check=check)
        logger.warning("late_finding", session=str(session.pk), guardrail=lease.guardrail)


def _check_state(guardrail: Guardrail | None, checked: Checked) -> str:
    if guardrail is None or checked.circuit_open:  # the row's error says which
        return CheckState.ERROR.value
    return state_after(guardrail, checked)


def _findings(
    session: AuditSession,
    lease: Lease,
    guardrail: Guardrail | None,
    verdict: Verdict,
    judged_chars: int,
    found: Sequence[Finding],
) -> tuple[Finding, ...]:
    """What is to be stored, behind what the session has already; of what was shown it is said how much."""
    last = session.findings.aggregate(last=Max("n"))["last"] or 0
    if not found:
        hit = guardrail is not None and verdict.error is None and verdict.hit
        return (_whole(session, lease, guardrail, verdict, judged_chars, last + 1),) if hit and guardrail else ()
    rows = session.findings.filter(mode=Mode.BLOCK.value, action__in=HIDES, channel="text")
    hidden = [(row.start, row.end) for row in rows if row.action != Action.BLOCK.value]
    prompt = lease.applies_to == AppliesTo.PROMPT.value
    return tuple(
        replace(finding, n=last + n, exposed=0 if prompt else shown_of(finding, hidden, session.released))
        for n, finding in enumerate(found, start=1)
    )


def _whole(
    session: AuditSession, lease: Lease, guardrail: Guardrail, verdict: Verdict, judged_chars: int, n: int
) -> Finding:
    """A deferred hit covers the whole text; what of it was shown is what it exposed."""
    prompt = lease.applies_to == AppliesTo.PROMPT.value
    mode = Mode.MONITOR if lease.monitor else guardrail.mode
    return Finding(
        guardrail=guardrail.name,
        kind=guardrail.kind,
        rule=verdict.category or guardrail.kind,
        category=verdict.category,
        start=0,
        end=judged_chars,
        mode=mode,
        action=guardrail.action,
        channel="prompt" if prompt else "text",
        score=verdict.score,
        exposed=0 if prompt else min(session.released, judged_chars),
        n=n,
        would_have=would_have(mode, guardrail.action),
    )


def _panel_status(lease: Lease, took_ms: float) -> GuardrailStatus:
    """One guardrail may judge prompt and answer; its one line says the worst of what is known of both."""
    rows = DeferredCheck.objects.filter(session__pk=lease.session_id, guardrail=lease.guardrail)
    worst = min(rows, key=lambda row: _RANK.index(row.state))
    took = round(took_ms, 3)
    return GuardrailStatus(lease.guardrail, Checkpoint.DEFERRED.value, worst.state, took, took, worst.error or None)


def _conversation(lease: Lease) -> tuple[Turn, ...]:
    """Earlier messages, and for an answer its prompt; visible text only.

    A check has a message only in a conversation that it names, and a stream one alone: what is earlier is what was
    there when it began.
    """
    session = AuditSession.objects.select_related("prompt", "answer").get(pk=lease.session_id)
    until = session.prompt if lease.applies_to == AppliesTo.PROMPT.value else session.answer
    if session.conversation_id is None:
        return ()
    before = session.started_at if until is None else until.created
    earlier = models.Message.objects.filter(conversation_id=session.conversation_id, created__lt=before).order_by(
        "created"
    )
    return tuple(Turn(message.role, message.content) for message in earlier if message.content)
