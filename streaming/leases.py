"""Who makes a deferred check: a worker takes its row on lease, and gives it back when it has to wait.

Exists apart from what a worker does with it. Protects two rules: a check is made by one worker at a time, because the
row is taken by a conditional UPDATE that counts attempts; and a guardrail of a policy has no more checks under way than
it may, which costs those that wait no attempt and no second task. When a check was taken, and since when it waits, are
times of the database: the sweep compares them with the database's clock, and a worker's own may go wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import connection, transaction
from django.db.models import F
from django.db.models.functions import Now

from guardrails.policy import Guardrail
from streaming.checks import Checked
from streaming.conf import conf
from streaming.database_clock import database_now
from streaming.models import DeferredCheck, place_of

LEASES = 7_306
"""Advisory locks of PostgreSQL are numbers that an application chooses; this one stands for leases."""

CheckState = DeferredCheck.State


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
    part: int = 0
    conversed: bool = False
    shown: int | None = None

    @property
    def place(self) -> str:
        """As ``DeferredCheck.place``."""
        return place_of(self.applies_to, self.part)


class Busy:
    """The check's guardrail has, in its policy, all the checks under way that it may have."""


def may_pass(guardrail: Guardrail, checked: Checked, attempt: int) -> bool:
    """Did it fail on the way to somebody else, and are there attempts left? Where nobody was asked there always are.

    That ends as well: nobody waits for a check for ever, and then the sweep ends it. An answer out of form is final, as
    it is in a stream: a text could have itself judged three times.
    """
    if checked.circuit_open:
        return True
    failed = checked.verdict.error is not None and not (checked.permanent or checked.answered)
    return failed and guardrail.impl.performance.network and attempt < conf().check_attempts


def give_back(*, lease: Lease, words: str, spent: bool = True) -> bool:
    """Let the check wait again, with why. False when the lease is not held any more.

    Its attempts stay counted, but for one that was not ``spent`` because nobody was asked.
    """
    rows = DeferredCheck.objects.filter(pk=lease.check_id, state=CheckState.CHECKING, attempts=lease.attempt)
    attempts = lease.attempt if spent else lease.attempt - 1
    return bool(rows.update(state=CheckState.WAITING, queued_at=Now(), attempts=attempts, error=words))


def take_lease(*, check_id: int) -> Lease | Busy | None:
    """Mark a waiting check as being made; None when it does not wait, or when another task has it in hand.

    Leases that have run out do not count as under way. Workers that look at the same moment look one after another.
    ``Busy``: the caller queues it again after ``check_again_s``. Until then its row says so: ``queued_at`` lies ahead,
    another task of the same check ends here, and the sweep does not take it for forgotten.
    """
    with transaction.atomic():
        row = DeferredCheck.objects.filter(pk=check_id).select_related("session").first()
        if row is None or row.state != CheckState.WAITING:
            return None
        one_at_a_time(row.session.policy_name, row.guardrail)
        under_way = DeferredCheck.objects.filter(
            state=CheckState.CHECKING,
            started_at__gte=database_now() - timedelta(seconds=conf().check_lease_s),
            guardrail=row.guardrail,
            session__policy_name=row.session.policy_name,
        )
        if under_way.exclude(pk=check_id).count() >= conf().checks_at_once:
            again_at = Now() + timedelta(seconds=conf().check_again_s)
            nobody_else = DeferredCheck.objects.filter(pk=check_id, state=CheckState.WAITING, queued_at__lte=Now())
            return Busy() if nobody_else.update(queued_at=again_at) else None
        taken = DeferredCheck.objects.filter(pk=check_id, state=CheckState.WAITING).update(
            state=CheckState.CHECKING, attempts=F("attempts") + 1, started_at=Now()
        )
        if not taken:
            return None
        row.refresh_from_db(fields=["attempts", "sealed_text"])
    return _lease(row)


def held(*, session_id: str) -> list[Lease]:
    """The checks that the process which made the answer has in hand itself (``sessions.DeferredText``)."""
    rows = DeferredCheck.objects.filter(session__pk=session_id, state=CheckState.CHECKING, sealed_text=None)
    return [_lease(row) for row in rows.select_related("session").order_by("id")]


def _lease(row: DeferredCheck) -> Lease:
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
        part=row.part,
        conversed=row.conversed,
        shown=row.shown,
    )


def one_at_a_time(policy: str, guardrail: str) -> None:
    """Until the transaction is over nobody else counts this guardrail's checks. A file has one writer anyway."""
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s, hashtext(%s))", [LEASES, f"{policy}/{guardrail}"])
