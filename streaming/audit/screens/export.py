"""The list as a file, for as many sessions as there are.

Exists so that an auditor can take the record away. Protects three rules: a file of any length takes the memory of one
page (sessions and their findings are read page by page while the reader takes them, those of one session too); a file
says what was found and never what was said; and a cell of a spreadsheet is never a formula, whoever chose its words.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Protocol
from uuid import UUID

from channels.db import database_sync_to_async
from django.db.models import Count, Prefetch, QuerySet

from streaming.audit.rows import FINDING_FIELDS, stamp
from streaming.audit.screens.filters import Cursor, Filters
from streaming.models import AuditSession, Finding, Review

AT_ONCE = 200
FINDINGS_AT_ONCE = 2_000
COLUMNS = (
    "id", "origin", "state", "outcome", "would_have", "monitor", "policy_name", "policy_version", "policy_digest",
    "provider", "model", "client", "correlation_id", "started_at", "answered_at", "ended_at", "chars_in", "released",
    "withheld", "exposed", "error_code",
)  # fmt: skip
COUNTED = ("findings", "guardrails", "judged")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠", "|", "%")


class Lines(Protocol):
    """What a file says of one session after the other: ``begin``, ``more`` for all of its findings in turn, ``end``."""

    def begin(self, session: AuditSession) -> str:
        """Up to its findings."""

    def more(self, findings: Sequence[Finding]) -> str:
        """The next findings of the session."""

    def end(self) -> str:
        """There are no more."""


Write = Callable[[], Lines]


def cell(value: object) -> object:
    """A cell that no spreadsheet takes for a formula: text that begins like one gets an apostrophe in front."""
    if isinstance(value, str) and (value.lstrip(" ").startswith(_FORMULA) or value.startswith("'")):
        return "'" + value
    return value


def csv_head() -> str:
    """The first line."""
    return _csv([[*COLUMNS, *COUNTED]])


class CsvLines:
    """A line for each session, its findings as numbers and names."""

    def begin(self, session: AuditSession) -> str:
        """Nothing yet: the findings are counted first."""
        self._session = session
        self._found = self._judged = 0
        self._names: set[str] = set()
        return ""

    def more(self, findings: Sequence[Finding]) -> str:
        """Counted."""
        self._found += len(findings)
        self._names |= {finding.guardrail for finding in findings}
        self._judged += sum(1 for finding in findings if finding.reviews.all())
        return ""

    def end(self) -> str:
        """The line."""
        row = [_plain(getattr(self._session, name)) for name in COLUMNS]
        row += [self._found, " ".join(sorted(self._names)), self._judged]
        return _csv([[cell(value) for value in row]])


class JsonLines:
    """An object for each session with all of its findings, each with the newest review if there is one."""

    def begin(self, session: AuditSession) -> str:
        """The object up to its findings."""
        self._between = ""
        row = {name: _plain(getattr(session, name)) for name in COLUMNS}
        return _json(row).removesuffix("}") + ', "findings": ['

    def more(self, findings: Sequence[Finding]) -> str:
        """Each as an object."""
        said = ", ".join(_json(_finding(finding)) for finding in findings)
        between, self._between = self._between, ", " if said else self._between
        return between + said if said else ""

    def end(self) -> str:
        """The end of the line."""
        return "]}\n"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _csv(rows: Sequence[Sequence[object]]) -> str:
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    return out.getvalue()


def _finding(finding: Finding) -> dict[str, object]:
    newest = max(finding.reviews.all(), key=lambda review: review.version, default=None)
    review = newest and {"label": newest.label, "by": newest.by, "at": stamp(newest.at), "version": newest.version}
    return {name: _plain(getattr(finding, name)) for name in FINDING_FIELDS} | {"review": review}


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return stamp(value)
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _some(filters: Filters, after: Cursor | None) -> list[AuditSession]:
    rows = filters.sessions().only(*COLUMNS)
    return list((rows if after is None else after.behind(rows))[:AT_ONCE])


def _sizes(some: Sequence[AuditSession]) -> Mapping[UUID, int]:
    rows = Finding.objects.filter(session__in=some).order_by().values("session_id").annotate(number=Count("pk"))
    return Counter({row["session_id"]: row["number"] for row in rows})


def _together(some: Sequence[AuditSession], sizes: Mapping[UUID, int]) -> Iterator[list[AuditSession]]:
    """In order, as many at once as have no more than ``FINDINGS_AT_ONCE``, or one that has more."""
    batch: list[AuditSession] = []
    number = 0
    for session in some:
        if batch and number + sizes[session.pk] > FINDINGS_AT_ONCE:
            yield batch
            batch, number = [], 0
        batch.append(session)
        number += sizes[session.pk]
    yield batch


def _findings(batch: Sequence[AuditSession]) -> Mapping[UUID, list[Finding]]:
    found: dict[UUID, list[Finding]] = {session.pk: [] for session in batch}
    for finding in _with_reviews().filter(session__in=batch).order_by("session", "n"):
        found[finding.session_id].append(finding)
    return found


def _next(session: AuditSession, after: int) -> list[Finding]:
    return list(_with_reviews().filter(session=session, n__gt=after).order_by("n")[:FINDINGS_AT_ONCE])


def _with_reviews() -> QuerySet[Finding]:
    reviews = Review.objects.defer("note", "salt").order_by("version")
    return Finding.objects.prefetch_related(Prefetch("reviews", reviews))


async def stream(filters: Filters, write: Write, head: str = "") -> AsyncIterator[str]:
    """The file in pieces of ``AT_ONCE`` sessions, or of ``FINDINGS_AT_ONCE`` findings; four queries each. What begins
    meanwhile is newer and left out."""
    if head:
        yield head
    lines = write()
    after: Cursor | None = None
    while some := await database_sync_to_async(_some)(filters, after):
        sizes = await database_sync_to_async(_sizes)(some)
        for batch in _together(some, sizes):
            if sizes[batch[0].pk] > FINDINGS_AT_ONCE:
                async for piece in _one(batch[0], lines):
                    yield piece
                continue
            found = await database_sync_to_async(_findings)(batch)
            yield "".join(lines.begin(one) + lines.more(found[one.pk]) + lines.end() for one in batch)
        if len(some) < AT_ONCE:
            return
        after = Cursor.of(some[-1])


async def _one(session: AuditSession, lines: Lines) -> AsyncIterator[str]:
    yield lines.begin(session)
    last = -1
    while some := await database_sync_to_async(_next)(session, last):
        yield lines.more(some)
        last = some[-1].n
    yield lines.end()
