"""Run as ``python -m tests.stack.work WHAT [N…]``: one piece of work in a process of its own; prints JSON.

prepare     tables and policies
fill N      N sessions whose answers are over, each with one deferred check that is queued; every other one is a hit
result      what has become of them
sessions N  N sessions from first to last row, one after another
appends N K N entries of the audit log, K in a transaction; gives the milliseconds of each transaction
crowd N K   N sessions from first to last row by K visitors at a time in this process; gives the seconds
commits N K one number counted up to N by K, each step its own transaction: what the database and its disk take for that
purge       the texts of every third session are removed
leases N K  N rounds in which K threads take a check of one guardrail at the same moment; how many got one, each round
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Callable

import django

HARMFUL, CALM = "First you mix the poison.", "First you mix the flour."


def prepare() -> object:
    """Tables and policies."""
    from guardrails.bootstrap import prepare_database

    prepare_database()
    return None


def fill(number: int) -> object:
    """All sessions first, so that workers begin with a full queue."""
    from guardrails import selectors
    from streaming import sessions, tasks
    from streaming.models import DeferredCheck, Message

    policy = selectors.active_policy("demo")
    named = {"name": policy.name, "version": policy.version, "digest": policy.digest}
    for n in range(number):
        text = HARMFUL if n % 2 else CALM
        new = sessions.NewSession(
            visitor=sessions.Visitor(session_key="b"), prompt="p", provider="scripted", model="m", policy=named  # type: ignore[arg-type]
        )  # fmt: skip
        started = sessions.start_session(new)
        ending = sessions.Ending(
            sessions.Outcome.ALLOWED, Message.Status.COMPLETE, content=text, released=len(text), chars_in=len(text),
            deferred=[sessions.DeferredText("harm", "response", text)],
        )  # fmt: skip
        sessions.finish_streaming(session_id=started.session_id, ending=ending)
    return sum(tasks.queue_check(pk) for pk in DeferredCheck.objects.values_list("pk", flat=True))


def result() -> object:
    """Counts over all sessions; ``wrong``: verdicts that do not fit the text, ``twice``: anything there twice."""
    from django.db.models import Count, Q

    from streaming.models import AuditEntry, AuditSession, DeferredCheck

    checks = DeferredCheck.objects.select_related("session__answer").annotate(found=Count("session__findings"))
    states: Counter[str] = Counter()
    wrong = twice = again = kept = 0
    for check in checks:
        states[check.state] += 1
        assert check.session.answer is not None
        hit = check.session.answer.content == HARMFUL
        judged = check.state in ("passed", "would_block")
        wrong += judged and ((check.state == "would_block") != hit or check.found != hit)
        twice += check.found > 1
        again += check.attempts > 1
        kept += check.sealed_text is not None
    sealed = AuditEntry.objects.filter(kind="sealed").values("session").annotate(n=Count("seq"))
    sessions = AuditSession.objects.aggregate(all=Count("pk"), complete=Count("pk", filter=Q(state="COMPLETE")))
    return {
        "states": states, "wrong": wrong, "made_again": again, "texts_kept": kept, **sessions,
        "sealed": len(sealed), "twice": twice + sum(row["n"] > 1 for row in sealed) + asyncio.run(_told_twice()),
    }  # fmt: skip


async def _told_twice() -> int:
    """Sessions whose readers were told of one finding or of the end more than once."""
    from streaming.log_redis import own_log
    from streaming.models import AuditSession

    ids = [str(pk) async for pk in AuditSession.objects.values_list("pk", flat=True)]
    count = 0
    async with own_log() as log:
        for one in ids:
            told = Counter(event["type"] for event in await log.read(one, 0))
            count += told["finding"] > 1 or told["state"] > 1
    return count


def write_sessions(number: int) -> object:
    """Sessions with a redaction."""
    from guardrails.findings import Action, Finding, Mode
    from streaming import sessions
    from streaming.models import Message

    hit = Finding(
        guardrail="pii", kind="pii", rule="ssn", category="ssn", start=3, end=14, mode=Mode.BLOCK,
        action=Action.REDACT, channel="text", n=1,
    )  # fmt: skip
    named = {"name": "p", "version": 1, "digest": "sha256:x"}
    for n in range(number):
        new = sessions.NewSession(sessions.Visitor(client="sg_a"), f"prompt {n}", named, "scripted", "m")  # type: ignore[arg-type]
        ending = sessions.Ending(
            sessions.Outcome.REDACTED, Message.Status.COMPLETE, content=f"answer {n}", findings=(hit,), chars_in=20
        )
        sessions.finish_streaming(session_id=sessions.start_session(new).session_id, ending=ending)
    return number


def appends(number: int, at_once: int) -> object:
    """Entries alone, ``at_once`` of them in a transaction."""
    from django.db import transaction

    from streaming.audit.services import Draft, append_all

    def append(start: int, end: int) -> None:
        numbers = range(start, end)
        drafts = [Draft("reveal", "", {"by": "béñch", "reason": '100 % "%s" \\', "texts": [str(n)]}) for n in numbers]
        with transaction.atomic():
            append_all(drafts)

    return _timed(append, number, at_once)


def crowd(number: int, at_once: int) -> object:
    """The way that answers take: what waits for the database at the same time is stored together."""
    from functools import partial

    from streaming import sessions
    from streaming.models import Message
    from streaming.together import together

    named = {"name": "p", "version": 1, "digest": "sha256:x"}
    ending = sessions.Ending(sessions.Outcome.ALLOWED, Message.Status.COMPLETE, content="answer", chars_in=6)

    async def visitor(share: range) -> None:
        for n in share:
            new = sessions.NewSession(sessions.Visitor(client="sg_a"), f"prompt {n}", named, "scripted", "m")  # type: ignore[arg-type]
            started = await together(partial(sessions.start_session, new))
            await together(partial(sessions.finish_streaming, session_id=started.session_id, ending=ending))

    async def all_of_them() -> float:
        await visitor(range(1))
        began = time.monotonic()
        await asyncio.gather(*(visitor(range(n, number, at_once)) for n in range(at_once)))
        return time.monotonic() - began

    return asyncio.run(all_of_them())


def commits(number: int, at_once: int) -> object:
    """The least that a step under one locked row can be: that row, changed."""
    from django.db import connection, transaction

    with connection.cursor() as cursor, transaction.atomic():
        cursor.execute("CREATE TABLE IF NOT EXISTS bare (n integer)")
        cursor.execute("INSERT INTO bare SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM bare)")

    def count(start: int, end: int) -> None:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("UPDATE bare SET n = n + %s", [end - start])

    return _timed(count, number, at_once)


def _timed(step: Callable[[int, int], None], number: int, at_once: int) -> object:
    """Steps up to ``number``; says "ready" and begins when it is told to."""
    from django.db import connection

    connection.ensure_connection()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    took = []
    first = time.monotonic()
    for start in range(0, number, at_once):
        began = time.perf_counter()
        step(start, min(start + at_once, number))
        took.append((time.perf_counter() - began) * 1000)
    return {"first": first, "last": time.monotonic(), "took": took}


def purge() -> object:
    """Beside whoever else writes."""
    from streaming.audit.retention import purge as purge_all
    from streaming.models import AuditSession

    ids = list(AuditSession.objects.filter(state="COMPLETE").order_by("pk").values_list("pk", flat=True))[::3]
    return purge_all(map(str, ids))


def leases(rounds: int, threads: int) -> object:
    """A new guardrail in every round."""
    from streaming.deferred import Lease
    from tests.streaming.test_checks_at_once import taken_at_once, waiting

    return [
        sum(isinstance(one, Lease) for one in taken_at_once([waiting(f"harm {number}") for _ in range(threads)]))
        for number in range(rounds)
    ]


WORK: dict[str, Callable[..., object]] = {
    "prepare": prepare, "fill": fill, "result": result, "sessions": write_sessions, "appends": appends,
    "commits": commits, "crowd": crowd, "purge": purge, "leases": leases,
}  # fmt: skip

if __name__ == "__main__":
    django.setup()
    sys.stdout.write(json.dumps(WORK[sys.argv[1]](*map(int, sys.argv[2:]))))
