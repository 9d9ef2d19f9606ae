"""The two sockets: ``/ws/chat/`` speaks HTML to the page, ``/ws/stream/`` speaks JSON to programs.

A socket runs nothing itself: it asks for sessions and reads their logs, so it may come and go. Protects three rules:
a slow client slows nobody (its reader waits for acknowledgements, the pump does not), a wrong frame is answered with
an error that names the field, and a reader never sees a traceback.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass

import structlog
from channels.generic.websocket import AsyncWebsocketConsumer
from django.core.exceptions import ObjectDoesNotExist

from streaming.access import Access, Refused, headers_of, query_of, visitor_of
from streaming.chat import Asked, Own, StartRefused, start_chat
from streaming.conf import conf
from streaming.core.events import ErrorEvent
from streaming.core.wire import to_json
from streaming.correlation import correlation_of
from streaming.fragments import FragmentContext, render
from streaming.frames import AckFrame, FrameError, InterruptFrame, ResumeFrame, StartFrame, parse_frame
from streaming.limits import Spends, take
from streaming.log import LogUnavailable, SessionLog
from streaming.log_redis import shared_log
from streaming.models import AuditSession
from streaming.reader import follow, from_database, over
from streaming.rollout import Marks
from streaming.selectors import owned_session
from streaming.unacked import Unacked
from streaming.wake import Wake

logger = structlog.get_logger(__name__)

REFUSED = 4401
AGAIN_S = 0.5
"""Seconds between two looks for a log that is away."""


@dataclass(slots=True)
class Place:
    """Where a reader is in a session. ``told``: the client knows how the answer ended; ``warned``: that the log is
    away."""

    session_id: str
    conversation_id: str
    correlation_id: str
    after: int
    resumed: bool
    told: bool = False
    warned: bool = False


class SessionSocket(AsyncWebsocketConsumer):
    """What both sockets do; subclasses say how an event is written and whether API keys are taken."""

    # Wake-ups come through the session log's own listener, one per process: a socket needs no layer of its own, and
    # must not break when the store behind the layer goes away.
    channel_layer_alias = "none"
    takes_keys = False

    async def connect(self) -> None:
        """Accept, and say why not if the visitor may not be here."""
        self.settings = conf()
        self.readers: dict[str, asyncio.Task[None]] = {}
        self.active = ""
        self.last_read = ""
        self.unacked = Unacked()
        self.room = Wake(is_set=True)
        await self.accept()
        try:
            self.access: Access | None = await visitor_of(self.scope, keys=self.takes_keys)
        except Refused as error:
            self.access = None
            await self.say(ErrorEvent(error.code, str(error), recoverable=False))
            await self.close(code=REFUSED)

    async def disconnect(self, code: int) -> None:
        """The readers go with the socket; the sessions stay."""
        for task in self.readers.values():
            task.cancel()
        await asyncio.gather(*self.readers.values(), return_exceptions=True)

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        """One client frame."""
        access = self.access
        if access is None:
            return
        try:
            if text_data is None:
                raise FrameError("not_text", "Frames are JSON text, not bytes.")
            frame = parse_frame(text_data, self.settings)
            match frame:
                case StartFrame():
                    await self.start(frame, await self.still())
                case InterruptFrame():
                    await self.interrupt(frame.session_id or self.active, access)
                case ResumeFrame():
                    await self.resume(frame, await self.still())
                case AckFrame():
                    self.acknowledge(frame.session_id or self.last_read, frame.seq)
        except Refused as error:
            self.access = None
            await self.say(ErrorEvent(error.code, str(error), recoverable=False))
            await self.close(code=REFUSED)
        except FrameError as error:
            await self.say(ErrorEvent(error.code, str(error), recoverable=True, field=error.field or None))
        except LogUnavailable as error:
            await self.say(log_error(error))
        except ObjectDoesNotExist:
            await self.say(ErrorEvent("unknown_session", "There is no such session.", True, "session_id"))
        except Exception:
            logger.exception("frame_failed")
            await self.say(ErrorEvent("internal", "Something went wrong on the server.", recoverable=True))

    async def still(self) -> Access:
        """The access as it is now: a socket outlives neither its key nor its token. Raises ``Refused``."""
        return await visitor_of(self.scope, keys=self.takes_keys)

    async def start(self, frame: StartFrame, access: Access) -> None:
        """Begin a session and read along."""
        if access.visitor.only_session:
            raise StartRefused("forbidden", "A stream token reads one session; beginning one needs an API key.")
        if self.active:
            raise StartRefused("busy", "An answer is still being written here; stop it or wait for its end.")
        await self.count(access)
        headers = headers_of(self.scope)
        marks = Marks(headers, query_of(self.scope))
        # One of its own for each answer, unless the socket's opener gave one: a socket lives for hours.
        correlation_id = correlation_of(dict(headers).get("x-correlation-id", ""))
        policy, own = frame.policy or access.policy, self.own(frame)
        asked = Asked(access.visitor, policy, correlation_id=correlation_id, own=own, marks=marks)
        # Busy from now on: two frames sent back to back must not begin two answers.
        self.active = "starting"
        try:
            with structlog.contextvars.bound_contextvars(correlation_id=correlation_id):
                started = await start_chat(frame, asked, self.log(), self.settings)
        except BaseException:
            self.active = ""
            raise
        self.active = started.session_id
        self.read(Place(started.session_id, started.conversation_id, started.correlation_id, 0, resumed=False))

    def own(self, frame: StartFrame) -> Own:
        """What the socket brings to a session of its own."""
        return Own()

    async def count(self, access: Access) -> None:
        """What an API key begins here counts like a call that begins something. Raises ``StartRefused``."""
        client, limit = access.visitor.client, access.calls_per_minute
        allowance = await take(client, Spends.START, limit) if client else None
        if allowance is not None and allowance.exceeded:
            wait = f"The API key allows {limit} such calls per minute; try again in {allowance.retry_after} s."
            raise StartRefused("too_many_calls", wait)

    async def interrupt(self, session_id: str, access: Access) -> None:
        """Ask for the session's end; nothing happens when there is none."""
        if not session_id or session_id == "starting":
            return
        if session_id not in self.readers:
            await owned_session(access.visitor, session_id)
        await self.log().interrupt(session_id)

    async def resume(self, frame: ResumeFrame, access: Access) -> None:
        """Read on from where the client is, in place of a reader that this socket already has."""
        found = await owned_session(access.visitor, frame.session_id)
        session_id = str(found.pk)
        if old := self.readers.pop(session_id, None):
            old.cancel()
        if found.state == found.State.ACTIVE:
            self.active = session_id
        conversation_id = str(found.conversation_id or "")
        self.read(Place(session_id, conversation_id, found.correlation_id, frame.last_seq, resumed=True))

    def log(self) -> SessionLog:
        """The process's session log. Raises ``LogUnavailable``."""
        return shared_log()

    def read(self, place: Place) -> None:
        """Deliver the session's events beside whatever else the socket does."""
        self.readers[place.session_id] = asyncio.get_running_loop().create_task(self.deliver(place))

    async def deliver(self, place: Place) -> None:
        """Every event of the session from there on; through a log that goes away and comes back."""
        task, session_id = asyncio.current_task(), place.session_id
        try:
            while not await self.read_on(place):  # noqa: ASYNC110
                # Nothing here tells us when a store is back, so we look again.
                await asyncio.sleep(AGAIN_S)
        except Exception:
            logger.exception("reader_failed", session=session_id, correlation_id=place.correlation_id)
            await self.say(ErrorEvent("internal", "Something went wrong on the server.", recoverable=True), place)
        finally:
            if self.active == session_id:
                self.active = ""
            if self.readers.get(session_id) is task:
                del self.readers[session_id]

    async def read_on(self, place: Place) -> bool:
        """Read until the session is COMPLETE (True) or the log is away (False, and the client knows)."""
        try:
            batches = follow(
                self.log(),
                place.session_id,
                place.after,
                self.settings,
                correlation_id=place.correlation_id,
                resumed=place.resumed,
                told=place.told,
            )
            async with aclosing(batches):
                async for batch in batches:
                    for event in batch:
                        await self.pass_on(event, place.conversation_id)
                        place.after = max(place.after, int(str(event["seq"])))
        except LogUnavailable as error:
            if not place.warned:
                await self.say(log_error(error), place)
            place.warned = place.resumed = True
            # Without a log the database still says how the answer ended, as soon as the pump has recorded it.
            state, said = await over(place.session_id)
            complete = state is AuditSession.State.COMPLETE
            news = said if not place.told else said[-1:] if complete else ()
            for item in news:
                event = from_database(item, place.session_id, place.correlation_id)
                await self.pass_on(event, place.conversation_id)
            place.told = bool(said)
            return complete
        return True

    async def pass_on(self, event: dict[str, object], conversation_id: str) -> None:
        """Send one stamped event, once the client has room for it."""
        await self.room.wait()
        session_id, seq = str(event["session_id"]), int(str(event["seq"]))
        if event["type"] == "done" and self.active == session_id:
            self.active = ""
        text = self.write(event, conversation_id)
        self.unacked.sent(session_id, seq, len(text.encode()))
        self.last_read = session_id
        if self.unacked.bytes >= self.settings.max_unacked_bytes:
            self.room.clear()
        await self.send(text_data=text)

    def acknowledge(self, session_id: str, seq: int) -> None:
        """Everything sent up to this event is off the books."""
        self.unacked.acknowledge(session_id, seq)
        if self.unacked.bytes < self.settings.max_unacked_bytes:
            self.room.set()

    async def say(self, event: ErrorEvent, place: Place | None = None) -> None:
        """An error that stands in no log, sent directly."""
        payload = event.payload()
        if place is not None:
            payload = from_database(event, place.session_id, place.correlation_id)
        await self.send(text_data=self.write(payload, ""))

    def write(self, event: dict[str, object], conversation_id: str) -> str:
        """The frame for an event."""
        raise NotImplementedError


class StreamConsumer(SessionSocket):
    """``/ws/stream/``: one JSON object per event."""

    takes_keys = True

    def write(self, event: dict[str, object], conversation_id: str) -> str:
        """The event as JSON text."""
        return to_json(event)


class ChatConsumer(SessionSocket):
    """``/ws/chat/``: HTML fragments for the demo page."""

    def write(self, event: dict[str, object], conversation_id: str) -> str:
        """The event as fragments with their out-of-band targets."""
        return render(event, context=FragmentContext(conversation_id=conversation_id))


def log_error(error: LogUnavailable) -> ErrorEvent:
    """What a reader is told when the session log is away."""
    return ErrorEvent(
        error.code,
        "The session log cannot be reached, so the answer cannot be streamed now. Please try again in a moment.",
        recoverable=True,
    )
