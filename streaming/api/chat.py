"""``POST /v1/chat`` begins an answer, ``GET /v1/stream/events`` reads a session's events.

Exists for clients that let the server talk to the model. Protects the rule that a call begins a session in the very
way a socket does, with the same fields and the same refusals, and that its events are those of the session's log.
"""

from __future__ import annotations

import json
from typing import Literal

from django.core.exceptions import ObjectDoesNotExist
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.urls import reverse
from ninja import Router, Schema, Status

from streaming.access import Access, Refused, access_by_token
from streaming.api.auth import Key, check_origin, key_of
from streaming.api.check import no_policy
from streaming.api.errors import ApiError, refusals
from streaming.chat import Asked, StartRefused, start_chat
from streaming.conf import conf
from streaming.frames import FrameError, StartFrame, frame_of
from streaming.limits import Spends
from streaming.log import LogUnavailable, SessionLog
from streaming.log_redis import shared_log
from streaming.models import AuditSession
from streaming.open_sessions import RETRY_S, TooManyOpen
from streaming.rollout import marks_of
from streaming.selectors import owned_session
from streaming.sse import ENDED, event_stream

router = Router(tags=["chat"])
RENEWED = "X-Stream-Token"
TOKEN_PARAMETER = {
    "in": "query", "name": "token", "schema": {"type": "string"}, "description": "A stream token in the key's place.",
}  # fmt: skip
LAST_EVENT_PARAMETER = {
    "in": "header", "name": "Last-Event-ID", "schema": {"type": "string", "pattern": "^[0-9]{1,15}$"},
    "description": "The seq of the last event that was read.",
}  # fmt: skip


class ChatIn(StartFrame):
    """What a start frame says; its type need not be said."""

    type: Literal["start"] = "start"


class ChatOut(Schema):
    """Where to read the answer. ``events_url`` needs the key, or ``&token=`` with the token."""

    session_id: str
    conversation_id: str
    stream_token: str
    events_url: str


class EventsAuth(Key):
    """A key with the scope ``stream``, or ``?token=`` for readers that cannot send headers.

    Beside a token that is good for nothing (any more) a key counts.
    """

    async def __call__(self, request: HttpRequest) -> Access:
        """The access of the request. Raises ``ApiError``."""
        token = request.GET.get("token", "")
        if not token:
            return await super().__call__(request)
        try:
            access = await access_by_token(token, self.scope)
            check_origin(request, access)
        except Refused as error:
            unknown = error.code == "unauthenticated"
            if unknown and key_of(request) and request.GET.get("session_id"):
                return await super().__call__(request)
            raise ApiError(401 if unknown else 403, str(error), code=error.code) from None
        return access


@router.post(
    "/chat",
    auth=Key("stream", Spends.START),
    response={201: ChatOut, **refusals(429)},
    summary="Begin a guarded answer",
)
async def chat(request: HttpRequest, payload: ChatIn) -> Status[ChatOut]:
    """The prompt is checked and stored, the answer streams into the session's events."""
    access: Access = request.auth  # type: ignore[attr-defined]  # set by ninja
    settings = conf()
    try:
        # One reading of the fields for sockets and calls; ninja's own has only said what the document promises.
        frame = frame_of({**json.loads(request.body), "type": "start"}, settings)
        if not isinstance(frame, StartFrame):
            raise FrameError("not_an_object", "The body is not a JSON object.")
        asked = Asked(
            access.visitor,
            frame.policy or access.policy,
            correlation_id=str(request.META.get("sluicegate.correlation_id", "")),
            marks=marks_of(request),
        )
        started = await start_chat(frame, asked, shared_log(), settings)
    except FrameError as error:
        if isinstance(error, StartRefused) and error.field == "policy" and not payload.policy:
            raise no_policy(error, "") from None
        status = 429 if error.code == TooManyOpen.code else 422
        headers = {"Retry-After": str(RETRY_S)} if status == 429 else None
        raise ApiError(status, str(error), code=error.code, field=error.field, headers=headers) from None
    except LogUnavailable:
        said = "The session log cannot be reached, so nothing can be streamed now."
        raise ApiError(503, said, code=LogUnavailable.code) from None
    out = ChatOut(
        session_id=started.session_id,
        conversation_id=started.conversation_id,
        stream_token=access.stream_token(started.session_id),
        events_url=f"{reverse('v1:events')}?session_id={started.session_id}",
    )
    return Status(201, out)


@router.get(
    "/stream/events",
    auth=EventsAuth("stream"),
    url_name="events",
    response={204: None, **refusals(404)},
    openapi_extra={
        "parameters": [TOKEN_PARAMETER, LAST_EVENT_PARAMETER],
        "responses": {200: {"description": "OK", "content": {"text/event-stream": {}}}},
    },
    summary="A session's events (SSE)",
)
async def events(request: HttpRequest, session_id: str = "") -> HttpResponse | StreamingHttpResponse:
    """All events above ``Last-Event-ID`` until the session is COMPLETE; 204 when the reader has them all.

    An end that the database tells (``seq`` 0: the log is gone) has the ``id`` 999999999999999 on its COMPLETE.
    """
    access: Access = request.auth  # type: ignore[attr-defined]  # set by ninja
    after = _last_seen(request)
    session_id = session_id or access.visitor.only_session
    if not session_id:
        raise ApiError(422, "“session_id” is missing.", field="session_id")
    try:
        session = await owned_session(access.visitor, session_id)
        log = shared_log()
        # 204 is what makes an EventSource stop asking again.
        if after and session.state == AuditSession.State.COMPLETE and await _has_all(log, session_id, after):
            return HttpResponse(status=204)
    except ObjectDoesNotExist:
        raise ApiError(404, "There is no such session.", field="session_id") from None
    except LogUnavailable:
        raise ApiError(503, "The session log cannot be reached now.", code=LogUnavailable.code) from None
    frames = event_stream(
        log, str(session.pk), after, conf(), correlation_id=session.correlation_id, key=access.key,
        until=access.until,
    )  # fmt: skip
    response = StreamingHttpResponse(frames, content_type="text/event-stream")
    response["Cache-Control"] = "no-store"
    response["X-Accel-Buffering"] = "no"
    response[RENEWED] = access.stream_token(str(session.pk))
    return response


async def _has_all(log: SessionLog, session_id: str, after: int) -> bool:
    """Whether a reader has the last event of a session that is COMPLETE; where its log is gone, the database's end.

    The last step is stored before it is told, and who comes in between has not seen how the answer ended.
    """
    rest = await log.read(session_id, after - 1, 2)
    if not rest:
        return after == ENDED
    last = rest[0]
    told = (last["seq"], last["type"], last.get("state")) == (after, "state", AuditSession.State.COMPLETE.value)
    return told and len(rest) == 1


def _last_seen(request: HttpRequest) -> int:
    said = request.headers.get("Last-Event-ID", "") or "0"
    if not (said.isascii() and said.isdigit() and len(said) < 16):
        raise ApiError(422, "“Last-Event-ID” is the seq of an event, a whole number.", field="Last-Event-ID")
    return int(said)
