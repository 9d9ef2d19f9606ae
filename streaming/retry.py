"""Handing a deferred check to the workers again because somebody asked for it.

Exists apart from the sweep, which does the same by time alone, and from the admin, which only asks. Protects the rule
that each check ends once: one that has ended stays as it is, since its text is gone and its session's record is sealed,
and one that a worker holds is not taken from it before its lease has ended.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from streaming import tasks
from streaming.conf import conf
from streaming.models import DeferredCheck

State = DeferredCheck.State


class NotRetried(Exception):
    """Handing it on would make no sense, or could not be done; says why."""


def retry(*, check_id: int, now: datetime) -> None:
    """Let the check wait, and queue it. Raises ``NotRetried``, also when the workers' queue cannot be reached.

    ``now``: by the database's clock. A check whose queue is away waits all the same: the sweep queues it later.
    """
    held_since = now - timedelta(seconds=conf().check_lease_s)
    row = DeferredCheck.objects.filter(pk=check_id)
    lapsed = row.filter(state=State.CHECKING, started_at__lt=held_since, attempts__lt=conf().check_attempts)
    moved = row.filter(state=State.WAITING).update(queued_at=now) or lapsed.update(state=State.WAITING, queued_at=now)
    if not moved:
        raise NotRetried(_why(row.first(), held_since))
    if not tasks.queue_check(check_id):
        raise NotRetried("the workers' queue cannot be reached; the check waits and is queued when it can be")


def _why(check: DeferredCheck | None, held_since: datetime) -> str:
    if check is None:
        return "it is not there any more"
    if check.state != State.CHECKING:
        return (
            f"it has ended ({check.get_state_display().lower()}) and its text is gone: there is nothing to judge again"
        )
    if check.started_at is not None and check.started_at >= held_since:
        return f"a worker has been making it since {check.started_at:%H:%M:%S} UTC; it is handed on if that one dies"
    return f"its {check.attempts} attempts are used up: the next sweep ends it as an error"
