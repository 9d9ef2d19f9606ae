"""Deferred checks: what a worker does with an outbox row, and what happens to rows that nobody finishes.

Exists apart from the tasks so that it can be driven without Celery. Protects "each check ends once": a row is leased
by a conditional UPDATE that counts attempts, and a result is stored only under the lease that it was made under, so
a worker that was taken for dead and comes back late changes nothing. The raw text is wiped with the result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import structlog
from channels.db import database_sync_to_async
from django.db import transaction
from django.db.models import Max, Q, QuerySet
from django.utils import timezone

from guardrails.findings import Action, AppliesTo, Finding, Mode, Verdict, would_have
from guardrails.kinds.base import CheckRequest, Turn
from guardrails.performance import Checkpoint
from guardrails.policy import Guardrail, Policy
from guardrails.selectors import PolicyUnavailable, policy_by_digest
from streaming import breakers, conversing, models, sessions, totals
from streaming.aside import HIDES, SHARE_OF_LEASE, Judged, judge_sentences, shown_of
from streaming.audit import services as audit
from streaming.checks import Checked, run_check, state_after, warned
from streaming.conf import conf
from streaming.core.events import FindingEvent, GuardrailStatus, ServerEvent, StateChange
from streaming.leases import Busy, Lease, give_back, may_pass, take_lease
from streaming.log import LogUnavailable, SessionLog
from streaming.models import AuditSession, DeferredCheck
from streaming.sealed import SealBroken, unseal
from streaming.shadow.late import reuse
from streaming.standing import line_of, lines_of, untold
from streaming.tries import LONGEST_WAIT_S, TRIES, wait_s

logger = structlog.get_logger(__name__)

__all__ = ["Again", "Busy", "Lease", "Recorded", "record_result", "run_deferred", "take_lease", "tell", "wait_s"]

SEQ_RESERVE = 1_000
"""The stored seq lags behind the log; after a lost log, counting goes on this much above it."""

CheckState = DeferredCheck.State
Again = Callable[[int, float], object]


@dataclass(frozen=True, slots=True)
class Recorded:
    """What storing a result led to. ``completed``: this call took the session to COMPLETE.

    ``others``: what is stored of the session's other checks then, of which a worker that died may have told nothing.
    """

    findings: tuple[Finding, ...]
    status: GuardrailStatus
    completed: bool
    outcome: str
    others: Sequence[ServerEvent] = ()


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
        text, turns = _opened(lease)
    except (PolicyUnavailable, KeyError, SealBroken) as error:
        judged = Judged(Checked(Verdict(hit=False, error=f"the check cannot be made: {error}"), 0.0))
    else:
        if not await _refused(guardrail):
            await _tell(log, lease, [GuardrailStatus(lease.guardrail, Checkpoint.DEFERRED.value, "checking")])
        if guardrail.impl.wants_conversation and not lease.conversed:
            turns = await database_sync_to_async(_conversation)(lease, guardrail)
        tries = TRIES if again is None else 1  # else it is queued again instead, and nobody waits here
        judged = await _judged(policy, guardrail, text, lease, turns, clock, tries)
        if not lease.sentences:  # each of those has been looked at by itself
            warned(guardrail, judged.checked)
        if again is not None and may_pass(guardrail, judged.checked, lease.attempt):
            words = f"{judged.checked.verdict.error}; trying again"
            spent = not judged.checked.circuit_open
            if await database_sync_to_async(give_back)(lease=lease, words=words, spent=spent):
                state = "waiting" if spent else "circuit_open"
                status = GuardrailStatus(lease.guardrail, Checkpoint.DEFERRED.value, state, error=words)
                await _tell(log, lease, [status])
                again(lease.check_id, wait_s(lease.attempt) if spent else LONGEST_WAIT_S)
            return False
    recorded = await database_sync_to_async(record_result)(
        lease=lease, guardrail=guardrail, checked=judged.checked, judged_chars=len(text), judged=judged
    )
    if recorded is None:
        return False
    await tell_recorded(log, lease, recorded)
    return True


async def tell_recorded(log: SessionLog, lease: Lease, recorded: Recorded) -> None:
    """Tell the readers what storing a result led to: its findings, its guardrail's line, and the session's end."""
    events: list[ServerEvent] = [FindingEvent(finding) for finding in recorded.findings]
    events.append(recorded.status)
    if recorded.completed:
        events += await untold(log, lease.session_id, recorded.others, after=lease.last_seq)
        events.append(StateChange(AuditSession.State.COMPLETE.value, recorded.outcome))
    await _tell(log, lease, events)


async def _refused(guardrail: Guardrail) -> bool:
    """Will nobody be asked, because the guardrail's circuit is open?"""
    return guardrail.impl.performance.network and await breakers.refuses(breakers.GUARDRAIL + guardrail.circuit)


async def _judged(
    policy: Policy,
    guardrail: Guardrail,
    text: str,
    lease: Lease,
    turns: tuple[Turn, ...],
    clock: Callable[[], float],
    tries: int,
) -> Judged:
    applies_to = AppliesTo(lease.applies_to)
    if lease.sentences:
        limit_s = conf().check_lease_s * SHARE_OF_LEASE
        return await judge_sentences(policy, guardrail, text, applies_to, turns=turns, limit_s=limit_s, clock=clock)
    request = CheckRequest(text, applies_to, turns, guardrail.time_limit_s)
    return Judged(await run_check(guardrail, request, clock, tries=tries))


async def _tell(log: SessionLog, lease: Lease, events: list[ServerEvent]) -> None:
    await tell(log, lease.session_id, lease.started_at, lease.last_seq, events)


async def tell(
    log: SessionLog, session_id: str, started_at: datetime, last_seq: int, events: list[ServerEvent]
) -> None:
    """Append from outside the pump; where the log is away only the early notice is lost, the database says it all."""
    ms = max(0, round((timezone.now() - started_at).total_seconds() * 1000))  # the clocks are two processes'
    try:
        payloads = [event.payload() for event in events]
        # The time is in it so that a log that is lost a second time does not count from the same seq again.
        await log.append(session_id, payloads, ms=ms, floor=last_seq + SEQ_RESERVE + ms, known=max(1, last_seq))
    except LogUnavailable:
        logger.warning("readers_not_told", session=session_id)


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
    expired meanwhile or was given up (``_late_hit``).
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
        stored = _still_ours(session, lease).update(
            state=state,
            finished_at=timezone.now(),
            sealed_text=None,
            error=verdict.error or "",
            result=result,
        )
        if not stored:
            if found or (verdict.error is None and verdict.hit):
                late = _findings(session, lease, guardrail, verdict, judged_chars, found, judged)
                _late_hit(session, lease, late, result)
            return None
        findings = _findings(session, lease, guardrail, verdict, judged_chars, found, judged)
        for finding in findings:
            sessions.finding_row(lease.session_id, finding).save(force_insert=True)
        worst = sessions.worst_would_have(findings)
        if session.would_have != "blocked" and worst:
            AuditSession.objects.filter(pk=session.pk).update(would_have=worst)
        if judged is not None and lease.sentences and guardrail is not None:
            # Sentences count as if they had been asked about while the answer was made.
            _count(session, findings, judged.statuses, exposed=sum(finding.exposed for finding in findings))
        else:
            took_ms = round(checked.took_ms, 3)
            _count(session, findings, [GuardrailStatus(lease.guardrail, Checkpoint.DEFERRED.value, state, took_ms)])
        if guardrail is not None and session.shadow:
            # Of sentences a shadow asks for itself.
            reuse(session, guardrail, findings, shared=not lease.sentences and verdict.error is None)
        status = _panel_status(lease, checked.took_ms)
        completed = sessions.complete_if_done(lease.session_id)
        others = lines_of(lease.session_id, but=lease.guardrail) if completed else ()
    return Recorded(findings, status, completed, session.outcome, others)


def _still_ours(session: AuditSession, lease: Lease) -> QuerySet[DeferredCheck]:
    """The check's row, if a result made under this lease may be stored: while nobody took it over.

    Of a check that the sweep has given up, because the last worker seemed dead, a result counts until the session is
    sealed: it says more than that there is none.
    """
    ours = DeferredCheck.objects.filter(pk=lease.check_id, attempts=lease.attempt)
    held = Q(state=CheckState.CHECKING)
    if session.state == AuditSession.State.MONITORING:
        held |= Q(state=CheckState.ERROR, result__isnull=True)
    return ours.filter(held)


def _count(
    session: AuditSession, findings: Sequence[Finding], statuses: Sequence[GuardrailStatus], *, exposed: int = 0
) -> None:
    """Rows of findings and questions asked count in the session's record, whoever made them."""
    if not findings and not statuses:
        return
    timing: dict[str, Any] = session.timing  # as a call has written it
    counted = {"audit_rows": len(findings)}
    if statuses:
        counted["checks"] = totals.add(timing.setdefault("guardrails", {}), findings=findings, statuses=statuses)
    for name, more in counted.items():
        timing[name] = timing.get(name, 0) + more
    AuditSession.objects.filter(pk=session.pk).update(timing=timing, exposed=session.exposed + exposed)


def _late_hit(session: AuditSession, lease: Lease, findings: Sequence[Finding], result: dict[str, object]) -> None:
    """The session did not wait for this hit, and its record is sealed; each finding is told by an entry of its own.

    The check stays "expired", or "error" where it was given up: that is what its readers saw.
    """
    ended = DeferredCheck.objects.filter(
        pk=lease.check_id,
        state__in=(CheckState.EXPIRED, CheckState.ERROR),
        attempts=lease.attempt,
        result__isnull=True,
    )
    if findings and ended.update(result=result):
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
    judged: Judged | None,
) -> tuple[Finding, ...]:
    """What is to be stored, behind what the session has already; of what was shown it is said how much."""
    last = session.findings.aggregate(last=Max("n"))["last"] or 0
    if not found:
        hit = guardrail is not None and verdict.error is None and verdict.hit
        return (_whole(session, lease, guardrail, verdict, judged_chars, last + 1),) if hit and guardrail else ()
    if judged is not None and judged.exposed:
        return tuple(replace(finding, n=last + n) for n, finding in enumerate(found, start=1))
    rows = session.findings.filter(mode=Mode.BLOCK.value, action__in=HIDES, channel="text")
    hidden = [(row.start, row.end) for row in rows if row.action != Action.BLOCK.value]
    prompt = lease.applies_to == AppliesTo.PROMPT.value
    # Of sentences that were asked about while the answer ran as well.
    known = set(session.findings.filter(guardrail=lease.guardrail).values_list("channel", "start", "end"))
    new = [finding for finding in found if (finding.channel, finding.start, finding.end) not in known]
    return tuple(
        replace(finding, n=last + n, exposed=0 if prompt else shown_of(finding, hidden, session.released))
        for n, finding in enumerate(new, start=1)
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
        channel=_channel(lease),
        score=verdict.score,
        exposed=0 if prompt else min(session.released if lease.shown is None else lease.shown, judged_chars),
        n=n,
        would_have=would_have(mode, guardrail.action),
    )


def _channel(lease: Lease) -> str:
    """Where the judged text was said. One beside prompt and answer is all that the session has of its kind."""
    if lease.shown is not None or lease.applies_to == AppliesTo.PROMPT.value:
        return lease.applies_to
    return f"choices[{lease.part}]" if lease.part else "text"


def _panel_status(lease: Lease, took_ms: float) -> GuardrailStatus:
    """One guardrail may judge prompt and answer; its one line says the worst of what is known of both."""
    rows = DeferredCheck.objects.filter(session__pk=lease.session_id, guardrail=lease.guardrail)
    return line_of(list(rows), round(took_ms, 3))


def _opened(lease: Lease) -> tuple[str, tuple[Turn, ...]]:
    """The text, and what was said before it where that came with it. Raises ``SealBroken``."""
    context = sessions.seal_context(lease.session_id, lease.guardrail, lease.place, conversed=lease.conversed)
    text = unseal(lease.sealed, context=context)
    return conversing.apart(text) if lease.conversed else (text, ())


def _conversation(lease: Lease, guardrail: Guardrail) -> tuple[Turn, ...]:
    """Earlier messages, and for an answer its prompt; visible text only.

    A check has a message only in a conversation that it names, and a stream one alone: what is earlier is what was
    there when it began.
    """
    session = AuditSession.objects.select_related("prompt", "answer").get(pk=lease.session_id)
    until = session.prompt if lease.applies_to == AppliesTo.PROMPT.value else session.answer
    if session.conversation_id is None:
        return ()
    before = session.started_at if until is None else until.created
    most = conversing.most_of(guardrail)
    rows = models.Message.objects.filter(conversation_id=session.conversation_id, created__lt=before)
    newest_first = rows.exclude(content="").order_by("-created")[: most + 1]
    return conversing.newest([Turn(message.role, message.content) for message in newest_first][::-1], most)
