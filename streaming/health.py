"""``/health``: this process answers. ``/ready``: it can do its work, part by part. ``/metrics``: how it went so far.

Exists so that an operator (and a load balancer) sees what is missing by name. Protects the rule that a store that is
away shows here at once and in plain words, with the status code that takes the process out of rotation: 503 when the
database, the session log or every policy is unusable. A policy whose active version does not load, while the last good
one goes on in this process, is an alarm and no reason to be unready: taken out of rotation, or restarted, the process
could only refuse what it now guards. Without a worker the stream still flows, so that is reported
("degraded") and does not make the process unready.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import Literal, TypedDict

from channels.db import database_sync_to_async
from django.db import DatabaseError, connection
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe
from prometheus_client.exposition import choose_encoder

from guardrails.selectors import PolicyInfo, policy_choices
from streaming.at_work import guardrails_at_work
from streaming.audit.heads import age_s, heads_file, late_s
from streaming.log import LogUnavailable
from streaming.log_redis import shared_log
from streaming.metrics import REGISTRY, provider_breakers, read_shared
from streaming.workers import count_workers

PART_LIMIT_S = 3.0


class Part(TypedDict):
    """One part's state, with words for a human."""

    state: Literal["ok", "degraded", "down"]
    detail: str


@require_safe
@never_cache
async def health(request: HttpRequest) -> JsonResponse:
    """Liveness: nothing is asked of anybody else."""
    return JsonResponse({"status": "ok"})


@require_safe
@never_cache
async def ready(request: HttpRequest) -> JsonResponse:
    """Readiness of each part; 503 when one of them is down."""
    asked = {
        "database": _database(),
        "broker": _broker(),
        "workers": _workers(),
        "policies": _policies(),
        "providers": _providers(),
        "guardrails": _guardrails(),
        "audit": _audit(),
    }
    found = await asyncio.gather(*(_within(part) for part in asked.values()))
    parts = dict(zip(asked, found, strict=True))
    for name in ("guardrails", "audit"):
        if parts[name]["state"] == "down":  # nobody could say how they are, which is no reason to be unready
            parts[name]["state"] = "degraded"
    down = [name for name, part in parts.items() if part["state"] == "down"]
    status = "down" if down else "degraded" if any(p["state"] != "ok" for p in parts.values()) else "ok"
    return JsonResponse({"status": status, "parts": parts}, status=503 if down else 200)


@require_safe
@never_cache
async def metrics(request: HttpRequest) -> HttpResponse:
    """Everything in ``streaming.metrics``, in the form that the scraper asks for.

    The figures counted here need neither store nor database, and a part that is away costs its own figures alone.
    """
    encode, content_type = choose_encoder(request.headers.get("Accept", ""))
    await read_shared(PART_LIMIT_S)
    body = await asyncio.to_thread(encode, REGISTRY)
    return HttpResponse(body, content_type=content_type)


async def _within(part: Awaitable[Part]) -> Part:
    try:
        async with asyncio.timeout(PART_LIMIT_S):
            return await part
    except TimeoutError:
        return Part(state="down", detail=f"no answer within {PART_LIMIT_S:g} s")
    except DatabaseError as error:
        return Part(state="down", detail=_no_database(error))


def _no_database(error: DatabaseError) -> str:
    return f"the database cannot be reached ({type(error).__name__})"


async def _database() -> Part:
    def ask() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")

    try:
        await database_sync_to_async(ask)()
    except DatabaseError as error:
        return Part(state="down", detail=_no_database(error))
    return Part(state="ok", detail=connection.vendor)


async def _broker() -> Part:
    try:
        evicting = await shared_log().eviction()
    except LogUnavailable as error:
        return Part(state="down", detail=f"Valkey/Redis: {error}")
    if evicting:
        # A session whose state may vanish at any moment cannot be promised anything.
        detail = f"Valkey/Redis throws keys away when it is full ({evicting}); set maxmemory-policy to noeviction"
        return Part(state="down", detail=detail)
    return Part(state="ok", detail="session log and task queue can be reached")


async def _workers() -> Part:
    try:
        alive = await count_workers()
    except LogUnavailable:
        return Part(state="degraded", detail="unknown while Valkey/Redis cannot be reached")
    if not alive:
        return Part(state="degraded", detail="no worker is running; deferred checks wait")
    return Part(state="ok", detail=f"{alive} running")


async def _policies() -> Part:
    infos = await database_sync_to_async(policy_choices)()
    if not infos:
        return Part(state="down", detail="no policy is active")
    sick = [f"{info.name}: {info.error}{_goes_on(info)}" for info in infos if not info.healthy]
    shadows = [f"{info.name}: shadow {info.shadow}: {info.shadow_error}" for info in infos if info.shadow_error]
    if sick or shadows:
        runs = any(info.healthy or info.running for info in infos)
        state: Literal["degraded", "down"] = "degraded" if runs else "down"
        return Part(state=state, detail="; ".join([*sick, *shadows]))
    return Part(state="ok", detail=f"{len(infos)} active")


def _goes_on(info: PolicyInfo) -> str:
    return f" (version {info.running} goes on)" if info.running else " (nothing runs in its place)"


async def _providers() -> Part:
    """A provider that is left alone for a while degrades us; another one may answer in its place."""
    broken = [f"{name}: {state}" for name, state in (await provider_breakers()).items() if state != "closed"]
    if broken:
        return Part(state="degraded", detail="breakers are not closed: " + ", ".join(broken))
    return Part(state="ok", detail="all breakers are closed")


async def _audit() -> Part:
    """Nobody misses a signed head until the log has been rewritten; a file on a dead volume must not wait that long."""
    if heads_file() is None:
        return Part(state="ok", detail="no signed heads are put aside (SLUICEGATE_AUDIT_HEADS_FILE)")
    age = await asyncio.to_thread(age_s, time.time())
    if age is None:
        return Part(state="degraded", detail="no signed head of the audit log can be seen where they are put aside")
    minutes = f"{age / 60:,.0f} minutes"
    if age > late_s():
        return Part(state="degraded", detail=f"the newest signed head of the audit log is {minutes} old")
    return Part(state="ok", detail=f"the newest signed head of the audit log is {minutes} old")


async def _guardrails() -> Part:
    """An open breaker or a slow guardrail degrades us and never more, whatever it blocks: all processes share the
    breaker, so taking this one out of rotation would help nobody and leave the other policies without a process."""
    sick = [f"{one.policy}/{one.guardrail}: {one.trouble}" for one in await guardrails_at_work() if one.trouble]
    if sick:
        return Part(state="degraded", detail="; ".join(sick))
    return Part(state="ok", detail="all breakers are closed, none is slower than declared")
