"""Verifying the whole audit log because somebody asked for it on the page.

Exists because a long log takes minutes and a request must not. A log of up to ``SMALL`` entries is verified at once, a
longer one by a worker, which says how far it is. Protects three rules: one verification runs at a time, and whoever
asks meanwhile joins it; one whose worker died is told from one that is slow, and can be asked for again; and what a
verification found stays, with who asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta
from time import monotonic

import structlog
from django.db import DatabaseError, IntegrityError, connection, transaction
from django.db.models import Q
from django.utils import timezone

from streaming.audit.verify import log_faults, one_moment
from streaming.models import AuditEntry, AuditHead, ChainCheck

logger = structlog.get_logger(__name__)
SMALL = 2_000
"""Entries that are verified while the page waits: well under a second."""
FAULTS_KEPT = 200
BEAT_S = 1.0
LOST_AFTER = timedelta(seconds=60)
"""A check that is made and has given no sign of life for so long has lost its worker."""
FORGOTTEN_AFTER = timedelta(hours=1)
"""A check that waits gives no sign of life; one that nobody has begun for so long, nobody will."""
State = ChainCheck.State


def latest() -> ChainCheck | None:
    """The one that was asked for last."""
    return ChainCheck.objects.order_by("-pk").first()


def is_open(check: ChainCheck, now: datetime | None = None) -> bool:
    """Whether it waits or runs, as far as anybody knows."""
    limit = FORGOTTEN_AFTER if check.state == State.WAITING else LOST_AFTER
    return check.place is not None and (now or timezone.now()) - check.heartbeat_at < limit


def log_length() -> int:
    """Entries in the log, as its head says."""
    head = AuditHead.objects.filter(pk=AuditHead.ONLY).values_list("seq", flat=True).first()
    return head or 0


def ask(*, by: str) -> tuple[ChainCheck, bool]:
    """A new check, or the one that is open; the second is whether it is new."""
    now = timezone.now()
    forgotten = Q(state=State.WAITING, heartbeat_at__lt=now - FORGOTTEN_AFTER)
    lost = ~Q(state=State.WAITING) & Q(heartbeat_at__lt=now - LOST_AFTER)
    ChainCheck.objects.filter(forgotten | lost, place=1).update(
        state=State.ERROR, place=None, finished_at=now, error="No worker has given a sign of life."
    )
    try:
        with transaction.atomic():
            check = ChainCheck.objects.create(by=by, asked_at=now, heartbeat_at=now, last_seq=log_length())
    except IntegrityError:
        running = ChainCheck.objects.filter(place=1).first()
        return running or ask(by=by)[0], False
    return check, True


def run(check_id: int) -> ChainCheck:
    """Make a check that waits. One that is made already, by a task delivered twice, is left as it is."""
    if not ChainCheck.objects.filter(pk=check_id, state=State.WAITING).update(
        state=State.CHECKING, heartbeat_at=timezone.now(), total=steps()
    ):
        return ChainCheck.objects.get(pk=check_id)
    faults: list[dict[str, object]] = []
    number = 0
    try:
        with _progress(check_id) as progress, one_moment():
            for fault in log_faults(told=progress.step):
                number += 1
                if len(faults) < FAULTS_KEPT:
                    faults.append({"seq": fault.seq, "code": fault.code, "message": fault.message})
    except Exception as error:
        _end(check_id, State.ERROR, error=type(error).__name__)
        logger.error("chain_not_verified", error=type(error).__name__)
        raise
    _end(check_id, State.FAULTY if number else State.VERIFIED, checked=progress.done, count=number, faults=faults)
    if number:
        logger.error("chain_faulty", faults=number, first=faults[0]["code"], entry=faults[0]["seq"])
    return ChainCheck.objects.get(pk=check_id)


def steps() -> int:
    """What ``log_faults`` tells of a log, about: one for each entry, and one more for each that commits to rows."""
    return AuditEntry.objects.count() + AuditEntry.objects.filter(kind=AuditEntry.Kind.SEALED).count()


def not_queued(check_id: int) -> None:
    """No worker can be told of it."""
    _end(check_id, State.ERROR, error="The workers cannot be reached.")


def _end(
    check_id: int,
    state: ChainCheck.State,
    *,
    checked: int | None = None,
    count: int = 0,
    faults: list[dict[str, object]] | None = None,
    error: str = "",
) -> None:
    """Only while the check has its place: one that was given up for lost stays so."""
    changes: dict[str, object] = {} if checked is None else {"checked": checked, "total": checked}
    ChainCheck.objects.filter(pk=check_id, place=1).update(
        state=state,
        place=None,
        finished_at=timezone.now(),
        fault_count=count,
        faults=faults or [],
        error=error,
        **changes,
    )


class _Progress:
    """Counts, and writes the count down once a second: on a connection of its own, since the walk's one is in the
    middle of a transaction that sees one moment and writes nothing."""

    def __init__(self, check_id: int, writer: ThreadPoolExecutor | None) -> None:
        self.done = 0
        self._check_id = check_id
        self._writer = writer
        self._due = monotonic() + BEAT_S
        self._last: Future[None] | None = None

    def step(self) -> None:
        self.done += 1
        if self._writer is None or monotonic() < self._due or (self._last is not None and not self._last.done()):
            return
        self._due = monotonic() + BEAT_S
        self._last = self._writer.submit(_beat, self._check_id, self.done)


@contextmanager
def _progress(check_id: int) -> Iterator[_Progress]:
    if connection.in_atomic_block:  # what another connection cannot see it cannot write to either
        yield _Progress(check_id, None)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="chain-check") as writer:
        try:
            yield _Progress(check_id, writer)
        finally:
            writer.submit(connection.close)


def _beat(check_id: int, done: int) -> None:
    try:
        ChainCheck.objects.filter(pk=check_id, place=1).update(checked=done, heartbeat_at=timezone.now())
    except DatabaseError as error:  # the next one may come through; the check goes on without
        logger.warning("chain_check_beat_lost", error=type(error).__name__)
