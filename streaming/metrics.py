"""What ``GET /metrics`` tells: how answers went, by provider and model, since this process began.

Exists so that an operator sees a provider fail or slow down before its users say so. Protects two rules: the path of
a chunk pays nothing for it (all is taken at an answer's end, from what the pump has measured anyway), and a client
cannot make series without end: values of labels are checked and their number is bounded.

The registry is this process's own; docs/metrics.md says what that means with several, and lists every metric. What all
processes share (breakers, open sessions, the store) is asked for at each scrape, and says the same at each of them.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise

import structlog
from channels.db import database_sync_to_async
from django.db.models import Count
from django.utils import timezone
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics

from guardrails.findings import Outcome
from guardrails.models import Rollout
from guardrails.selectors import policy_choices
from streaming import breakers, registry, swept
from streaming.answer import Answer
from streaming.at_work import guardrails_at_work
from streaming.audit.heads import age_s
from streaming.bookends import Result, Run, chosen
from streaming.checks import FAILURES
from streaming.database import AWAY
from streaming.log import LogUnavailable
from streaming.log_redis import shared_log
from streaming.models import AuditSession, DeferredCheck, ShadowCheck
from streaming.providers.base import ProviderTimeout, available
from streaming.shadow.record import ShadowRecord
from streaming.upstreams import offered_now

logger = structlog.get_logger(__name__)
disable_created_metrics()  # type: ignore[no-untyped-call]

REGISTRY = CollectorRegistry()
REGISTRY.register(FAILURES)
OTHER = "other"
MAX_MODELS = 50
"""Models that get a label of their own, over all providers; the others are counted together."""
MAX_CODES = 50
SAMPLES = 200
"""Chunks of one answer that are observed, evenly spread; so that a long answer's end takes no longer than a short's."""

BREAKER_STATES = ("closed", "open", "half_open")
CHECKS_S = 3_600
"""Seconds that deferred checks are counted for."""
OPEN_STATES = (AuditSession.State.ACTIVE, AuditSession.State.MONITORING)

_WHO = ("provider", "model")
_HOW = (*_WHO, "path")
_WAITS = (0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 180)
_WHOLE = (0.5, 1, 2, 5, 10, 30, 60, 120, 300, 900)
_GAPS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30)
_FEEDS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.005, 0.01, 0.05)


class Bounded:
    """Values of a label that may exist; what is ill-formed or comes too late is ``other``."""

    _FORM = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/@+-]{0,79}")

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: set[str] = set()

    def __call__(self, value: str) -> str:
        """The value, or ``other``."""
        if value not in self._known:
            if len(self._known) >= self._most or not self._FORM.fullmatch(value):
                return OTHER
            self._known.add(value)
        return value


ANSWERS = Counter(
    "sluicegate_answers", "Answers that have ended, by how they ended.", (*_HOW, "outcome"), registry=REGISTRY
)
FALLBACKS = Counter(
    "sluicegate_fallbacks",
    "Answers that were not streamed, or not given by who was asked first, by reason.",
    (*_WHO, "reason"),
    registry=REGISTRY,
)
ERRORS = Counter(
    "sluicegate_errors", "Answers that ended in an error, by its code.", (*_WHO, "code"), registry=REGISTRY
)
TIMEOUTS = Counter(
    "sluicegate_timeouts",
    "Times that a provider's time limit passed: tries before another one or a fallback, and ends of answers.",
    _WHO,
    registry=REGISTRY,
)
NOTICES = Counter(
    "sluicegate_provider_notices",
    "What went wrong with a provider while the answer went on (retries, malformed lines), by code.",
    (*_WHO, "code"),
    registry=REGISTRY,
)
TOOLS = Counter(
    "sluicegate_tool_calls", "Tool calls that ended, by result: ok or error.", (*_WHO, "result"), registry=REGISTRY
)
SHADOWS = Counter(
    "sluicegate_shadow_sessions",
    "Sessions that a shadow has run in, by how it compares with the active version.",
    ("policy", "comparison"),
    registry=REGISTRY,
)
GATEWAY_REQUESTS = Counter(
    "sluicegate_gateway_requests",
    "Requests to the gateway, by the HTTP status that the client got; upstream “none”: nobody was asked.",
    ("dialect", "upstream", "status"),
    registry=REGISTRY,
)
GATEWAY_FALLBACKS = Counter(
    "sluicegate_gateway_fallbacks",
    "Times that the gateway asked another upstream because the first one had failed, by the first one's code.",
    ("dialect", "upstream", "reason"),
    registry=REGISTRY,
)
GATEWAY_MASKED = Counter(
    "sluicegate_gateway_masked_values",
    "Different values of a request that went upstream as placeholders.",
    ("dialect",),
    registry=REGISTRY,
)
GATEWAY_RESTORED = Counter(
    "sluicegate_gateway_restored_values", "Times that a value was put back into an answer.", ("dialect",),
    registry=REGISTRY,
)  # fmt: skip
GATEWAY_HEARTBEATS = Counter(
    "sluicegate_gateway_heartbeats",
    "Signs of life that clients got while their text was held, or did not come.",
    ("dialect",),
    registry=REGISTRY,
)
FIRST_TOKEN = Histogram(
    "sluicegate_time_to_first_token_seconds",
    "From the answer's start to the provider's first token: text, reasoning or a piece of a tool call.",
    _HOW,
    registry=REGISTRY,
    buckets=_WAITS,
)
COMPLETION = Histogram(
    "sluicegate_time_to_completion_seconds",
    "From the answer's start until its provider had said all or was left, whatever the outcome.",
    _HOW,
    registry=REGISTRY,
    buckets=_WHOLE,
)
GAP = Histogram(
    "sluicegate_chunk_gap_seconds",
    "Between two times that text was taken from the provider, which is at the readers' pace.",
    _HOW,
    registry=REGISTRY,
    buckets=_GAPS,
)
FEED = Histogram(
    "sluicegate_chunk_latency_seconds",
    "What the gates add to one provider event.",
    _HOW,
    registry=REGISTRY,
    buckets=_FEEDS,
)
OPEN = Gauge("sluicegate_open_sessions", "Answers that are being streamed now.", registry=REGISTRY)
OPEN.set_function(lambda: len(registry.running()))
BREAKERS = Gauge(
    "sluicegate_breaker_state",
    "1 for the state that a provider's breaker is in.",
    ("provider", "state"),
    registry=REGISTRY,
)
GUARDRAIL_BREAKERS = Gauge(
    "sluicegate_guardrail_breaker_state",
    "1 for the state that the breaker of an active policy's guardrail is in.",
    ("policy", "guardrail", "state"),
    registry=REGISTRY,
)
GUARDRAIL_DEMOTED = Gauge(
    "sluicegate_guardrail_demoted",
    "1 for a guardrail of an active policy that runs later than it declares, by where it runs.",
    ("policy", "guardrail", "checkpoint"),
    registry=REGISTRY,
)
GUARDRAIL_SLOW = Gauge(
    "sluicegate_guardrail_slower_than_declared",
    "1 for a guardrail of an active policy that this process has measured to be slower than its class.",
    ("policy", "guardrail", "mode"),
    registry=REGISTRY,
)
SESSIONS = Gauge(
    "sluicegate_sessions", "Sessions that are not over yet, of all processes, by state.", ("state",), registry=REGISTRY
)
CHECKS = Gauge(
    "sluicegate_deferred_checks",
    "Deferred checks that were queued within the last hour, of all processes, by how they stand.",
    ("guardrail", "state"),
    registry=REGISTRY,
)
SHADOW_CHECKS = Gauge(
    "sluicegate_shadow_checks",
    "Checks of shadows that are still to be made, of all processes, by how they stand.",
    ("guardrail", "state"),
    registry=REGISTRY,
)
NOT_REPAIRED = Gauge(
    "sluicegate_not_repaired",
    "Things that the last sweep could not repair, whichever worker made it, by part.",
    ("part",),
    registry=REGISTRY,
)
AUDIT_HEAD_AGE = Gauge(
    "sluicegate_audit_head_age_seconds",
    "Since a signed head of the audit log was put aside; NaN: none can be seen, or none is to be kept.",
    registry=REGISTRY,
)
ROLLOUTS = Gauge(
    "sluicegate_rollouts",
    "Rollouts of versions that a policy has had, by outcome; rolled_back: a limit was left.",
    ("policy", "outcome"),
    registry=REGISTRY,
)
POLICY_UNHEALTHY = Gauge(
    "sluicegate_policy_unhealthy",
    "1 for a policy whose active version does not load; what ran last goes on, and if nothing did, nothing runs.",
    ("policy",),
    registry=REGISTRY,
)
STORE_MEMORY = Gauge("sluicegate_store_memory_bytes", "Memory that the store's data take.", registry=REGISTRY)
STORE_KEYS = Gauge("sluicegate_store_keys", "Keys in the store.", registry=REGISTRY)
NOT_READ = Counter(
    "sluicegate_metrics_not_read",
    "Times that a part of this page could not be asked for: one of those that docs/metrics.md names.",
    ("part",),
    registry=REGISTRY,
)
ProcessCollector(registry=REGISTRY)

_model = Bounded(MAX_MODELS)
_code = Bounded(MAX_CODES)
_reason = Bounded(MAX_CODES)
_upstream = Bounded(MAX_CODES)


async def provider_breakers() -> dict[str, str]:
    """State by name of every provider that is offered here, those of the admin among them; those that nobody has asked
    yet are closed."""
    names = list(available())
    with suppress(*AWAY):  # those of the environment are known all the same
        names = list((await database_sync_to_async(offered_now)()).providers)
    found = await breakers.states([breakers.PROVIDER + name for name in names])
    return {name: found.get(breakers.PROVIDER + name, "closed") for name in names}


async def read_breakers() -> None:
    """Ask for what is not counted here: all processes share the breakers.

    What is asked is in hand before a gauge is touched: whoever fails to answer takes no figure away.
    """
    states = await provider_breakers()
    BREAKERS.clear()  # an upstream that was taken away has no state
    for provider, state in states.items():
        for each in BREAKER_STATES:
            BREAKERS.labels(provider, each).set(each == state)
    found = await guardrails_at_work()
    for gauge in (GUARDRAIL_BREAKERS, GUARDRAIL_DEMOTED, GUARDRAIL_SLOW):
        gauge.clear()  # a guardrail that is active no more has no state
    for one in found:
        who = (one.policy, one.guardrail)
        for each in BREAKER_STATES if one.breaker else ():
            GUARDRAIL_BREAKERS.labels(*who, each).set(each == one.breaker)
        if one.demoted:
            GUARDRAIL_DEMOTED.labels(*who, one.checkpoint.value).set(1)
        GUARDRAIL_SLOW.labels(*who, one.mode.value).set(one.slower)


def _counted() -> dict[str, int]:
    # The index on (state, heartbeat_at) answers this alone; rows that are over are not looked at.
    rows = AuditSession.objects.filter(state__in=OPEN_STATES).order_by().values_list("state")
    return dict(rows.annotate(number=Count("*")))


async def read_sessions() -> None:
    """How many sessions are open, by state."""
    found = await database_sync_to_async(_counted)()
    for state in OPEN_STATES:
        SESSIONS.labels(state.value).set(found.get(state, 0))


def _sessions_unknown() -> None:
    for state in OPEN_STATES:
        SESSIONS.labels(state.value).set(math.nan)


def _checks() -> list[tuple[str, str, int]]:
    since = timezone.now() - timedelta(seconds=CHECKS_S)
    # Every state is named so that the index on (state, queued_at) answers; what is older is not looked at.
    rows = DeferredCheck.objects.filter(state__in=DeferredCheck.State.values, queued_at__gte=since).order_by()
    return list(rows.values_list("guardrail", "state").annotate(number=Count("pk")))


def _shadow_checks() -> list[tuple[str, str, int]]:
    rows = ShadowCheck.objects.order_by().values_list("guardrail", "state")
    return list(rows.annotate(number=Count("pk")))


async def read_checks() -> None:
    """How deferred checks ended, or that they wait: workers make them, and have no such page."""
    found, beside = await database_sync_to_async(lambda: (_checks(), _shadow_checks()))()
    SHADOW_CHECKS.clear()
    for guardrail, state, number in beside:
        SHADOW_CHECKS.labels(guardrail, state).set(number)
    CHECKS.clear()
    for guardrail, state, number in found:
        CHECKS.labels(guardrail, state).set(number)


async def read_head() -> None:
    """How old the newest head is that was put aside."""
    age = await asyncio.to_thread(age_s, time.time())
    AUDIT_HEAD_AGE.set(math.nan if age is None else age)


async def read_swept() -> None:
    """What the last round of repair left; nothing where no worker has made one lately. Raises ``LogUnavailable``."""
    found = await swept.noted(shared_log())
    NOT_REPAIRED.clear()
    for part, number in found.items():
        NOT_REPAIRED.labels(part).set(number)


def _rollouts() -> list[tuple[str, str, int]]:
    rows = Rollout.objects.order_by().values_list("policy__name", "outcome")
    return list(rows.annotate(number=Count("pk")))


async def read_rollouts() -> None:
    """What came of each policy's rollouts; a few rows each."""
    found = await database_sync_to_async(_rollouts)()
    ROLLOUTS.clear()
    for policy, outcome, number in found:
        ROLLOUTS.labels(policy, outcome).set(number)


async def read_policies() -> None:
    """Which policies' active versions load; verified and compiled ones are kept, so that it costs one query."""
    found = await database_sync_to_async(policy_choices)()
    POLICY_UNHEALTHY.clear()  # a policy without an active version has no state
    for info in found:
        POLICY_UNHEALTHY.labels(info.name).set(not info.healthy)


async def read_store() -> None:
    """What the store holds; two commands whose cost does not grow with it. Raises ``LogUnavailable``."""
    usage = await shared_log().usage()
    STORE_KEYS.set(usage.keys)
    STORE_MEMORY.set(usage.memory_bytes)


def _store_unknown() -> None:
    STORE_KEYS.set(math.nan)
    STORE_MEMORY.set(math.nan)


@dataclass(frozen=True, slots=True)
class Part:
    """Something to ask for at a scrape. ``unknown`` is called when it could not be asked for: an alarm must not rest
    on an old figure."""

    ask: Callable[[], Awaitable[None]]
    unknown: Callable[[], None] = lambda: None


PARTS = {
    "breakers": Part(read_breakers),
    "policies": Part(read_policies, POLICY_UNHEALTHY.clear),
    "sessions": Part(read_sessions, _sessions_unknown),
    "checks": Part(read_checks, CHECKS.clear),
    "store": Part(read_store, _store_unknown),
    "audit": Part(read_head, lambda: AUDIT_HEAD_AGE.set(math.nan)),
    "rollouts": Part(read_rollouts, ROLLOUTS.clear),
    "sweep": Part(read_swept, NOT_REPAIRED.clear),
}


async def read_shared(limit_s: float) -> None:
    """Ask for all that is not counted here, each part for ``limit_s`` seconds at most. Never raises.

    An outage is when the page is needed most: a part that could not be asked for is counted, and the others are told.
    """
    await asyncio.gather(*(_read(name, part, limit_s) for name, part in PARTS.items()))


async def _read(name: str, part: Part, limit_s: float) -> None:
    failed = NOT_READ.labels(name)  # the series exists from the first scrape on
    try:
        async with asyncio.timeout(limit_s):
            await part.ask()
    except Exception as error:
        part.unknown()
        failed.inc()
        known = isinstance(error, (TimeoutError, LogUnavailable, *AWAY))
        logger.warning(f"{name}_not_read", error=type(error).__name__, exc_info=not known)


def answered(
    run: Run, answer: Answer, result: Result, outcome: Outcome, *, took_ms: int, feeds_ms: Sequence[float]
) -> None:
    """One answer has ended. Never raises: a figure that is lost is no reason to lose the end of an answer.

    Prompts that a guardrail blocked are not counted: no provider was asked.
    """
    if run.prompt.blocked is not None:
        return
    try:
        _answered(run, answer, result, outcome, took_ms=took_ms, feeds_ms=feeds_ms)
    except Exception:
        logger.exception("metrics_failed", session=run.started.session_id)


def _answered(
    run: Run, answer: Answer, result: Result, outcome: Outcome, *, took_ms: int, feeds_ms: Sequence[float]
) -> None:
    by = chosen(run, answer)
    who = (by.provider, _model_of(run, answer))
    how = (*who, "streaming" if by.streaming else "standard")
    ANSWERS.labels(*how, outcome.value).inc()
    for reason in filter(None, by.fallback.split(", ")):
        FALLBACKS.labels(*who, _reason(reason)).inc()
    if result.error_code:
        ERRORS.labels(*who, _code(result.error_code)).inc()
    if result.error_code == ProviderTimeout.code:
        TIMEOUTS.labels(*who).inc()
    for (provider, code), times in answer.notices.items():
        met = who if provider in ("", by.provider) else (provider, _model_asked(run, provider))
        NOTICES.labels(*met, _code(code)).inc(times)
        if code == ProviderTimeout.code:
            TIMEOUTS.labels(*met).inc(times)
    for provider, times in answer.timed_out.items():
        met = who if provider == by.provider else (provider, _model_asked(run, provider))
        TIMEOUTS.labels(*met).inc(times)
    for said, number in (("ok", answer.tools_ok), ("error", answer.tools_failed)):
        if number:
            TOOLS.labels(*who, said).inc(number)
    arrivals = [ms / 1000 for ms, _ in answer.arrivals.points]
    if answer.first_ms is not None:
        FIRST_TOKEN.labels(*how).observe(answer.first_ms / 1000)
    COMPLETION.labels(*how).observe(took_ms / 1000)
    _observe(GAP.labels(*how), [after - before for before, after in pairwise(arrivals)])
    _observe(FEED.labels(*how), [ms / 1000 for ms in feeds_ms])


def asked_of_gateway(dialect: str, upstream: str, status: int) -> None:
    """A request has been answered, or its answer begins. ``upstream`` empty: nobody was asked."""
    GATEWAY_REQUESTS.labels(dialect, _upstream(upstream) if upstream else "none", str(status)).inc()


def fell_back(dialect: str, upstream: str, reason: str) -> None:
    """The gateway asks ``upstream``, because the first one failed with the code ``reason``."""
    GATEWAY_FALLBACKS.labels(dialect, _upstream(upstream), _reason(reason)).inc()


def shadowed(policy: str, record: ShadowRecord | None) -> None:
    """A session has ended, with a shadow or without."""
    if record is not None:
        SHADOWS.labels(policy, record.comparison.value).inc()


def _observe(histogram: Histogram, values: Sequence[float]) -> None:
    for value in spread(values, SAMPLES):
        histogram.observe(value)


def spread(values: Sequence[float], most: int) -> Iterable[float]:
    """At most ``most`` of the values, evenly spread over all of them."""
    if len(values) <= most:
        return values
    return (values[number * len(values) // most] for number in range(most))


def _model_of(run: Run, answer: Answer) -> str:
    """The model that the provider named. One that only the request names must be offered here: else a client could
    use up all labels with names that it makes up."""
    if answer.model:
        return _model(answer.model)
    return _model_asked(run, run.provider.name)


def _model_asked(run: Run, name: str) -> str:
    """The model that a provider was asked for; behind the first one it is the provider's own choice."""
    for provider in (run.provider, *run.upstreams.providers):
        if provider.name == name:
            asked = (run.request.model if provider is run.provider else "") or provider.default_model
            return _model(asked) if asked in provider.models else OTHER
    return OTHER
