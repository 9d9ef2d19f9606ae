"""One request through the gateway, whatever its dialect: who asks, what goes upstream, what comes back.

Exists so that the three fronts are only their dialects. Protects the order of things: key, limits, policy and prompt
come before anything leaves; the row stands before the upstream is asked; and the answer's status is known before its
first byte is sent, so that a failure is an error of the dialect and not half a stream. Only a guardrail or an upstream
that says nothing for longer than clients like to wait is waited for with signs of life, where the client streams; what
fails then fails within the stream.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from math import ceil
from uuid import uuid4

import structlog
from django.db import InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase

from guardrails.cohorts import Subject
from guardrails.findings import AppliesTo, Outcome
from guardrails.performance import Checkpoint
from guardrails.policy import Policy
from guardrails.selectors import Running, ShadowPolicy
from streaming import away, metrics, registry
from streaming.access import Access
from streaming.answer import block_reason
from streaming.api.auth import taken
from streaming.api.errors import ApiError
from streaming.api.gateway.wire import Front, Reader, sentence
from streaming.chat import StartRefused, load_running
from streaming.conf import conf
from streaming.core.gate import gate_text
from streaming.gateway import places
from streaming.gateway.errors import status_of, worded
from streaming.gateway.gates import Gates, widened
from streaming.gateway.masks import Masks
from streaming.gateway.plans import Ask, Plan, answered
from streaming.gateway.prompt import BadRequest, Prompted, guarded
from streaming.gateway.record import Record, opened
from streaming.gateway.relay import Failed, Relay
from streaming.gateway.routes import NoUpstream, Route, media_allowed, route
from streaming.gateway.shadow import Noted
from streaming.gateway.speak import spoken
from streaming.gateway.standing import Standing
from streaming.gateway.upstream import (
    MOST_WAIT_S,
    Passing,
    UpstreamSaid,
    chunks,
    in_order,
    lists,
)
from streaming.gateway.walker import Json, Walker, objects
from streaming.providers.base import Provider, ProviderRateLimited, ProviderRequest
from streaming.providers.http import HttpProvider
from streaming.upstreams import Offered, offered

SESSION, POLICY, VERSION, UPSTREAM = (
    "X-Sluicegate-Session", "X-Sluicegate-Policy", "X-Sluicegate-Policy-Version", "X-Sluicegate-Upstream",
)  # fmt: skip
ACTION = "X-Sluicegate-Action"
logger = structlog.get_logger(__name__)


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
        response, asked = await _answer(request, front)
    except ApiError as error:
        metrics.asked_of_gateway(front.dialect, "", error.status)
        raise
    if not asked.late:
        metrics.asked_of_gateway(front.dialect, asked.upstream, response.status_code)
    return response


async def _answer(request: HttpRequest, front: Front) -> tuple[HttpResponseBase, _Asked]:
    """The answer, and what it is the answer to. Raises ``ApiError``."""
    found, place = taken(request)
    if place is None:
        said = f"The API key has {found.at_once} answers under way; no more are begun at once."
        raise ApiError(429, said, headers={"Retry-After": "1"})
    asked: _Asked | None = None
    try:
        asked = _Asked(request, front, found, body_of(request), place)
        return await asked.answer(), asked
    except (BadRequest, NoUpstream, StartRefused) as error:
        raise refused(error) from None
    finally:
        if asked is None or not asked.begun:
            await place.give_back()


def running_of(found: Standing) -> Running:
    """The policy that runs. Raises ``StartRefused``."""
    if isinstance(found.running, StartRefused):
        raise found.running
    return found.running


def refused(error: Exception) -> ApiError:
    """The refusal that an error of ours is."""
    match error:
        case ApiError():
            return error
        case BadRequest():
            return ApiError(400, str(error), code=error.code, field=error.field)
        case NoUpstream():
            return ApiError(404, str(error), code="model_not_found", field="model")
        case StartRefused():
            return ApiError(503, str(error), code=error.code)
        case OperationalError() | InterfaceError():
            away.noted(error)
            return ApiError(503, away.SAID, code=away.CODE)
    logger.error("call_failed", error=type(error).__name__, exc_info=error)
    return ApiError(500, "Something went wrong on the server.", code="internal")


@dataclass(frozen=True, slots=True)
class _Begun:
    """A request whose prompt has been judged. ``reader`` None: it was stopped."""

    record: Record
    gates: Gates
    walker: Walker
    reader: Reader | None


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

    def __init__(self, request: HttpRequest, front: Front, found: Standing, body: Json, place: places.Place) -> None:
        self._request = request
        self._front = front
        self._found = found
        self._access = found.access
        self._offered = found.offered
        self._body = body
        self._place = place
        said = body.get("stream")
        self._streaming = front.streams if said is None else bool(said)
        self._sent: dict[str, str] = {}
        self._record: Record | None = None
        self._session_id = str(uuid4())
        self._shadow: ShadowPolicy | None = None
        self.begun = False
        """The place is given back by what has begun."""
        self.late = False
        """The answer began before its prompt was judged."""

    @property
    def upstream(self) -> str:
        """Who was asked; empty: nobody."""
        return "" if self._record is None else self._record.provider

    async def answer(self) -> HttpResponseBase:
        """The response. Raises what ``refused`` takes."""
        running = running_of(self._found)
        policy = widened(running.policy)
        self._shadow = running.shadow
        routed = route(str(self._body["model"]), self._front.dialect, self._offered)
        masks = Masks(policy, self._body, caller=self._access.visitor.client)
        beginning = self._beginning(running.policy, policy, routed, masks)
        if not self._streaming:
            return await self._told(await beginning)
        work = asyncio.create_task(beginning, context=registry.own_context())
        try:
            done, _ = await asyncio.wait({work}, timeout=conf().gateway_heartbeat_s)
            if done:
                return await self._told(work.result())
        except asyncio.CancelledError:
            await _let_go(work)
            raise
        self.late = True
        response = self._streamed(self._late(work))
        response[SESSION] = self._session_id
        response[POLICY], response[VERSION] = policy.name, str(policy.version)
        return response

    async def _beginning(self, policy: Policy, wider: Policy, routed: Route, masks: Masks) -> _Begun:
        """Judge the prompt, open the record, ask the upstream. Gives the place back where it comes to no relay."""
        self.begun = True
        relayed = False
        try:
            begun = await self._judged(policy, wider, routed, masks)
            relayed = begun.reader is not None
            return begun
        finally:
            if not relayed:
                await self._place.give_back()

    async def _judged(self, policy: Policy, wider: Policy, routed: Route, masks: Masks) -> _Begun:
        # What the upstream's dialect has no words for is refused before anybody looks at the text.
        self._source(routed.provider, routed.model, routed.scenario, self._body)
        prompted = await guarded(
            wider,
            self._body,
            media_allowed=media_allowed(wider),
            mask=masks.mask,
            swept=masks.swept,
            masked=masks.swept_of_masked,
            hide=masks.hidden,
        )
        self._sent = self._headers(wider, masks)
        gates = Gates(policy, masks.restoring, masks.restore_arguments, masks.same_again)
        if self._shadow is not None:
            gates.noted = Noted.of(prompted.looked)
        prompted.looked.clear()  # nobody else reads them while the answer runs
        walker = self._front.walker(gates)
        asked = str(prompted.body["model"])
        try:
            if prompted.refused is not None:
                raise prompted.refused
            routed, plans = (routed, []) if prompted.blocked is not None else self._asking(routed, prompted)
        except (BadRequest, NoUpstream) as error:
            said = refused(error)
            record = await self._opened(policy, prompted, "", asked)
            await record.end(gates, {}, outcome=Outcome.ERROR, code=said.code, error=str(said))
            raise
        model = routed.model or routed.provider.default_model
        if prompted.blocked is not None and asked != self._body["model"]:
            model = asked  # what was blocked may have stood there
        record = await self._opened(policy, prompted, routed.provider.called, model)
        if prompted.blocked is not None:
            await record.end(gates, {})
            return _Begun(record, gates, walker, None)
        self._record = record
        record.held.append(self._place)
        metrics.GATEWAY_MASKED.labels(self._front.dialect).inc(masks.masked)
        source = answered(plans, record, self._front.dialect)
        relay = Relay(source, walker, gates, record, streaming=self._streaming, freed=self._place.give_back)
        task = registry.spawn(record.started.session_id, self._run(relay, masks))
        return _Begun(record, gates, walker, Reader(relay, task, self._front))

    async def _opened(self, policy: Policy, prompted: Prompted, provider: str, model: str) -> Record:
        return await opened(
            self._access.visitor,
            policy,
            prompted,
            provider=provider,
            model=model,
            streaming=self._streaming,
            correlation_id=str(self._request.META.get("sluicegate.correlation_id", "")),
            session_id=self._session_id,
            shadow=self._shadow,
        )

    async def _told(self, begun: _Begun) -> HttpResponseBase:
        """The response to a request whose prompt was judged before anything was sent."""
        reader, record, gates = begun.reader, begun.record, begun.gates
        if reader is None:
            return self._refused(begun)
        try:
            first = await reader.first(may_wait_on=self._streaming)
        except BaseException:
            await reader.close()
            raise
        if isinstance(first, Failed):
            return self._failed(first, record, gates)
        if self._streaming:
            response = self._streamed(reader.frames(first))
        else:
            response = JsonResponse(first if isinstance(first, dict) else {})
        if isinstance(first, dict):  # until then it may become another one
            response[UPSTREAM] = record.provider
        return self._named(response, record, gates)

    def _streamed(self, frames: AsyncGenerator[bytes, None]) -> HttpResponseBase:
        response = StreamingHttpResponse(frames, content_type=self._front.content_type)
        response["Cache-Control"] = "no-store"
        response["X-Accel-Buffering"] = "no"
        return response

    async def _late(self, work: asyncio.Task[_Begun]) -> AsyncGenerator[bytes, None]:
        """The answer while its prompt is still being judged: signs of life, and then all of it, refusals included."""
        front = self._front
        try:
            while not work.done():
                yield front.alive()
                await asyncio.wait({work}, timeout=conf().gateway_heartbeat_s)
            status = 200
            try:
                begun = work.result()
            except Exception as error:
                said = refused(error)
                status = said.status
                yield front.frame(worded(front.dialect, status, said.code, str(said), said.field))
                return
            finally:
                metrics.asked_of_gateway(front.dialect, self.upstream, status)
            if begun.reader is None:
                yield self._stopped(begun)
                return
            async with aclosing(begun.reader.frames(await begun.reader.first(may_wait_on=True))) as frames:
                async for frame in frames:
                    yield frame
        finally:
            await _let_go(work)

    async def _run(self, relay: Relay, masks: Masks) -> None:
        try:
            await relay.run()
        finally:
            metrics.GATEWAY_RESTORED.labels(self._front.dialect).inc(masks.put_back)
            await relay.free()

    def _asking(self, routed: Route, prompted: Prompted) -> tuple[Route, list[Plan]]:
        """Who is asked, in order, and how. Raises ``BadRequest`` where the first one cannot be asked this, and
        ``NoUpstream`` where something else than a model's name stood there."""
        if prompted.body["model"] != self._body["model"]:
            routed = route(str(prompted.body["model"]), self._front.dialect, self._offered)
        plans: list[Plan] = []
        for number, provider in enumerate(in_order(routed.provider, self._offered)):
            model = routed.model if number == 0 else ""
            try:
                ask = self._source(provider, model, routed.scenario, prompted.body)
                plans.append(Plan(provider, ask, self._offered.at_once.get(provider.called, 0)))
            except BadRequest:
                if number == 0:
                    raise
        return routed, plans

    def _source(self, provider: Provider, model: str, scenario: str, body: Json) -> Ask:
        front, streaming, named = self._front, self._streaming, model or provider.default_model
        if isinstance(provider, HttpProvider) and provider.name == front.dialect:
            passed = Passing({**body, "model": named}, streaming, self._sent)
            return lambda: chunks(provider, passed, front.dialect)
        asked = front.understood(body, provider, named)
        if scenario:
            asked = ProviderRequest(asked.messages, "", scenario, tools=asked.tools)
        id_ = uuid4().hex
        return lambda: spoken(provider, asked, front.speaker(body, named, id_), streaming=streaming)

    def _headers(self, policy: Policy, masks: Masks) -> dict[str, str]:
        """Headers of the dialect that say what is asked for: short words in which the policy finds nothing, and nothing
        that was masked in the request."""
        found = {name: self._request.headers.get(name, "") for name in self._front.passed_headers}
        fit = {name: value for name, value in found.items() if value and len(value) < 400}
        fit = {n: v for n, v in fit.items() if all(c.isascii() and (c.isalnum() or c in "-_., ") for c in v)}
        rules = policy.only(Checkpoint.IMMEDIATE)
        return {
            name: value
            for name, value in fit.items()
            if gate_text(rules, value, applies_to=AppliesTo.PROMPT, channel="prompt").visible == value
            and masks.swept(value) == value
        }

    def _refused(self, begun: _Begun) -> HttpResponseBase:
        """The prompt was stopped: an answer in the dialect that says so. Nothing went upstream."""
        if self._streaming:
            stopped = self._stopped(begun)

            async def body() -> AsyncGenerator[bytes, None]:
                yield stopped

            response: HttpResponseBase = StreamingHttpResponse(body(), content_type=self._front.content_type)
        else:
            self._name(begun)
            response = JsonResponse(begun.walker.stopped_whole(None, self._reason(begun)))
        return self._named(response, begun.record, begun.gates)

    def _stopped(self, begun: _Begun) -> bytes:
        """The same as a stream."""
        self._name(begun)
        return b"".join(map(self._front.frame, begun.walker.stopped(self._reason(begun)))) + self._front.done

    def _name(self, begun: _Begun) -> None:
        begun.walker.begin(uuid4().hex, str(self._body["model"]), int(time.time()), streaming=self._streaming)

    @staticmethod
    def _reason(begun: _Begun) -> str:
        finding = begun.record.prompted.blocked
        assert finding is not None
        return block_reason(finding, "prompt")

    def _failed(self, failed: Failed, record: Record, gates: Gates) -> HttpResponse:
        """The upstream did not answer: its own words where it speaks the dialect, ours elsewhere."""
        error = failed.error
        if isinstance(error, UpstreamSaid):
            response = JsonResponse(failed.said, status=error.status)
        else:
            status = status_of(error)
            response = JsonResponse(
                worded(self._front.dialect, status, error.code, sentence(failed.said)), status=status
            )
        if isinstance(error, UpstreamSaid | ProviderRateLimited) and error.retry_after_s is not None:
            response["Retry-After"] = str(max(1, ceil(min(MOST_WAIT_S, error.retry_after_s))))
        named = self._named(response, record, gates)
        assert isinstance(named, HttpResponse)
        return named

    def _named(self, response: HttpResponseBase, record: Record, gates: Gates) -> HttpResponseBase:
        response[SESSION] = record.started.session_id
        response[POLICY] = record.policy.name
        response[VERSION] = str(record.policy.version)
        if record.prompted.blocked is not None or gates.blocked is not None:
            response[ACTION] = "block"
        return response


async def _let_go(work: asyncio.Task[_Begun]) -> None:
    """Nobody reads any more: neither is the prompt judged on, nor does an answer come that it led to."""
    work.cancel()
    await asyncio.wait({work})
    if not work.cancelled() and work.exception() is None and (reader := work.result().reader) is not None:
        await reader.close()
