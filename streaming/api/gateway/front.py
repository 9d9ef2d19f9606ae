"""One request through the gateway, whatever its dialect: who asks, what goes upstream, what comes back.

Exists so that the three fronts are only their dialects. Protects the order of things: key, limits, policy and prompt
come before anything leaves; the row stands before the upstream is asked; and the answer's status is known before its
first byte is sent, so that a failure is an error of the dialect and not half a stream.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from uuid import uuid4

from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase

from guardrails.cohorts import Subject
from guardrails.findings import AppliesTo
from guardrails.performance import Checkpoint
from guardrails.policy import Policy
from streaming import metrics, registry
from streaming.access import Access
from streaming.answer import block_reason
from streaming.api.errors import ApiError
from streaming.chat import StartRefused, load_running
from streaming.conf import conf
from streaming.core.gate import gate_text
from streaming.gateway import places
from streaming.gateway.errors import status_of, worded
from streaming.gateway.gates import Gates, widened
from streaming.gateway.masks import Masks
from streaming.gateway.prompt import BadRequest, Prompted, guarded
from streaming.gateway.record import Record, opened
from streaming.gateway.relay import Failed, Over, Relay, Told
from streaming.gateway.routes import NoUpstream, Route, media_allowed, route
from streaming.gateway.speak import Speaker, spoken
from streaming.gateway.upstream import (
    Dialect,
    Passing,
    Trouble,
    UpstreamSaid,
    chunks,
    guarded_by_breaker,
    in_order,
    lists,
)
from streaming.gateway.walker import Json, Walker, objects
from streaming.providers.base import Provider, ProviderError, ProviderRateLimited, ProviderRequest
from streaming.providers.http import HttpProvider
from streaming.upstreams import Offered, offered

HEARTBEAT_S = 10.0
SESSION, POLICY, VERSION, UPSTREAM = (
    "X-Sluicegate-Session", "X-Sluicegate-Policy", "X-Sluicegate-Policy-Version", "X-Sluicegate-Upstream",
)  # fmt: skip
ACTION = "X-Sluicegate-Action"

Understood = Callable[[Json, Provider, str], ProviderRequest]


@dataclass(frozen=True, slots=True)
class Front:
    """A dialect. ``frame`` puts a chunk on the wire; ``heartbeat`` is sent while nothing else is, ``done`` at the end.

    ``streams`` is what a request that does not say gets.
    """

    dialect: Dialect
    walker: Callable[[Gates], Walker]
    understood: Understood
    speaker: Callable[[Json, str, str], Speaker]
    frame: Callable[[Json], bytes]
    content_type: str
    heartbeat: bytes
    done: bytes = b""
    streams: bool = False
    passed_headers: tuple[str, ...] = ()


def body_of(request: HttpRequest) -> Json:
    """The request's body. Raises ``ApiError``."""
    try:
        found = json.loads(request.body)
    except (ValueError, RecursionError):
        raise ApiError(400, "The body is not JSON.") from None
    if not isinstance(found, dict):
        raise ApiError(400, "The body is not a JSON object.", code="invalid")
    messages = found.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(one, dict) for one in messages):
        raise ApiError(400, "“messages” is a list of at least one message.", code="invalid", field="messages")
    if not isinstance(found.get("model"), str) or not found["model"]:
        raise ApiError(400, "“model” is missing.", code="invalid", field="model")
    if not isinstance(found.get("stream", False), bool | None):
        raise ApiError(400, "“stream” is true or false.", code="invalid", field="stream")
    return found


async def answer(request: HttpRequest, front: Front) -> HttpResponseBase:
    """The answer to one request. Raises ``ApiError``."""
    try:
        response, upstream = await _answer(request, front)
    except ApiError as error:
        metrics.asked_of_gateway(front.dialect, "", error.status)
        raise
    metrics.asked_of_gateway(front.dialect, upstream, response.status_code)
    return response


async def _answer(request: HttpRequest, front: Front) -> tuple[HttpResponseBase, str]:
    """The answer, and the name of the upstream that was asked for it. Raises ``ApiError``."""
    access: Access = request.auth  # type: ignore[attr-defined]  # set by ninja
    body = body_of(request)
    place = await places.take(access.visitor.client, conf().gateway_at_once)
    if place is None:
        said = f"The API key has {conf().gateway_at_once} answers under way; no more are begun at once."
        raise ApiError(429, said, headers={"Retry-After": "1"})
    handed_on = False
    try:
        asked = _Asked(request, front, access, body, place)
        response, handed_on = await asked.answer()
        return response, asked.upstream
    except BadRequest as error:
        raise ApiError(400, str(error), code=error.code, field=error.field) from None
    except NoUpstream as error:
        raise ApiError(404, str(error), code="model_not_found", field="model") from None
    except StartRefused as error:
        raise ApiError(503, str(error), code=error.code) from None
    finally:
        if not handed_on:
            await place.give_back()


async def listed(request: HttpRequest, front: Front, field: str) -> tuple[Offered, dict[str, list[Json]]]:
    """Who is offered, and what upstreams of the front's dialect list, looked at like an answer. Raises ``ApiError``."""
    access: Access = request.auth  # type: ignore[attr-defined]  # set by ninja
    found = await offered()
    try:
        running = await load_running(access.policy, Subject("", access.visitor.user_id))
    except StartRefused as error:
        raise ApiError(503, str(error), code=error.code) from None
    walker = front.walker(Gates(running.policy))
    theirs = await lists(found, front.dialect, field)
    return found, {name: objects([walker.plain(one) for one in entries]) for name, entries in theirs.items()}


class _Asked:
    """One request on its way."""

    def __init__(self, request: HttpRequest, front: Front, access: Access, body: Json, place: places.Place) -> None:
        self._request = request
        self._front = front
        self._access = access
        self._body = body
        self._place = place
        said = body.get("stream")
        self._streaming = front.streams if said is None else bool(said)
        self._sent: dict[str, str] = {}
        self._offered = Offered({}, {}, ())
        self._record: Record | None = None

    @property
    def upstream(self) -> str:
        """Who was asked; empty: nobody."""
        return "" if self._record is None else self._record.provider

    async def answer(self) -> tuple[HttpResponseBase, bool]:
        """The response, and whether the place is given back when its stream ends."""
        running = await load_running(self._access.policy, Subject("", self._access.visitor.user_id))
        policy = widened(running.policy)
        self._offered = await offered()
        routed = route(str(self._body["model"]), self._front.dialect, self._offered)
        masks = Masks(policy, self._body, caller=self._access.visitor.client)
        prompted = await guarded(policy, self._body, media_allowed=media_allowed(policy), mask=masks.mask)
        if prompted.body["model"] != self._body["model"]:  # something else than a model's name stood there
            routed = route(str(prompted.body["model"]), self._front.dialect, self._offered)
        self._sent = self._headers(policy)
        gates = Gates(running.policy, masks.restoring, masks.restore_arguments)
        walker = self._front.walker(gates)
        plans = [] if prompted.blocked is not None else self._plans(routed, prompted)
        record = await opened(
            self._access.visitor,
            running.policy,
            prompted,
            provider=routed.provider.called,
            model=routed.model or routed.provider.default_model,
            streaming=self._streaming,
            correlation_id=str(self._request.META.get("sluicegate.correlation_id", "")),
        )
        if prompted.blocked is not None:
            return await self._refused(record, gates, walker), False
        self._record = record
        metrics.GATEWAY_MASKED.labels(self._front.dialect).inc(masks.masked)
        source = _answered(plans, record, self._front.dialect)
        relay = Relay(source, walker, gates, record, streaming=self._streaming)
        task = registry.spawn(record.started.session_id, self._run(relay, masks))
        reader = _Reader(relay, task, self._front, gates)
        try:
            first = await reader.first(may_wait_on=self._streaming)
        except BaseException:
            await reader.close()
            raise
        if isinstance(first, Failed):
            return self._failed(first.error, record, gates), True
        if self._streaming:
            response: HttpResponseBase = StreamingHttpResponse(
                reader.frames(first), content_type=self._front.content_type
            )
            response["Cache-Control"] = "no-store"
            response["X-Accel-Buffering"] = "no"
        else:
            response = JsonResponse(first if isinstance(first, dict) else {})
        return self._named(response, record, gates), True

    async def _run(self, relay: Relay, masks: Masks) -> None:
        try:
            await relay.run()
        finally:
            metrics.GATEWAY_RESTORED.labels(self._front.dialect).inc(masks.put_back)
            await self._place.give_back()

    def _plans(self, routed: Route, prompted: Prompted) -> list[Plan]:
        """Who is asked, in order, and how. Raises ``BadRequest`` where the first one cannot be asked this."""
        plans: list[Plan] = []
        for number, provider in enumerate(in_order(routed.provider, self._offered)):
            model = routed.model if number == 0 else ""
            try:
                plans.append(Plan(provider, self._source(provider, model, routed.scenario, prompted)))
            except BadRequest:
                if number == 0:
                    raise
        return plans

    def _source(
        self, provider: Provider, model: str, scenario: str, prompted: Prompted
    ) -> Callable[[], AsyncGenerator[Json, None]]:
        front, streaming, named = self._front, self._streaming, model or provider.default_model
        if isinstance(provider, HttpProvider) and provider.name == front.dialect:
            passed = Passing({**prompted.body, "model": named}, streaming, self._sent)
            return lambda: chunks(provider, passed, front.dialect)
        asked = front.understood(prompted.body, provider, named)
        if scenario:
            asked = ProviderRequest(asked.messages, "", scenario, tools=asked.tools)
        id_ = uuid4().hex
        return lambda: spoken(provider, asked, front.speaker(prompted.body, named, id_), streaming=streaming)

    def _headers(self, policy: Policy) -> dict[str, str]:
        """Headers of the dialect that say what is asked for: short words in which the policy finds nothing."""
        found = {name: self._request.headers.get(name, "") for name in self._front.passed_headers}
        fit = {name: value for name, value in found.items() if value and len(value) < 400}
        fit = {n: v for n, v in fit.items() if all(c.isascii() and (c.isalnum() or c in "-_., ") for c in v)}
        rules = policy.only(Checkpoint.IMMEDIATE)
        return {
            name: value
            for name, value in fit.items()
            if gate_text(rules, value, applies_to=AppliesTo.PROMPT, channel="prompt").visible == value
        }

    async def _refused(self, record: Record, gates: Gates, walker: Walker) -> HttpResponseBase:
        """The prompt was stopped: an answer in the dialect that says so. Nothing went upstream."""
        finding = record.prompted.blocked
        assert finding is not None
        reason = block_reason(finding, "prompt")
        await record.end(gates, {})
        walker.begin(uuid4().hex, str(self._body["model"]), int(time.time()), streaming=self._streaming)
        if not self._streaming:
            return self._named(JsonResponse(walker.stopped_whole(None, reason)), record, gates)
        frames = b"".join(map(self._front.frame, walker.stopped(reason))) + self._front.done

        async def body() -> AsyncGenerator[bytes, None]:
            yield frames

        response = StreamingHttpResponse(body(), content_type=self._front.content_type)
        return self._named(response, record, gates)

    def _failed(self, error: ProviderError, record: Record, gates: Gates) -> HttpResponse:
        """The upstream did not answer: its own words where it speaks the dialect, ours elsewhere."""
        if isinstance(error, UpstreamSaid):
            walker = self._front.walker(gates)
            response = JsonResponse(walker.plain(error.document), status=error.status)
            if error.retry_after.isdecimal():
                response["Retry-After"] = error.retry_after
        else:
            status = status_of(error)
            response = JsonResponse(
                worded(self._front.dialect, status, error.code, gates.plain(_sentence(error))), status=status
            )
            if isinstance(error, ProviderRateLimited) and error.retry_after_s is not None:
                response["Retry-After"] = str(max(1, round(error.retry_after_s)))
        named = self._named(response, record, gates)
        assert isinstance(named, HttpResponse)
        return named

    def _named(self, response: HttpResponseBase, record: Record, gates: Gates) -> HttpResponseBase:
        response[SESSION] = record.started.session_id
        response[POLICY] = record.policy.name
        response[VERSION] = str(record.policy.version)
        response[UPSTREAM] = record.provider
        if record.prompted.blocked is not None or gates.blocked is not None:
            response[ACTION] = "block"
        return response


def _sentence(error: ProviderError) -> str:
    said = str(error)
    return f"{said[:1].upper()}{said[1:]}."


@dataclass(frozen=True, slots=True)
class Plan:
    """One upstream, and how to ask it."""

    provider: Provider
    ask: Callable[[], AsyncGenerator[Json, None]]


async def _answered(plans: list[Plan], record: Record, dialect: Dialect) -> AsyncGenerator[Json, None]:
    """The answer of the first upstream that gives one. Raises the first one's ``ProviderError``."""
    first: ProviderError | None = None
    for plan in plans:
        begun = False
        if first is not None:
            record.fallback, record.provider, record.model = (
                first.code,
                plan.provider.called,
                plan.provider.default_model,
            )
            metrics.fell_back(dialect, record.provider, record.fallback)
        try:
            async with guarded_by_breaker(plan.provider), aclosing(plan.ask()) as found:
                async for chunk in found:
                    begun = True
                    yield chunk
            return
        except ProviderError as error:
            if begun or (error.permanent and not isinstance(error, Trouble)):
                raise
            first = first or error
    if first is not None:
        raise first


class _Reader:
    """The client's end of a relay."""

    def __init__(self, relay: Relay, task: asyncio.Task[None], front: Front, gates: Gates) -> None:
        self._gates = gates
        self._relay = relay
        self._task = task
        self._front = front

    async def first(self, *, may_wait_on: bool) -> Told | None:
        """What comes first: a chunk, or the failure.

        ``may_wait_on``: None when the upstream answers and all of it is held for longer than clients like to wait.
        """
        while True:
            try:
                async with asyncio.timeout(HEARTBEAT_S):
                    return await self._relay.told.get()
            except TimeoutError:
                if may_wait_on and self._relay.begun:
                    return None

    async def frames(self, told: Told | None) -> AsyncGenerator[bytes, None]:
        """The answer on the wire. A client that has gone ends it, and with it the upstream's."""
        queue, front = self._relay.told, self._front
        try:
            while told is None:
                yield self._heartbeat()
                told = await self.first(may_wait_on=True)
            while True:
                if isinstance(told, Over):
                    if front.done:
                        yield front.done
                    return
                if isinstance(told, Failed):
                    yield front.frame(self._broken(told.error))
                    return
                parts = [front.frame(told)]
                while not queue.empty() and len(parts) < 64:
                    following = queue.get_nowait()
                    if not isinstance(following, dict):
                        yield b"".join(parts)
                        told = following
                        break
                    parts.append(front.frame(following))
                else:
                    yield b"".join(parts)
                    while True:
                        try:
                            async with asyncio.timeout(HEARTBEAT_S):
                                told = await queue.get()
                            break
                        except TimeoutError:
                            yield self._heartbeat()
        finally:
            await self.close()

    def _heartbeat(self) -> bytes:
        metrics.GATEWAY_HEARTBEATS.labels(self._front.dialect).inc()
        return self._front.heartbeat

    async def close(self) -> None:
        """Nobody reads any more."""
        if not self._relay.answered:
            self._relay.abandon()
            self._task.cancel()

    def _broken(self, error: ProviderError) -> Json:
        if isinstance(error, UpstreamSaid):
            said = self._front.walker(self._gates).plain(error.document)
            return said if isinstance(said, dict) else {}
        message = self._gates.plain(_sentence(error))
        return worded(self._front.dialect, status_of(error), error.code, message)
