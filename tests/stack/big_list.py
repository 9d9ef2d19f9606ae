"""Run as ``python -m tests.stack.big_list SESSIONS``: the audit list over a big PostgreSQL database; prints JSON.

Fills the tables with statements of the database's own, five findings a session, so that what is rare is also old: the
list is walked from its newest row, and what it is asked for stands at the other end. Then asks as a reviewer would,
several times each. Gives of every answer the milliseconds by the clock, those that this process and the database's took
of a processor (on a busy machine the clock counts what others do), and the number of queries. At last the
whole list is exported as a file, and what this process's memory grew by meanwhile is given.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import django
from django.http import StreamingHttpResponse

if TYPE_CHECKING:
    from django.contrib.auth.models import User

TIMES = 11
ASKED = {
    "all": "",
    "further page": "cursor={cursor}",
    "state": "state=ACTIVE",
    "rare outcome": "outcome=error",
    "common outcome": "outcome=redacted",
    "old version": "policy=support+v1",
    "policy": "policy=support",
    "rare guardrail": "guardrail=rare",
    "guardrail that was retired": "guardrail=retired",
    "common guardrail": "guardrail=g1",
    "old provider": "provider=old",
    "client": "client=sg_7",
    "a day": "since=2026-01-01&until=2026-01-01",
    "would have": "would_have=any",
    "would have and old version": "would_have=any&policy=support+v1",
    "not judged": "unreviewed=on",
    "not judged, of a guardrail": "unreviewed=on&guardrail=retired",
    "correlation id": "q=order-777",
    "correlation id that is not there": "q=nothing",
    "session id": "q=00000000-0000-4000-8000-000000000777",
}
PAGES = (
    "/audit/sessions/00000000-0000-4000-8000-000000000777/",
    "/audit/review/",
    "/audit/precision/",
    "/audit/chain/",
)
SESSIONS = """
INSERT INTO streaming_auditsession (id, origin, state, outcome, would_have, monitor, policy_name, policy_version,
  policy_digest, provider, model, streaming, fallback, client, correlation_id, started_at, heartbeat_at, answered_at,
  ended_at, chars_in, released, withheld, exposed, last_seq, timing, error_code, error, shadow_version,
  shadow_comparison, shadow_would_have, shadow)
SELECT ('00000000-0000-4000-8000-' || lpad(i::text, 12, '0'))::uuid, 'chat',
  CASE WHEN i %% 5000 = 0 THEN 'ACTIVE' ELSE 'COMPLETE' END,
  CASE WHEN i <= 20 THEN 'error' WHEN i %% 7 = 0 THEN 'redacted' WHEN i %% 50 = 0 THEN 'blocked' ELSE 'allowed' END,
  CASE WHEN i %% 400 = 1 THEN 'blocked' ELSE '' END, false, 'support',
  CASE WHEN i <= %(n)s / 100 THEN 1 WHEN i <= %(n)s / 2 THEN 2 ELSE 3 END, 'sha256:' || repeat('0', 64),
  CASE WHEN i <= 200 THEN 'old' WHEN i %% 3 = 0 THEN 'anthropic' ELSE 'openai' END, 'm', true, '',
  'sg_' || (i %% 40), 'order-' || i, moment, moment, moment, moment, 500, 480, 20, 0, 30,
  jsonb_build_object('arrivals', (SELECT jsonb_agg(jsonb_build_array(k * 17, 4)) FROM generate_series(1, 120) k)),
  '', '', 0, '', '', '{}'
FROM (SELECT i, timestamptz '2026-01-01' + i * interval '13 seconds' AS moment FROM generate_series(1, %(n)s) i) each
"""
FINDINGS = """
INSERT INTO streaming_finding (session_id, n, guardrail, kind, rule, category, channel, start, "end", score, mode,
  action, would_have, exposed, created)
SELECT ('00000000-0000-4000-8000-' || lpad(i::text, 12, '0'))::uuid, k,
  CASE WHEN i <= 30 AND k = 1 THEN 'rare' WHEN i <= %(n)s / 5 AND k = 2 THEN 'retired' ELSE 'g' || k END,
  'regex', 'r' || (i %% 9), 'c', 'text', k * 10, k * 10 + 5, 1.0, 'BLOCK', 'redact', '', 0,
  timestamptz '2026-01-01' + i * interval '13 seconds'
FROM generate_series(1, %(n)s) i, generate_series(1, 5) k
"""
REVIEWS = """
INSERT INTO streaming_review (finding_id, version, label, note, salt, by, at)
SELECT id, 1, 'true_positive', '', '', 'somebody', now() FROM streaming_finding ORDER BY id DESC LIMIT %(n)s / 10
"""


def processor_ms(backend: int) -> float:
    """What this process and the database's process that answers it have taken of a processor so far."""
    fields = Path(f"/proc/{backend}/stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])  # utime and stime, after the name
    return time.process_time() * 1000 + ticks * 1000 / os.sysconf("SC_CLK_TCK")


def resident_bytes() -> int:
    """What of this process's memory is in the machine's."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def exported(reader: User) -> dict[str, int]:
    """The whole list as a file, read piece by piece: lines, bytes, and what memory grew by after the first pieces."""
    from django.test import AsyncClient

    client = AsyncClient()
    await client.aforce_login(reader)
    response = await client.get("/audit/export.jsonl")
    assert isinstance(response, StreamingHttpResponse), response.status_code
    lines = size = pieces = before = most = 0
    async for piece in aiter(response):
        pieces += 1
        lines, size = lines + piece.count(b"\n"), size + len(piece)
        most = max(most, resident_bytes())
        if pieces == 5:
            before = most
    return {"lines": lines, "bytes": size, "pieces": pieces, "grew": most - before}


def main(number: int) -> object:
    """Fill, ask, measure."""
    from django.contrib.auth.models import Group, User
    from django.db import connection
    from django.test import Client
    from django.test.utils import CaptureQueriesContext, override_settings

    from guardrails.bootstrap import prepare_database
    from streaming.audit.screens.filters import Cursor
    from streaming.models import AuditSession, ChainCheck

    prepare_database()
    with connection.cursor() as cursor:
        for statement in (SESSIONS, FINDINGS, REVIEWS):
            cursor.execute(statement, {"n": number})
        cursor.execute("ANALYZE")
    reader = User.objects.create_user("reader")
    reader.groups.set(Group.objects.filter(name__in=["Reviewer", "Auditor"]))
    client = Client()
    client.force_login(reader)
    middle = AuditSession.objects.order_by("-started_at")[number // 2]
    further = str(Cursor.of(middle)).replace("+", "%2B")
    answers: dict[str, object] = {}
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        backend = int(cursor.fetchone()[0])
    client.get("/audit/")  # templates are compiled once
    with override_settings(ALLOWED_HOSTS=["testserver"]):
        for name, query in ASKED.items():
            took, lines, queries, spent = [], 0, 0, processor_ms(backend)
            for _ in range(TIMES):
                with CaptureQueriesContext(connection) as caught:
                    began = time.perf_counter()
                    response = client.get(f"/audit/?{query.format(cursor=further)}")
                    took.append((time.perf_counter() - began) * 1000)
                assert response.status_code == 200, (name, response.status_code)
                lines, queries = response.content.count(b"data-session="), len(caught)
            answers[name] = {
                "ms": [round(one, 1) for one in sorted(took)],
                "cpu_ms": round((processor_ms(backend) - spent) / TIMES, 1),
                "lines": lines,
                "queries": queries,
            }
        also = {path: client.get(path).status_code for path in PAGES}
        verdict = {"label": "false_positive", "note": "", "seen": 0}
        also |= {
            "a verdict": client.post("/audit/findings/7/review", verdict).status_code,
            "the same again": client.post("/audit/findings/7/review", verdict).status_code,
            "a reason": client.post(f"{PAGES[0]}reveal", {"reason": "complaint 17"}).status_code,
            "verify": client.post("/audit/chain/").status_code,
        }
        check = ChainCheck.objects.get()
        faults = {"number": check.fault_count, "codes": sorted({str(fault["code"]) for fault in check.faults})}
    with override_settings(ALLOWED_HOSTS=["testserver"]):
        file = asyncio.run(exported(reader))
    return {
        "file": file,
        "also": also,
        "faults": faults,
        "findings": 5 * number,
        "sessions": number,
        "answers": answers,
    }


if __name__ == "__main__":
    django.setup()
    sys.stdout.write(json.dumps(main(int(sys.argv[1]))) + "\n")
