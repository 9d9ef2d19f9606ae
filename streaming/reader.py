"""Reading a session's events, from any seq, until the session is COMPLETE.

Exists so that sockets and SSE read in the same way. Protects four rules: a lost wake-up is no hang (the log is also
polled), a reader that is told nothing asks the database before it waits on (a lost log is no hang either), a reader
that comes too late for the log still learns how the session ended, and every event carries the id under which its
session was begun. The id is the same in all of them, so it is put on here and not stored with each.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence

from streaming import selectors
from streaming.conf import Conf
from streaming.core.buffer import coalesce_stamped
from streaming.core.events import Done, ErrorEvent, FindingEvent, MessageUpdate, ServerEvent, StateChange, stamp
from streaming.database import in_database
from streaming.log import SessionLog
from streaming.models import AuditSession
from streaming.standing import untold

State = AuditSession.State
READ_AT_ONCE = 500
Batch = list[dict[str, object]]
Over = Callable[[str], Awaitable[tuple[State, Sequence[ServerEvent]]]]

over: Over = in_database(selectors.session_over)
LOST = ErrorEvent("events_lost", "Some events are no longer stored; what follows is complete again.", recoverable=True)


async def follow(
    log: SessionLog,
    session_id: str,
    after: int,
    settings: Conf,
    *,
    correlation_id: str,
    resumed: bool = False,
    told: bool = False,
    heard: Collection[object] = (),
    session_over: Over = over,
) -> AsyncGenerator[Batch, None]:
    """Batches of stamped events with seqs above ``after``, as they come; ends after COMPLETE.

    Chunks that are read together are joined. The last seq of the last batch is where the reader is, or before that.
    ``correlation_id``: the one of the session's row, which whoever follows has seen already. ``resumed``: look into the
    database at once when the log has nothing. ``told``: the reader knows already how the answer ended (the session may
    still be MONITORING), ``heard``: and the findings of these numbers; neither is told again. Raises
    ``LogUnavailable``, and ``AuditSession.DoesNotExist`` when there is no such session.
    """
    quiet = settings.idle_check_s if resumed else 0.0
    lost = done = ended = False
    known = set(heard)
    async with log.attend(session_id) as wake:
        while True:
            wake.clear()
            if events := await log.read(session_id, after, READ_AT_ONCE):
                if int(str(events[0]["seq"])) > after + 1 and not told:
                    lost = True
                    yield [from_database(LOST, session_id, correlation_id)]
                after, quiet = int(str(events[-1]["seq"])), 0.0
                ended = False  # whoever tells is there: what comes next may be stored and not told yet, too
                complete = any(event["type"] == "state" and event["state"] == State.COMPLETE for event in events)
                more = len(events) == READ_AT_ONCE
                done = done or any(event["type"] == "done" for event in events)
                if known or told:
                    events = _without(known, events, ended=told)
                if complete and not done and not told and (lost or not await _ended_in(log, session_id)):
                    # How the answer ended was in the part of the log that is gone, or who should tell it died.
                    _, said = await session_over(session_id)
                    said = untold_yet(await untold(log, session_id, said), known, ended=False)
                    said = [event for event in said if not isinstance(event, StateChange)]
                    yield _all_from_database(said, session_id, correlation_id)
                if events:
                    yield _named(coalesce_stamped(events), correlation_id)
                if complete:
                    return
                if more:
                    continue
            elif quiet >= settings.idle_check_s:
                quiet = 0.0
                state, said = await session_over(session_id)
                if state is State.COMPLETE and not await log.read(session_id, after, 1):
                    if not ended and await log.read(session_id, 0, 1):
                        ended = True  # whoever stored that may be about to tell it, and the last text with it
                        continue
                    # The last step was taken but never told, or the log is gone: the database tells it.
                    said = untold_yet(await untold(log, session_id, said), known, ended=told or done)
                    yield _all_from_database(said, session_id, correlation_id)
                    return
                if said and not (told or done) and not (done := await _ended_in(log, session_id)):
                    if not ended and await log.read(session_id, 0, 1):
                        ended = True  # the same: a check may keep the session from being over for minutes
                        continue
                    told, ended = True, False
                    said = untold_yet(await untold(log, session_id, said), known, ended=False)
                    yield _all_from_database(said, session_id, correlation_id)
                continue
            if not await wake.wait(settings.log_poll_s):
                quiet += settings.log_poll_s


# Not comprehensions where they are needed: a reader that waits would keep a cell for each name in them.
def _all_from_database(said: Sequence[ServerEvent], session_id: str, correlation_id: str) -> Batch:
    return [from_database(event, session_id, correlation_id) for event in said]


def _without(heard: set[object], events: Batch, *, ended: bool) -> Batch:
    ends = (Done.type, MessageUpdate.type) if ended else ()
    return [
        event
        for event in events
        if event["type"] not in ends and (event["type"] != FindingEvent.type or event["n"] not in heard)
    ]


def untold_yet(said: Sequence[ServerEvent], heard: set[object], *, ended: bool) -> list[ServerEvent]:
    """Those of what the database says that a reader has not heard; that it hears their findings now is noted.

    ``ended``: the reader knows how the answer ended.
    """
    left = []
    for event in said:
        if isinstance(event, FindingEvent):
            if event.finding.n in heard:
                continue
            heard.add(event.finding.n)
        elif ended and isinstance(event, Done | MessageUpdate):
            continue
        left.append(event)
    return left


def _named(events: Batch, correlation_id: str) -> Batch:
    return [{**event, "correlation_id": correlation_id} for event in events]


async def _ended_in(log: SessionLog, session_id: str) -> bool:
    """Whether the log says how the answer ended."""
    after = 0
    while events := await log.read(session_id, after, READ_AT_ONCE):
        if any(event["type"] == "done" for event in events):
            return True
        after = int(str(events[-1]["seq"]))
    return False


def from_database(event: ServerEvent, session_id: str, correlation_id: str) -> dict[str, object]:
    """An event that stands in no log: its seq is 0, so that it never hides one that does."""
    stamped = stamp(event.payload(), seq=0, session_id=session_id, ms=0)
    return {**stamped, "correlation_id": correlation_id}
