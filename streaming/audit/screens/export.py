"""The list as a file, for as many sessions as there are.

Exists so that an auditor can take the record away. Protects three rules: a file of any length takes the memory of one
page (rows are read page by page while the reader takes them); a file says what was found and never what was said; and
a cell of a spreadsheet is never a formula, whoever chose its words.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import datetime

from channels.db import database_sync_to_async
from django.db.models import Prefetch

from streaming.audit.rows import FINDING_FIELDS, stamp
from streaming.audit.screens.filters import Cursor, Filters
from streaming.models import AuditSession, Finding, Review

AT_ONCE = 200
COLUMNS = (
    "id", "origin", "state", "outcome", "would_have", "monitor", "policy_name", "policy_version", "policy_digest",
    "provider", "model", "client", "correlation_id", "started_at", "answered_at", "ended_at", "chars_in", "released",
    "withheld", "exposed", "error_code",
)  # fmt: skip
COUNTED = ("findings", "guardrails", "judged")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠", "|", "%")

Write = Callable[[Sequence[AuditSession]], str]


def cell(value: object) -> object:
    """A cell that no spreadsheet takes for a formula: text that begins like one gets an apostrophe in front."""
    if isinstance(value, str) and (value.lstrip(" ").startswith(_FORMULA) or value.startswith("'")):
        return "'" + value
    return value


def csv_head() -> str:
    """The first line."""
    return _csv([[*COLUMNS, *COUNTED]])


def csv_lines(sessions: Sequence[AuditSession]) -> str:
    """A line for each session, its findings as numbers and names."""
    return _csv([[cell(value) for value in _csv_row(session)] for session in sessions])


def json_lines(sessions: Sequence[AuditSession]) -> str:
    """An object for each session with all of its findings, each with the newest review if there is one."""
    return "".join(json.dumps(_json_row(session), ensure_ascii=False) + "\n" for session in sessions)


def _csv(rows: Sequence[Sequence[object]]) -> str:
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    return out.getvalue()


def _csv_row(session: AuditSession) -> Iterator[object]:
    found = list(session.findings.all())
    yield from (_plain(getattr(session, name)) for name in COLUMNS)
    yield len(found)
    yield " ".join(sorted({finding.guardrail for finding in found}))
    yield sum(1 for finding in found if finding.reviews.all())


def _json_row(session: AuditSession) -> dict[str, object]:
    row = {name: _plain(getattr(session, name)) for name in COLUMNS}
    return row | {"findings": [_finding(finding) for finding in sorted(session.findings.all(), key=lambda f: f.n)]}


def _finding(finding: Finding) -> dict[str, object]:
    newest = max(finding.reviews.all(), key=lambda review: review.version, default=None)
    review = newest and {"label": newest.label, "by": newest.by, "at": stamp(newest.at), "version": newest.version}
    return {name: _plain(getattr(finding, name)) for name in FINDING_FIELDS} | {"review": review}


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return stamp(value)
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _some(filters: Filters, after: Cursor | None) -> list[AuditSession]:
    reviews = Review.objects.defer("note", "salt").order_by("version")
    found = Prefetch("findings", Finding.objects.order_by("n").prefetch_related(Prefetch("reviews", reviews)))
    rows = filters.sessions().only(*COLUMNS).prefetch_related(found)
    return list((rows if after is None else after.behind(rows))[:AT_ONCE])


async def stream(filters: Filters, write: Write, head: str = "") -> AsyncIterator[str]:
    """The file in pieces of ``AT_ONCE`` sessions; three queries each. What begins meanwhile is newer and left out."""
    if head:
        yield head
    after: Cursor | None = None
    while some := await database_sync_to_async(_some)(filters, after):
        yield write(some)
        if len(some) < AT_ONCE:
            return
        after = Cursor.of(some[-1])
