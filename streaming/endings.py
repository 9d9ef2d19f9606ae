"""Storing how an answer stands and how it ended, also where the database is away just then.

Exists because a database that restarts is back in seconds, and an answer that has been shown is not to count as lost
for it, nor its deferred checks to be forgotten. Protects the rules that an end is stored once, whatever became of a
commit whose connection broke, and that a sweep takes no answer for dead whose process merely cannot say that it lives.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial

from streaming import sessions
from streaming.away import AGAIN_S, noted
from streaming.database import AWAY, in_database
from streaming.log import LogUnavailable, SessionLog
from streaming.models import AuditSession
from streaming.sessions import Ending, State
from streaming.together import together

PATIENT_S = 300.0
"""So long an end waits for the database; then the sweep ends the session with what its log has."""


async def keep_partial(log: SessionLog, *, session_id: str, content: str, released: int, chars_in: int, last_seq: int
                       ) -> bool:  # fmt: skip
    """Write through what is visible so far. False when the session has ended. Raises while the database is away."""
    try:
        return await in_database(sessions.keep_partial)(
            session_id=session_id, content=content, released=released, chars_in=chars_in, last_seq=last_seq
        )
    except AWAY:
        await say_that_it_lives(log, session_id)
        raise


async def store(ending: Ending, *, session_id: str, log: SessionLog) -> State | None:
    """The session's new state; None when another process ended it first. Raises what is no absence of the database."""
    loop, failed = asyncio.get_running_loop(), False
    until = loop.time() + PATIENT_S
    while True:
        try:
            state = await together(partial(sessions.finish_streaming, session_id=session_id, ending=ending))
            return await in_database(_ours)(session_id, ending) if state is None and failed else state
        except AWAY as error:
            if loop.time() >= until:
                raise
            failed = True
            noted(error, session=session_id)
        await say_that_it_lives(log, session_id)
        await asyncio.sleep(AGAIN_S)


def _ours(session_id: str, ending: Ending) -> State | None:
    """The session's state, where it was moved there by an earlier try whose answer was lost."""
    ours = AuditSession.objects.filter(
        pk=session_id, outcome=ending.outcome.value, error_code=ending.error_code, last_seq=ending.last_seq
    )
    found = ours.exclude(state=State.ACTIVE).values_list("state", flat=True).first()
    return None if found is None else State(found)


async def say_that_it_lives(log: SessionLog, session_id: str) -> None:
    """To whoever looks while the database cannot be told; nothing more can be done where the store is away as well."""
    with suppress(LogUnavailable):
        await log.say_alive(session_id)
