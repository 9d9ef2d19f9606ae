"""The two sockets: ``/ws/chat/`` speaks HTML to the page, ``/ws/stream/`` speaks JSON to programs.

A socket runs nothing itself: it asks for sessions and reads their logs, so it may come and go. Protects three rules:
a slow client slows nobody (its reader waits for acknowledgements, the pump does not), a wrong frame is answered with
an error that names the field, and a reader never sees a traceback.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog
from channels.exceptions import StopConsumer
from channels.generic.websocket import AsyncWebsocketConsumer
from django.core.exceptions import ObjectDoesNotExist

from streaming import away, stream_tokens
from streaming.access import NO_TOKEN, Access, Refused, headers_of, query_of, token_in, visitor_of
from streaming.chat import Asked, Own, StartRefused, start_chat
from streaming.conf import conf
from streaming.core.events import Done, ErrorEvent, FindingEvent, ServerEvent
from streaming.core.wire import to_json
from streaming.correlation import correlation_of
from streaming.database import AWAY
from streaming.fragments import FragmentContext, render
from streaming.frames import AckFrame, FrameError, InterruptFrame, ResumeFrame, StartFrame, parse_frame
from streaming.key_watch import look
from streaming.limits import Spends, take
from streaming.log import LogUnavailable, SessionLog
from streaming.log_redis import shared_log
from streaming.models import AuditSession
from streaming.reader import Batch, follow, from_database, over, untold_yet
from streaming.rollout import Marks
from streaming.selectors import owned_session
from streaming.unacked import Unacked
from streaming.wake import Wake

logger = structlog.get_logger(__name__)

REFUSED = 4401
UNKNOWN = "sluicegate.unknown"
"""Where the scope says why nobody could find out who opens the socket."""
BROKEN, TRY_AGAIN = 1011, 1013
"""What a socket is closed with that failed here, and one that nobody can let in now (RFC 6455's registry)."""
OWNED = "The text of this stream comes from its client, who ends it with POST /v1/stream/finish."
AGAIN_S = 0.5
"""Seconds between two looks for a log that is away."""


@dataclass(slots=True)
class Place:
    """Where a reader is in a session. ``told``: the client knows how the answer ended; ``warned``: that the log
    or the database is away. ``task``: what reads. ``owned``: the session's text comes from its client. ``running``: it
    was resumed while its answer ran, which is not over yet. ``heard``: numbers of findings that were sent."""

    session_id: str
    conversation_id: str
    correlation_id: str
    after: int
    resumed: bool
    told: bool = False
    warned: bool = False
    owned: bool = False
    running: bool = False
    task: asyncio.Task[None] | None = None
    heard: set[object] = field(default_factory=set)

    def sent(self, event: Mapping[str, object]) -> None:
        """The client has it: what the database says of it as well is not sent again."""
        if event["type"] == FindingEvent.type:
            self.heard.add(event["n"])
        elif event["type"] == Done.type and not event["seq"]:
            self.told = True

    def stop(self) -> None:
        """Read no further."""
        if self.task is not None:
            self.task.cancel()


class SessionSocket(AsyncWebsocketConsumer):
    """What both sockets do; subclasses say how an event is written and whether API keys are taken."""

    # Wake-ups come through the session log's own listener, one per process: a socket needs no layer of its own, and
    # must not break when the store behind the layer goes away.
    channel_layer_alias = "none"
    takes_keys = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve the socket; whatever breaks it, its readers go with it.

        What Channels does where there is one source of messages, without a task for it and without its waits.
        """
        self.scope, self.base_send = scope, send
        self.channel_layer = None  # type: ignore[assignment]  # as Channels itself has it where there is none
        try:
            while True:
                await self.dispatch(await receive())
        except StopConsumer:
            return
        except (Exception, asyncio.CancelledError):
            if hasattr(self, "readers"):
                await self.disconnect(BROKEN)
            raise

    async def connect(self) -> None:
        """Accept, and say why not if the visitor may not be here."""
        self.settings = conf()
        self.readers: dict[str, Place] = {}
        self.key = ""
        self.until: float | None = None
        self.active = self.resumed = ""  # the answer that began here and the one that was resumed last, while they run
        self.last_read = ""
        self.unacked = Unacked()
        self.room = Wake(is_set=True)
        await self.accept()
        self.access: Access | None = None
        try:
            if isinstance(unknown := self.scope.get(UNKNOWN), AWAY):
                raise unknown
            self.access = await visitor_of(self.scope, keys=self.takes_keys)
            self.key, self.until = self.access.key, self.access.until
        except Refused as error:
            await self.say(ErrorEvent(error.code, str(error), recoverable=False))
            await self.close(code=REFUSED)
        except AWAY as error:
            await self.say(away.noted(error, path=self.scope["path"]))
            await self.close(code=TRY_AGAIN)

    async def disconnect(self, code: int) -> None:
        """The readers go with the socket; the sessions stay."""
        places = list(self.readers.values())
        for place in places:
            place.stop()
        await asyncio.gather(*(place.task for place in places if place.task), return_exceptions=True)

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        """One client frame. What is logged meanwhile bears an id, the session's as soon as it is known."""
        if (access := self.access) is None:
            return
        given = dict(headers_of(self.scope)).get("x-correlation-id", "")
        # One of its own for each frame, unless the socket's opener gave one: a socket lives for hours.
        with structlog.contextvars.bound_contextvars(correlation_id=correlation_of(given)):
            await self.take_frame(text_data, access)

    async def take_frame(self, text_data: str | None, access: Access) -> None:
        """Do what a frame asks for, or say why not."""
        try:
            if text_data is None:
                raise FrameError("not_text", "Frames are JSON text, not bytes.")
            frame = parse_frame(text_data, self.settings)
            match frame:
                case StartFrame():
                    await self.start(frame, await self.still())
                case InterruptFrame():
                    self.token_stands(access)
                    await look(self.key, "stream", now=True)
                    await self.interrupt(frame.session_id or self.active or self.resumed, access)
                case ResumeFrame():
                    await self.resume(frame, await self.still())
                case AckFrame():
                    await look(self.key, "stream", until=self.until)
                    self.acknowledge(frame.session_id or self.last_read, frame.seq)
        except Refused as error:
            await self.refuse(error)
        except FrameError as error:
            await self.say(ErrorEvent(error.code, str(error), recoverable=True, field=error.field or None))
        except LogUnavailable as error:
            await self.say(log_error(error))
        except ObjectDoesNotExist:
            await self.say(ErrorEvent("unknown_session", "There is no such session.", True, "session_id"))
        except AWAY as error:
            await self.say(away.noted(error, path=self.scope["path"]))
        except Exception:
            logger.exception("frame_failed")
            await self.say(ErrorEvent("internal", "Something went wrong on the server.", recoverable=True))

    async def refuse(self, error: Refused) -> None:
        """Say why, read nothing more, and close."""
        if self.access is None:
            return
        self.access = None
        for place in self.readers.values():
            if place.task is not asyncio.current_task():
                place.stop()
        await self.say(ErrorEvent(error.code, str(error), recoverable=False))
        await self.close(code=REFUSED)

    async def still(self) -> Access:
        """The access as it is now: a socket outlives neither its key nor its token. Raises ``Refused``."""
        return await visitor_of(self.scope, keys=self.takes_keys)

    def token_stands(self, access: Access) -> None:
        """Whether the token that opened the socket is still good, if it was one. Raises ``Refused``.

        The database is not asked: an answer can be stopped while it is away.
        """
        if access.by_key_at is not None and stream_tokens.opened(token_in(self.scope)) is None:
            raise Refused("unauthenticated", NO_TOKEN)

    async def start(self, frame: StartFrame, access: Access) -> None:
        """Begin a session and read along."""
        if access.visitor.only_session:
            raise StartRefused("forbidden", "A stream token reads one session; beginning one needs an API key.")
        if self.occupied():
            raise StartRefused("busy", "An answer is still being written here; stop it or wait for its end.")
        await self.count(access)
        headers = headers_of(self.scope)
        marks = Marks(headers, query_of(self.scope))
        correlation_id = str(structlog.contextvars.get_contextvars()["correlation_id"])
        policy, own = frame.policy or access.policy, self.own(frame)
        asked = Asked(access.visitor, policy, correlation_id=correlation_id, own=own, marks=marks)
        # Busy from now on: two frames sent back to back must not begin two answers.
        self.active = "starting"
        try:
            started = await start_chat(frame, asked, self.log(), self.settings)
            await self.begun()
        except BaseException:
            self.active = ""
            raise
        self.active = started.session_id
        self.read(Place(started.session_id, started.conversation_id, started.correlation_id, 0, resumed=False))

    def occupied(self) -> bool:
        """Whether an answer runs here beside which none may begin."""
        return bool(self.active or self.resumed)

    async def begun(self) -> None:
        """A session has begun, which nothing refuses any more, and is not read yet."""

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
        """Ask for the session's end; nothing happens when there is none. A stream that its client owns has no pump
        here that could be stopped: its client ends it."""
        if not session_id or session_id == "starting":
            return
        if place := self.readers.get(session_id):
            _bind(place.correlation_id)
            owned = place.owned
        else:
            found = await owned_session(access.visitor, session_id)
            _bind(found.correlation_id)
            owned = found.origin == found.Origin.STREAM
        if owned:
            raise FrameError("not_ours_to_stop", OWNED, "session_id")
        await self.log().interrupt(session_id)

    async def resume(self, frame: ResumeFrame, access: Access) -> None:
        """Read on from where the client is, in place of a reader that this socket already has."""
        found = await owned_session(access.visitor, frame.session_id)
        _bind(found.correlation_id)
        session_id = str(found.pk)
        if old := self.readers.pop(session_id, None):
            old.stop()
        if running := found.state == found.State.ACTIVE:
            self.resumed = session_id
        conversation_id = str(found.conversation_id or "")
        owned = found.origin == found.Origin.STREAM
        self.read(
            Place(
                session_id, conversation_id, found.correlation_id, frame.last_seq, resumed=True, owned=owned,
                running=running,
            )
        )  # fmt: skip

    def log(self) -> SessionLog:
        """The process's session log. Raises ``LogUnavailable``."""
        return shared_log()

    def read(self, place: Place) -> None:
        """Deliver the session's events beside whatever else the socket does."""
        self.readers[place.session_id] = place
        place.task = asyncio.get_running_loop().create_task(self.deliver(place), name="reader")

    async def deliver(self, place: Place) -> None:
        """Every event of the session from there on; through a log that goes away and comes back."""
        session_id = place.session_id
        try:
            over = False
            while not over:
                try:
                    over = await self.read_log(place)
                except AWAY as error:
                    await self.say_that_it_is_away(error, place)
                if not over:  # nothing here tells us when a store is back, so we look again
                    await asyncio.sleep(AGAIN_S)
        except Refused as error:
            await self.refuse(error)
        except Exception:
            logger.exception("reader_failed", session=session_id, correlation_id=place.correlation_id)
            await self.say(ErrorEvent("internal", "Something went wrong on the server.", recoverable=True), place)
        finally:
            if self.readers.get(session_id, place) is place:  # no other reader has taken over
                self.forget(session_id)
                self.readers.pop(session_id, None)

    def forget(self, session_id: str) -> None:
        """That answer does not run any more."""
        if self.active == session_id:
            self.active = ""
        if place := self.readers.get(session_id):
            place.running = False
        if self.resumed == session_id:
            self.resumed = next((name for name, one in reversed(self.readers.items()) if one.running), "")

    async def say_that_it_is_away(self, error: Exception, place: Place) -> None:
        """Note that the database is away, and tell the client once."""
        event = away.noted(error, session=place.session_id, correlation_id=place.correlation_id)
        if not place.warned:
            await self.say(event, place)
        place.warned = place.resumed = True

    async def read_log(self, place: Place) -> bool:
        """Read until the session is COMPLETE (True) or the log is away (False, and the client knows).

        Raises what is raised where the database is away.
        """
        try:
            batches = follow(
                self.log(),
                place.session_id,
                place.after,
                self.settings,
                correlation_id=place.correlation_id,
                resumed=place.resumed,
                told=place.told,
                heard=place.heard,
                session_over=self.ended,
            )
            try:
                async for batch in batches:
                    await self.pass_all(batch, place)
                    batch.clear()  # the next one may be hours away
            finally:
                await batches.aclose()
        except LogUnavailable as error:
            if not place.warned:
                await self.say(log_error(error), place)
            place.warned = place.resumed = True
            # Without a log the database still says how the answer ended, as soon as the pump has recorded it.
            state, said = await self.ended(place.session_id)
            complete = state is AuditSession.State.COMPLETE
            news = untold_yet(said, set(place.heard), ended=place.told) if complete or not place.told else ()
            for item in news:
                event = from_database(item, place.session_id, place.correlation_id)
                await self.pass_on(event, place.conversation_id)
                place.sent(event)
            place.told = bool(said)
            return complete
        return True

    def worth_sending(self, batch: Batch) -> Batch:
        """What of events that were read together is sent."""
        return batch

    async def pass_all(self, batch: Batch, place: Place) -> None:
        """Send events that were read together."""
        if place.warned and any(event["seq"] for event in batch):
            place.warned = False  # the next time that something is away is told again
        await look(self.key, "stream", until=self.until)
        for event in self.worth_sending(batch):
            await self.pass_on(event, place.conversation_id)
            place.sent(event)
            place.after = max(place.after, int(str(event["seq"])))

    async def ended(self, session_id: str) -> tuple[AuditSession.State, Sequence[ServerEvent]]:
        """How a session ended, which a quiet reader asks the database, and so about its key as well."""
        await look(self.key, "stream", until=self.until)
        return await over(session_id)

    async def pass_on(self, event: dict[str, object], conversation_id: str) -> None:
        """Send one stamped event, once the client has room for it."""
        while not self.room.is_set():  # with room for one, several readers wake
            await self.room.wait()
        session_id, seq = str(event["session_id"]), int(str(event["seq"]))
        if event["type"] == "done":
            self.forget(session_id)
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

    def worth_sending(self, batch: Batch) -> Batch:
        """A row shows its guardrail's latest state, and a channel the latest hold: those before it in the same batch
        would only be painted over."""
        latest = {_painted(event): event["seq"] for event in batch}
        return [one for one in batch if latest[_painted(one)] == one["seq"]]

    def write(self, event: dict[str, object], conversation_id: str) -> str:
        """The event as fragments with their out-of-band targets."""
        return render(event, context=FragmentContext(conversation_id=conversation_id))


def _painted(event: dict[str, object]) -> tuple[object, ...]:
    """What an event paints over: where two have the same, only the later one is seen. Most paint over nothing."""
    if event["type"] == "guardrail_status":
        return "guardrail_status", event["guardrail"]
    if event["type"] == "hold":
        return "hold", event["message_id"], event["channel"], event.get("choice", 0)
    return (event["seq"],)


def _bind(correlation_id: str) -> None:
    """From here on it is about this session; ``receive`` takes it back."""
    if correlation_id:
        structlog.contextvars.bind_contextvars(correlation_id=correlation_id)


def log_error(error: LogUnavailable) -> ErrorEvent:
    """What a reader is told when the session log is away."""
    return ErrorEvent(
        error.code,
        "The session log cannot be reached, so the answer cannot be streamed now. Please try again in a moment.",
        recoverable=True,
    )
