"""``GET /v1/audit/export``: the audit log, for whoever keeps a copy of it elsewhere.

Exists so that a copy does not need a shell on the server. Protects the rule that it is the very export of ``manage.py
audit export``, entry by entry: hashes, names and counts, never the texts. It ends at the entry that was the last one
when it was asked for, and goes on behind any entry, so that one that was cut off costs no more than what is missing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import structlog
from channels.db import database_sync_to_async
from django.http import HttpRequest, StreamingHttpResponse
from ninja import Query, Router, Schema
from pydantic import Field

from streaming.access import Access
from streaming.api.auth import Key
from streaming.api.errors import refusals
from streaming.audit.verification import log_length
from streaming.audit.verify import AT_ONCE, entries_between
from streaming.limits import Spends

logger = structlog.get_logger(__name__)
router = Router(tags=["audit"])
NDJSON = "application/x-ndjson"


class ExportQuery(Schema):
    """From where on."""

    after: str = Field("0", pattern="^[0-9]{1,15}$", description="The seq of the last entry that is there already.")


@router.get(
    "/audit/export",
    auth=Key("audit", Spends.START),
    response=refusals(429),
    openapi_extra={
        "responses": {200: {"description": "One entry a line.", "content": {NDJSON: {"schema": {"type": "string"}}}}},
    },
    summary="The audit log, one entry a line",
)
async def export(request: HttpRequest, query: Query[ExportQuery]) -> StreamingHttpResponse:
    """Every entry behind `after`, of all keys and policies, as `manage.py audit export` writes them; no texts."""
    access: Access = request.auth  # type: ignore[attr-defined]  # set by ninja
    last = await database_sync_to_async(log_length)()
    logger.info("audit_exported", client=access.visitor.client, after=int(query.after), last=last)
    response = StreamingHttpResponse(_lines(int(query.after), last), content_type=NDJSON)
    response["Cache-Control"] = "no-store"
    response["X-Accel-Buffering"] = "no"
    return response


async def _lines(after: int, last: int) -> AsyncIterator[bytes]:
    read = database_sync_to_async(_some)
    while after < last:
        reached, lines = await read(after, last)
        if reached == after:
            return
        after = reached
        yield lines


def _some(after: int, last: int) -> tuple[int, bytes]:
    """The next entries as lines, and the seq of the last of them."""
    entries = entries_between(after, last, AT_ONCE)
    return (entries[-1].seq if entries else after), "".join(f"{entry.line()}\n" for entry in entries).encode()
