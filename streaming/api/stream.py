"""``/v1/stream/start|update|finish|status``: guarded streaming for clients that own their stream.

Exists for plugins and back ends that have the model's answer already and want it guarded while it flows. Protects the
form of the contract; its rules stand in ``streaming.guarded``: an answer is sent only after the new state is stored,
and what is refused changes nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Literal

import structlog
from django.http import HttpRequest, HttpResponse
from ninja import Router, Schema, Status
from pydantic import Field

from guardrails.cohorts import Subject
from guardrails.findings import AppliesTo, FindingDict
from guardrails.selectors import PolicyUnavailable
from streaming.access import Access
from streaming.api.auth import Key
from streaming.api.chat import RENEWED, TOKEN_PARAMETER, EventsAuth
from streaming.api.check import Context, Named, Open, Short, Text, no_policy
from streaming.api.errors import ApiError, refusals
from streaming.away import AGAIN_S
from streaming.chat import StartRefused, load_running
from streaming.conf import conf
from streaming.core.events import PolicyRef
from streaming.database import reading
from streaming.given import Given
from streaming.guarded.about import Counts, DeferredAbout, GuardrailAbout, about
from streaming.guarded.hints import Hints
from streaming.guarded.record import Answer
from streaming.guarded.refusals import NoSuchStream, OutOfTurn, StateForeign, StateLost, TooLong
from streaming.guarded.rows import OutcomeName, Summary
from streaming.guarded.service import Beginning, Streams, digest_of
from streaming.limits import Spends
from streaming.log import LogUnavailable
from streaming.log_redis import shared_log
from streaming.open_sessions import RETRY_S, TooManyOpen
from streaming.sessions import is_session_id

router = Router(tags=["stream"])
MAX_KEY_CHARS = 200
MAX_CHUNKS = 1_000_000
REPEAT_PARAMETER = {
    "in": "header", "name": "Idempotency-Key", "schema": {"type": "string", "maxLength": MAX_KEY_CHARS},
    "description": "The same key with the same body begins one stream.",
}  # fmt: skip


class Client(Open):
    """What the client says about itself. ``rules_version``: version or digest of the rules that it runs by itself."""

    name: Short = ""
    version: Short = ""
    rules_version: Short = ""


Chunks = Annotated[
    int | None,
    Field(ge=0, le=MAX_CHUNKS, strict=True, description="How many chunks of the model the client had for this delta."),
]


class StartIn(Named):
    """The first call of a stream; a delta in it has seq 1."""

    kind: Literal["prompt", "response"] = "response"
    delta: Text | None = None
    chunks: Chunks = None
    context: Context = Context()
    client: Client = Client()
    channels: list[Literal["text"]] = Field(default=["text"], min_length=1, max_length=1)


class UpdateIn(Given):
    """The next delta: only what is new."""

    session_id: Short
    seq: int = Field(ge=1, strict=True)
    delta: Text
    chunks: Chunks = None
    channel: Literal["text"] = "text"


class FinishIn(Given):
    """The end of the text; a delta in it has the next seq."""

    session_id: Short
    seq: int | None = Field(default=None, ge=1, strict=True)
    delta: Text | None = None
    chunks: Chunks = None


class Released(Schema):
    """``released`` is only the text that is newly safe to show."""

    session_id: str
    state: Literal["ACTIVE", "MONITORING", "COMPLETE"]
    seq: int
    released: str
    released_chars: int
    action: Literal["allow", "warn", "redact", "block"]
    findings: list[FindingDict]


class UpdateOut(Released):
    """What an update leads to."""

    held_chars: int
    hints: Hints


class StartOut(UpdateOut):
    """What a start leads to. The token opens this session's events for five minutes."""

    policy: PolicyRef
    expires_at: str
    stream_token: str


class FinishOut(Released):
    """What is left when the text is over; ``state`` MONITORING while deferred checks run."""

    summary: Summary


class StatusOut(Schema):
    """What is known of a stream. ``outcome`` is empty while it is open."""

    session_id: str
    state: Literal["ACTIVE", "MONITORING", "COMPLETE"]
    outcome: OutcomeName | Literal[""]
    policy: PolicyRef
    counts: Counts
    guardrails: dict[str, GuardrailAbout]
    deferred: list[DeferredAbout]
    held_chars: Annotated[int, Field(ge=0)]
    expected_seq: Annotated[int, Field(ge=1)]


@router.post(
    "/stream/start",
    auth=Key("stream", Spends.START),
    response={201: StartOut, **refusals(409, 410, 429)},
    openapi_extra={"parameters": [REPEAT_PARAMETER]},
    summary="Begin a stream",
)
async def start(request: HttpRequest, payload: StartIn, response: HttpResponse) -> Status[dict[str, object]]:
    """Begin a stream under a policy; the same ``Idempotency-Key`` with the same body begins it once."""
    access: Access = request.auth  # type: ignore[attr-defined]  # set by ninja
    key = request.headers.get("Idempotency-Key", "")
    if len(key) > MAX_KEY_CHARS:
        raise ApiError(422, f"“Idempotency-Key” has at most {MAX_KEY_CHARS} characters.", field="Idempotency-Key")
    wished, said_in = payload.wished
    body = payload.model_dump(mode="json", exclude={"chunks", "preset"})
    digest = digest_of("start", {**body, "policy": wished})
    async with _refusals():
        streams = Streams(shared_log(), conf())
        before = await streams.begun(access.visitor, key, digest) if key else None
    if before is not None:
        return _begun(before, access, response)
    try:
        whose = Subject(payload.context.conversation, access.visitor.user_id)
        running = await load_running(wished or access.policy, whose)
    except StartRefused as error:
        raise no_policy(error, said_in if wished else "") from None
    asked = Beginning(
        visitor=access.visitor,
        policy=running.policy,
        shadow=running.shadow,
        kind=AppliesTo(payload.kind),
        delta=payload.delta,
        chunks=payload.chunks,
        conversation_key=payload.context.conversation,
        correlation_id=str(request.META.get("sluicegate.correlation_id", "")),
        repeat_key=key,
        rules_version=payload.client.rules_version,
        body_digest=digest,
    )
    try:
        async with _refusals():
            said = await streams.start(asked)
    except TooManyOpen as error:
        raise ApiError(429, str(error), code=error.code, headers={"Retry-After": str(RETRY_S)}) from None
    return _begun(said, access, response)


def _begun(said: Answer, access: Access, response: HttpResponse) -> Status[dict[str, object]]:
    token = access.stream_token(str(said["session_id"]))
    response[RENEWED] = token
    return Status(201, {**said, "stream_token": token})


@router.post(
    "/stream/update",
    auth=Key("stream", Spends.UPDATE),
    response={200: UpdateOut, **refusals(404, 409, 410, 429)},
    summary="Send the next delta",
)
async def update(request: HttpRequest, payload: UpdateIn, response: HttpResponse) -> dict[str, object]:
    """Apply a delta; the same seq with the same body returns the stored answer."""
    access: Access = request.auth  # type: ignore[attr-defined]  # set by ninja
    async with _refusals(payload.session_id):
        streams = Streams(shared_log(), conf())
        said = await streams.update(
            access.visitor, payload.session_id, payload.seq, payload.delta, chunks=payload.chunks
        )
    response[RENEWED] = access.stream_token(payload.session_id)
    return said


@router.post(
    "/stream/finish",
    auth=Key("stream"),
    response={200: FinishOut, **refusals(404, 409, 410)},
    summary="End the stream",
)
async def finish(request: HttpRequest, payload: FinishIn, response: HttpResponse) -> dict[str, object]:
    """Release what can be released, and hand the deferred checks to the workers."""
    access: Access = request.auth  # type: ignore[attr-defined]  # set by ninja
    async with _refusals(payload.session_id):
        streams = Streams(shared_log(), conf())
        said = await streams.finish(
            access.visitor, payload.session_id, payload.seq, payload.delta, chunks=payload.chunks
        )
    response[RENEWED] = access.stream_token(payload.session_id)
    return said


@router.get(
    "/stream/status",
    auth=EventsAuth("stream"),
    response={200: StatusOut, **refusals(404, 410)},
    openapi_extra={"parameters": [TOKEN_PARAMETER]},
    summary="What is known of a stream",
)
async def status(request: HttpRequest, response: HttpResponse, session_id: str = "") -> dict[str, object]:
    """State, counts, guardrails and deferred checks; asking keeps an open stream from expiring."""
    access: Access = request.auth  # type: ignore[attr-defined]  # set by ninja
    session_id = session_id or access.visitor.only_session
    if not session_id:
        raise ApiError(422, "“session_id” is missing.", field="session_id")
    async with _refusals(session_id):
        record = await Streams(shared_log(), conf()).status(access.visitor, session_id)
        said: dict[str, object] = await reading(about)(session_id=session_id, record=record)
    response[RENEWED] = access.stream_token(session_id)
    return said


@asynccontextmanager
async def _refusals(session_id: str = "") -> AsyncIterator[None]:
    """The service's refusals as answers; what is logged meanwhile names the session that the call is about.

    A call has a correlation id of its own, so it is the session's name that leads to the one of the start.
    """
    named = {"session": session_id} if is_session_id(session_id) else {}
    try:
        with structlog.contextvars.bound_contextvars(**named):
            yield
    except NoSuchStream:
        raise ApiError(404, "There is no such stream.", field="session_id") from None
    except OutOfTurn as error:
        raise ApiError(409, str(error), code=error.code, expected_seq=error.expected_seq) from None
    except StateLost:
        raise ApiError(410, "The state of this stream is lost; begin a new one.") from None
    except StateForeign:
        said = "The state of this stream is not for this process; the same call may be sent again."
        raise ApiError(503, said, code="state_foreign", headers={"Retry-After": str(AGAIN_S)}) from None
    except TooLong as error:
        raise ApiError(422, str(error), field="delta") from None
    except PolicyUnavailable as error:
        raise ApiError(503, str(error), code="policy_unavailable") from None
    except LogUnavailable:
        raise ApiError(503, "The store of streams cannot be reached now.", code="log_unavailable") from None
