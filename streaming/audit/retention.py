"""How long texts are kept, and their removal.

Exists because a record of what happened is wanted for years and the words themselves for days. Protects the chain: what
is removed is the text and the salt of its commitment, so that nothing can be guessed back from the log; that it was
removed, and when, is an entry of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import islice
from time import sleep

from django.conf import settings
from django.db import connection, transaction
from django.db.models import Exists, OuterRef, Q

from streaming.audit.rows import KEPT_METADATA
from streaming.audit.services import Draft, append_all
from streaming.audit.verify import NOTE
from streaming.models import AuditEntry, AuditSession, Message, Review

AT_ONCE = {"sqlite": 100}
USUAL = 500
"""Sessions of one step, by the database's kind. SQLite has one lock for all, which a step holds from its beginning; the
others lock the log only for the end of it."""
REST_S = 0.1
"""The longest time between two tries of somebody who waits for SQLite's lock; there is no queue."""
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


def due(now: datetime, retention: Mapping[str, int]) -> list[str]:
    """Ids of COMPLETE sessions whose texts have been kept long enough."""
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
    return [str(pk) for pk in rows.order_by("ended_at", "pk").values_list("pk", flat=True)]


def purge(session_ids: Iterable[str]) -> int:
    """Remove the texts of sessions, and reviewers' notes on them; returns of how many there was something to remove.

    Many of them are one transaction (``at_once``): every end of one waits for the disk, and others for that. Between
    two of them others have their turn.
    """
    waiting, done, most = iter(session_ids), 0, at_once()
    some = list(islice(waiting, most))
    while some:
        done += _purge_some(some)
        some = list(islice(waiting, most))
        if some and connection.vendor == "sqlite":
            sleep(REST_S)
    return done


def at_once() -> int:
    """How many sessions are one step on this database."""
    return AT_ONCE.get(connection.vendor, USUAL)


def _purge_some(session_ids: Sequence[str]) -> int:
    with transaction.atomic():
        removed = _remove(list(dict.fromkeys(session_ids)))
        drafts = [Draft(AuditEntry.Kind.PURGE, key, {"texts": sorted(names)}) for key, names in removed.items()]
        if drafts:
            append_all(drafts)
    return len(drafts)


def _remove(session_ids: Sequence[str]) -> dict[str, list[str]]:
    """What was removed of each. By key, and few statements: others wait where the database has one lock for all."""
    rows = AuditSession.objects.filter(pk__in=session_ids).values_list("pk", "prompt", "answer")
    keys = {str(pk): [key for key in pair if key is not None] for pk, *pair in rows}
    wanted = sorted({key for pair in keys.values() for key in pair})  # in one order: two purges do not lock each other
    found = Message.objects.select_for_update().filter(pk__in=wanted).exclude(salt="").order_by("pk")
    messages = {message.pk: message for message in found}
    for message in messages.values():
        message.metadata = {key: message.metadata[key] for key in KEPT_METADATA if key in message.metadata}
    Message.objects.filter(pk__in=messages).update(content="", salt="")
    Message.objects.bulk_update(messages.values(), ["metadata"], batch_size=100)
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
    return removed
