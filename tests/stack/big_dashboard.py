"""Run as ``python -m tests.stack.big_dashboard SESSIONS``: the admin's figures over a big PostgreSQL database.

The sessions are those of ``big_list``, with a time to their first token, a hold, and a deferred check each; they lie in
the 30 days that are asked for. Gives the milliseconds of each time that the figures were counted, by the clock and of a
processor, for each period and with a policy chosen; as JSON.
"""

from __future__ import annotations

import json
import sys
import time

import django

from tests.stack.big_list import SESSIONS, processor_ms

TIMES = 5
IN_REACH = (
    ("timestamptz '2026-01-01' + i * interval '13 seconds' AS moment", "now() - i * interval '12 seconds' AS moment"),
    ("shadow_would_have, shadow)", "shadow_would_have, shadow, first_token_ms, hold_ms, tools_ok)"),
    ("'', '{}'\nFROM", "'', '{}', 80 + i * 7919 %% 4000, i * 991 %% 900, i %% 3\nFROM"),
)
"""What the sessions of ``big_list`` are not: of the last 30 days, and measured."""
CHECKS = """
INSERT INTO streaming_deferredcheck (session_id, guardrail, applies_to, state, attempts, queued_at, finished_at, error,
  digest, sentences)
SELECT id, 'judge', 'response', CASE WHEN hold_ms %% 10 = 0 THEN 'error' ELSE 'passed' END, 1, started_at, started_at,
  '', 'sha256:0', false
FROM streaming_auditsession
"""


def recent() -> str:
    """The statement that makes the sessions."""
    statement = SESSIONS
    for old, new in IN_REACH:
        assert old in statement, old
        statement = statement.replace(old, new)
    return statement


def main(number: int) -> object:
    """Fill, ask, measure."""
    from django.contrib.auth.models import Group, User
    from django.db import connection
    from django.test import Client
    from django.test.utils import override_settings
    from django.utils import timezone

    from guardrails.bootstrap import prepare_database
    from streaming.dashboard.figures import report
    from streaming.dashboard.period import Period

    prepare_database()
    with connection.cursor() as cursor:
        for statement in (recent(), CHECKS):
            cursor.execute(statement, {"n": number})
        cursor.execute("VACUUM ANALYZE")
        cursor.execute("SELECT pg_backend_pid()")
        backend = int(cursor.fetchone()[0])
    answers: dict[str, object] = {}
    for name, key, policy in (("30 days", "30", ""), ("of a policy", "30", "support"), ("7 days", "7", ""),
                              ("today", "today", "")):  # fmt: skip
        took, spent = [], processor_ms(backend)
        for _ in range(TIMES):
            began = time.perf_counter()
            whole = report(Period.of(key, timezone.now()), policy=policy).whole
            took.append((time.perf_counter() - began) * 1000)
        answers[name] = {
            "ms": [round(one) for one in sorted(took)],
            "cpu_ms": round((processor_ms(backend) - spent) / TIMES),
            "sessions": whole.sessions,
            "checks": whole.checks.total(),
            "measured": [whole.first_token.number, whole.hold.number],
        }
    reader = User.objects.create_user("reader", is_staff=True)
    reader.groups.set(Group.objects.filter(name="Auditor"))
    client = Client()
    client.force_login(reader)
    with override_settings(ALLOWED_HOSTS=["testserver"]):
        client.get("/admin/")
        began = time.perf_counter()
        page = client.get("/admin/", {"period": "30"})
        answers["page"] = {"ms": [round((time.perf_counter() - began) * 1000)], "status": page.status_code}
    return answers


if __name__ == "__main__":
    django.setup()
    sys.stdout.write(json.dumps(main(int(sys.argv[1]))) + "\n")
