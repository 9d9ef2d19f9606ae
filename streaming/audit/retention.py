"""How long texts are kept, and their removal.

Exists because a record of what happened is wanted for years and the words themselves for days. Protects the chain: what
is removed is the text and the salt of its commitment, so that nothing can be guessed back from the log; that it was
removed, and when, is an entry of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import islice
from time import monotonic, sleep

import structlog
from django.conf import settings
from django.db import connection, transaction
from django.db.models import Exists, OuterRef, Q, QuerySet

from streaming.audit.rows import KEPT_METADATA, TEXT_REMOVED
from streaming.audit.services import Draft, append_all
from streaming.audit.verify import NOTE
from streaming.models import AuditEntry, AuditSession, Message, Review
from streaming.texts import CANNOT_BE_OPENED, Unopened, counted_by_caller

logger = structlog.get_logger(__name__)
AT_ONCE = {"sqlite": 100}
USUAL = 500
"""Sessions of one step, by the database's kind. SQLite has one lock for all, which a step holds from its beginning; the
others lock the log only for the end of it."""
REST_S = 0.1
"""The longest time between two tries of somebody who waits for SQLite's lock; there is no queue."""
PAGE = 20_000
"""Sessions that are looked up at once."""
DEFAULT = "*"


def parse_retention(text: str) -> dict[str, int]:
    """``90 medical=3650 demo=7``: days by policy, the bare number for all others. Raises ``ValueError``."""
    found: dict[str, int] = {}
    for part in text.replace(",", " ").split():
        name, _, days = part.rpartition("=")
        if not (days.isascii() and days.isdigit()) or not 0 < int(days) <= 36_500:
            raise ValueError(f"“{part}” is not a number of days, nor a policy's name, “=” and a number of days")
        found[name or DEFAULT] = int(days)
    return found


def configured() -> dict[str, int]:
    """``SLUICEGATE_RETENTION``; empty: texts are kept for ever. Raises ``ValueError``."""
    return parse_retention(settings.SLUICEGATE_RETENTION)


def due(now: datetime, retention: Mapping[str, int], *, most: int | None = None) -> list[str]:
    """Ids of COMPLETE sessions whose texts have been kept long enough, oldest first; ``most``: of so many."""
    return [str(pk) for pk in _due(now, retention).values_list("pk", flat=True)[:most]]


def all_due(now: datetime, retention: Mapping[str, int], *, begin: str = "") -> Iterator[str]:
    """The same one after the other, each once, also of those that stay due because no key opens them.

    ``begin``: the id of a session to go on with; from the oldest one where it is empty or there is none such.
    """
    after = Q()
    if begin:
        for ended in AuditSession.objects.filter(pk=begin, ended_at__isnull=False).values_list("ended_at", flat=True):
            after = Q(ended_at__gt=ended) | Q(ended_at=ended, pk__gte=begin)
    while found := list(_due(now, retention).filter(after).values_list("pk", "ended_at")[:PAGE]):
        yield from (str(pk) for pk, _ in found)
        last, ended = found[-1]
        after = Q(ended_at__gt=ended) | Q(ended_at=ended, pk__gt=last)


def _due(now: datetime, retention: Mapping[str, int]) -> QuerySet[AuditSession]:
    named = {name: days for name, days in retention.items() if name != DEFAULT}
    when = Q(pk__in=[])
    for name, days in named.items():
        when |= Q(policy_name=name, ended_at__lt=now - timedelta(days=days))
    if DEFAULT in retention:
        when |= ~Q(policy_name__in=named) & Q(ended_at__lt=now - timedelta(days=retention[DEFAULT]))
    notes = Review.objects.filter(finding__session=OuterRef("pk")).exclude(salt="")
    rows = AuditSession.objects.filter(when, state=AuditSession.State.COMPLETE).exclude(
        (Q(prompt=None) | Q(prompt__salt="")) & (Q(answer=None) | Q(answer__salt="")) & ~Exists(notes)
    )
    return rows.order_by("ended_at", "pk")


def purge(
    session_ids: Iterable[str],
    *,
    budget_s: float = math.inf,
    told: Callable[[int], None] = lambda done: None,
    clock: Callable[[], float] = monotonic,
) -> int:
    """Remove the texts of sessions, and reviewers' notes on them; returns of how many there was something to remove.

    Many of them are one transaction (``at_once``): every end of one waits for the disk, and others for that. Between
    two of them others have their turn. ``told`` is called after each with its number of sessions. ``budget_s``: seconds
    after which no further one begins; what is left is due as before, and not taken from ``session_ids`` if that is an
    iterator. Messages of which not all could be removed for want of a key are counted in one line of the log.
    """
    waiting, done, locked, most, began = iter(session_ids), 0, 0, at_once(), clock()
    some = list(islice(waiting, most))
    while some:
        removed, left = _purge_some(some)
        done, locked = done + removed, locked + left
        told(len(some))
        some = list(islice(waiting, most)) if clock() - began < budget_s else []
        if some and connection.vendor == "sqlite":
            sleep(REST_S)
    if locked:
        logger.error("text_not_removed", messages=locked, why="none of the keys opens them")
    return done


def at_once() -> int:
    """How many sessions are one step on this database."""
    return AT_ONCE.get(connection.vendor, USUAL)


def _purge_some(session_ids: Sequence[str]) -> tuple[int, int]:
    """Of how many sessions something was removed, and how many messages keep what no key opens."""
    with transaction.atomic():
        removed, left = _remove(list(dict.fromkeys(session_ids)))
        drafts = [Draft(AuditEntry.Kind.PURGE, key, {"texts": sorted(names)}) for key, names in removed.items()]
        if drafts:
            append_all(drafts)
    return len(drafts), left


def _locked_away(message: Message) -> bool:
    """Whether nothing of it can be read for want of a key.

    Then it stays due: what is to be kept of it is in there with the words, and must be there when the key is back.
    """
    return isinstance(message.metadata, Unopened) and message.content in ("", CANNOT_BE_OPENED)


def _remove(session_ids: Sequence[str]) -> tuple[dict[str, list[str]], int]:
    """What was removed of each, and how many messages keep what no key opens.

    By key, and few statements: others wait where the database has one lock for all.
    """
    rows = AuditSession.objects.filter(pk__in=session_ids).values_list("pk", "prompt", "answer")
    keys = {str(pk): [key for key in pair if key is not None] for pk, *pair in rows}
    wanted = sorted({key for pair in keys.values() for key in pair})  # in one order: two purges do not lock each other
    found = Message.objects.select_for_update().filter(pk__in=wanted).exclude(salt="").order_by("pk")
    with counted_by_caller():
        stored = list(found)
    messages = {message.pk: message for message in stored if not _locked_away(message)}
    # Words that can be read go although what stands beside them cannot: that waits for its key, and stays due.
    beside = {pk for pk, message in messages.items() if isinstance(message.metadata, Unopened)}
    whole = [message for pk, message in messages.items() if pk not in beside]
    for message in whole:
        message.metadata = {key: message.metadata[key] for key in KEPT_METADATA if key in message.metadata}
    Message.objects.filter(pk__in=beside).update(content="", salt=TEXT_REMOVED)
    Message.objects.filter(pk__in=[message.pk for message in whole]).update(content="", salt="")
    Message.objects.bulk_update(whole, ["metadata"], batch_size=100)
    left = len(stored) - len(whole)
    notes = Review.objects.filter(finding__session__pk__in=keys).exclude(salt="").select_for_update(of=("self",))
    noted = {pk: str(session) for pk, session in notes.order_by("pk").values_list("pk", "finding__session")}
    Review.objects.filter(pk__in=noted).update(note="", salt="")
    with_note = set(noted.values())
    removed: dict[str, list[str]] = {}
    for session_id in session_ids:
        # A message may be of several sessions; the first of them tells of it.
        names = [messages.pop(key).role for key in keys.get(session_id, ()) if key in messages]
        if session_id in with_note:
            names.append(NOTE)
        if names:
            removed[session_id] = names
    return removed, left
