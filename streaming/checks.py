"""Checks that ask somebody else: run one guardrail's ``check`` within its time limit, and never let it fail loudly.

Exists because BATCHED and DEFERRED guardrails may be slow, wrong or away. Protects the rule that a failing guardrail
is visible and handled by its ``on_error``: every failure becomes a ``Verdict`` with ``error`` set, in words that carry
neither the judged text nor a key. A guardrail that leaves the process and fails again and again is not asked for a
while; that is a failure like any other.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field, replace

import structlog
from prometheus_client import Counter

from guardrails.findings import Action, AppliesTo, Finding, Mode, OnError, Verdict
from guardrails.kinds.base import CheckFailed, CheckRequest, NoVerdict, Services, Turn
from guardrails.performance import Checkpoint
from guardrails.policy import Guardrail, Policy
from streaming import breakers, outbound
from streaming.core import gate as gates
from streaming.core.events import GuardrailStatus
from streaming.core.gate import Counters, Gate, Hold, SentenceCheck, gate_text, strongest
from streaming.core.json_text import JsonChannel
from streaming.providers.base import (
    ChatMessage,
    ProviderAuthError,
    ProviderError,
    ProviderRequest,
    UnknownProvider,
    get_provider,
)
from streaming.verdicts import book, computing

logger = structlog.get_logger(__name__)
Clock = Callable[[], float]

FAILURES = Counter(
    "sluicegate_guardrail_failures",
    "Checks that this process made without getting a verdict, by why: error, timeout or circuit_open.",
    ("guardrail", "result"),
    registry=None,
)
"""Stands in the registry of ``streaming.metrics``, which needs this page."""
CATEGORY_CHARS = 100
"""What the column takes."""
FAILURES_WITHIN_S = 30.0
"""Seconds within which failures of a guardrail add up to open its breaker."""


@dataclass(frozen=True, slots=True)
class Checked:
    """A verdict with how long it took, in milliseconds, and the guardrail's 95th percentile so far.

    ``slow``: the guardrail is slower than the class that it declares. ``remembered``: nobody was asked again.
    ``permanent``: asking again would fail again. ``circuit_open``: nobody was asked, the breaker is open.
    """

    verdict: Verdict
    took_ms: float
    timed_out: bool = False
    p95_ms: float | None = None
    slow: bool = False
    remembered: bool = False
    permanent: bool = False
    circuit_open: bool = False


async def complete(provider: str, turns: list[Turn], time_limit_s: float) -> str:
    """The model call lent to judges. Raises ``ProviderError``, ``UnknownProvider`` or ``TimeoutError``."""
    request = ProviderRequest(tuple(ChatMessage(turn.role, turn.text) for turn in turns))
    async with asyncio.timeout(time_limit_s):
        return await get_provider(provider).complete(request)


async def run_check(guardrail: Guardrail, request: CheckRequest, clock: Clock = time.monotonic) -> Checked:
    """One guardrail's verdict; never raises but for cancellation."""
    kept = book(guardrail.impl)
    if (verdict := kept.remembered(request, clock)) is not None:
        return Checked(verdict, 0.0, p95_ms=kept.p95_ms, slow=kept.slower_than_declared, remembered=True)
    started = clock()
    timed_out = permanent = asking = answered = False
    tried = None
    if guardrail.impl.performance.network:
        tried = await breakers.breaker(breakers.GUARDRAIL + guardrail.circuit, within_s=FAILURES_WITHIN_S)
    failure: Exception | None = None
    try:
        async with asyncio.timeout(guardrail.time_limit_s), kept.slot(), _turn(guardrail):
            if tried is not None:
                await tried.enter()
            asking = True
            started = clock()  # what is measured is the guardrail, not the queue before it
            verdict = _storable(await _verdict(guardrail, request))
        answered = True
    except breakers.CircuitOpen:
        verdict = Verdict(hit=False, error="not asked: the circuit is open after repeated failures")
        FAILURES.labels(guardrail.name, "circuit_open").inc()
        return Checked(verdict, 0.0, p95_ms=kept.p95_ms, permanent=True, circuit_open=True)
    except asyncio.CancelledError:
        if tried is not None:
            await tried.given_up()
        raise
    except TimeoutError as error:
        timed_out, failure = True, error
        verdict = Verdict(hit=False, error=f"no verdict within {guardrail.time_limit_s:g} s")
    except (ProviderError, UnknownProvider, CheckFailed) as error:
        permanent = isinstance(error, UnknownProvider) or bool(getattr(error, "permanent", False))
        answered = isinstance(error, NoVerdict)
        failure = error if _counts(error, permanent) else None
        verdict = Verdict(hit=False, error=str(error))
    except Exception as error:  # a kind's own bug must not take the stream down
        permanent = True
        logger.exception("check_failed", guardrail=guardrail.name, kind=guardrail.kind)
        verdict = Verdict(hit=False, error=f"the check failed ({type(error).__name__})")
    if tried is not None:
        if failure is not None and asking:
            await tried.failed(failure)
        elif answered:
            await tried.succeeded()
        else:
            await tried.given_up()  # it never came to asking, or what failed is ours
    if verdict.error is not None:
        FAILURES.labels(guardrail.name, "timeout" if timed_out else "error").inc()
    took_ms = (clock() - started) * 1000
    kept.measured(took_ms, clock)
    kept.remember(request, verdict, clock)
    return Checked(verdict, took_ms, timed_out, kept.p95_ms, kept.slower_than_declared, permanent=permanent)


def _storable(verdict: Verdict) -> Verdict:
    """The verdict in words that any database takes: whoever judges may say what it likes."""
    category = verdict.category[:CATEGORY_CHARS].replace("\0", "\ufffd").encode("utf-8", "replace").decode()
    return verdict if category == verdict.category else replace(verdict, category=category)


def _counts(error: Exception, permanent: bool) -> bool:
    """Does the failure speak of the other side, so that it counts towards the breaker?

    What is said of one text does not: else one user's texts could have nobody's texts judged any more. A key that is
    not accepted is permanent and counts all the same, because no text will be judged with it.
    """
    return isinstance(error, ProviderAuthError) or not (permanent or isinstance(error, NoVerdict))


def _turn(guardrail: Guardrail) -> AbstractAsyncContextManager[object]:
    return computing() if guardrail.apart is not None or guardrail.impl.computes else nullcontext()


async def _verdict(guardrail: Guardrail, request: CheckRequest) -> Verdict:
    if guardrail.apart is not None or guardrail.impl.computes:
        return await asyncio.to_thread(_computed, guardrail, request)
    return await guardrail.impl.check(request, Services(complete, outbound.post, outbound.secret))


def _computed(guardrail: Guardrail, request: CheckRequest) -> Verdict:
    return guardrail.impl.judge(request) if guardrail.apart is None else _by_rules(guardrail.apart, request)


def _by_rules(apart: Policy, request: CheckRequest) -> Verdict:
    """What the rules of a guardrail that was demoted say of a text: the worst of its hits speaks for all of it."""
    found = gate_text(apart, request.text, applies_to=request.applies_to).findings
    if not found:
        return Verdict(hit=False)
    worst = max(found, key=lambda finding: finding.score)
    return Verdict(hit=True, score=worst.score, category=worst.category or worst.rule)


def state_after(guardrail: Guardrail, checked: Checked) -> str:
    """What a verdict amounts to: passed, hit, would_block, error, timeout or circuit_open."""
    verdict = checked.verdict
    if checked.circuit_open:
        return "circuit_open"
    if verdict.error is not None:
        return "timeout" if checked.timed_out else "error"
    if not verdict.hit:
        return "passed"
    return "would_block" if guardrail.mode is Mode.MONITOR and guardrail.action is not Action.WARN else "hit"


def status_after(guardrail: Guardrail, checked: Checked) -> GuardrailStatus:
    """The panel's line for a verdict; a pass that came too slowly for the declared class says so."""
    state = state_after(guardrail, checked)
    if state == "passed" and checked.slow:
        state = "slower_than_declared"
    took, p95 = round(checked.took_ms, 3), round(checked.took_ms if checked.p95_ms is None else checked.p95_ms, 3)
    return GuardrailStatus(guardrail.name, guardrail.checkpoint.value, state, took, p95, checked.verdict.error)


@dataclass(frozen=True, slots=True)
class Later:
    """What a guardrail that does not decide has yet to be asked about a text. Nobody waits for its verdict."""

    gate: Gate
    check: SentenceCheck
    guardrail: Guardrail
    conversation: tuple[Turn, ...] = ()

    @property
    def request(self) -> CheckRequest:
        """What the guardrail is asked."""
        return _request(self.check, self.guardrail, self.gate.applies_to, self.conversation)

    def findings(self, checked: Checked) -> list[Finding]:
        """What the verdict amounts to, now that it is there."""
        _warned(self.guardrail, checked)
        effects = self.gate.verdict(self.check.id, self.guardrail.name, checked.verdict)
        return [effect[1] for effect in effects if effect[0] == gates.FOUND]


def _warned(guardrail: Guardrail, checked: Checked) -> None:
    if checked.verdict.error is not None and guardrail.on_error is OnError.WARN and not guardrail.decides:
        logger.warning("check_error", guardrail=guardrail.name, error=checked.verdict.error)


@dataclass(slots=True)
class CheckedText:
    """A whole text after all guardrails that answer at once. ``redactions``: [visible offset, placeholder].

    ``later``: what is still to be asked, where nobody waits for guardrails that do not decide.
    """

    action: str = "allow"
    visible: str = ""
    findings: list[Finding] = field(default_factory=list)
    redactions: list[tuple[int, str]] = field(default_factory=list)
    blocked: Finding | None = None
    counters: Counters = field(default_factory=Counters)
    statuses: list[GuardrailStatus] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    later: list[Later] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Looked:
    """A whole text that guardrails have looked at: what they found in it, and how many characters they released."""

    text: str
    applies_to: AppliesTo
    channel: str
    findings: tuple[Finding, ...] = ()
    released: int = 0
    conversation: tuple[Turn, ...] = ()


Look = Callable[[Looked], object]
"""Whoever wants to know of such texts."""


def looked_at(
    checked: CheckedText, text: str, applies_to: AppliesTo, channel: str, conversation: tuple[Turn, ...] = ()
) -> Looked:
    """The text with what came of it."""
    found, released = tuple(checked.findings), checked.counters.released
    return Looked(text, applies_to, channel, found, released, conversation)


async def check_text(
    policy: Policy,
    text: str,
    *,
    applies_to: AppliesTo,
    monitor: bool = False,
    channel: str = "text",
    conversation: tuple[Turn, ...] = (),
    clock: Clock = time.monotonic,
    held: Callable[[Hold], object] | None = None,
    later: bool = False,
    written: JsonChannel | None = None,
) -> CheckedText:
    """Run a whole text through the gate, asking BATCHED and holding DEFERRED guardrails as it demands.

    ``later``: guardrails that do not decide are not asked here; what they are to be asked is handed back. ``held`` is
    told, before anybody is asked, when the text is kept back until guardrails that decide have answered. ``written``:
    what the text was decoded by; what is visible of it is JSON again.
    """
    gate = Gate(policy, applies_to, channel, monitor=monitor)
    effects = [*gate.feed(text), *gate.finish()]
    if held is not None and gate.waiting and (hold := gate.hold) is not None:
        held(hold)
    out = await settled(gate, effects, conversation=conversation, clock=clock, later=later, written=written)
    out.findings.sort(key=lambda finding: (finding.start, finding.end))
    out.action = strongest(out.findings)
    return out


async def settled(
    gate: Gate,
    effects: list[gates.Effect],
    *,
    conversation: tuple[Turn, ...] = (),
    clock: Clock = time.monotonic,
    later: bool = False,
    written: JsonChannel | None = None,
) -> CheckedText:
    """What these effects come to once every guardrail that the gate asks for has answered, all at the same time.

    ``later``: once every one that decides has; the others are not asked. Findings stand in the order in which they
    became certain; the counters are the gate's own, since its beginning.
    """
    policy, out = gate.policy, CheckedText()
    parts: list[str] = []
    waiting = _collect(effects, out, parts, written)
    while waiting:
        jobs = [(check, policy.guardrail(name)) for check in waiting for name in check.guardrails]
        if later:
            aside = [(check, guardrail) for check, guardrail in jobs if gate.monitor or not guardrail.decides]
            out.later += [Later(gate, check, guardrail, conversation) for check, guardrail in aside]
            jobs = [job for job in jobs if job not in aside]
        results = await asyncio.gather(
            *(run_check(guardrail, _request(check, guardrail, gate.applies_to, conversation), clock)
              for check, guardrail in jobs)
        )  # fmt: skip
        waiting = []
        for (check, guardrail), checked in zip(jobs, results, strict=True):
            out.statuses.append(status_after(guardrail, checked))
            if checked.verdict.error is not None:
                out.failed.append(guardrail.name)
                _warned(guardrail, checked)
            try:
                effects = gate.verdict(check.id, guardrail.name, checked.verdict)
            except KeyError:  # a block before this sentence has made the question moot
                continue
            waiting += _collect(effects, out, parts, written)
    out.later = [question for question in out.later if gate.awaits(question.check.id)]
    if written is not None and out.blocked is None:
        parts.append(written.finish())
    out.visible = "".join(parts)
    out.counters = gate.counters
    out.action = strongest(out.findings)
    return out


def _request(
    check: SentenceCheck, guardrail: Guardrail, applies_to: AppliesTo, conversation: tuple[Turn, ...]
) -> CheckRequest:
    turns = conversation if guardrail.impl.wants_conversation else ()
    return CheckRequest(check.text, applies_to, turns, guardrail.time_limit_s)


def _collect(
    effects: list[gates.Effect], out: CheckedText, parts: list[str], written: JsonChannel | None
) -> list[SentenceCheck]:
    checks: list[SentenceCheck] = []
    if written is not None:
        parts.append(written.encode(effects))
    for effect in effects:
        if effect[0] == gates.RELEASE:
            if written is None:
                parts.append(effect[1])
        elif effect[0] == gates.REDACTED:
            if written is None:
                parts.append(effect[1])
            out.redactions.append((effect[2], effect[1]))
        elif effect[0] == gates.FOUND:
            out.findings.append(effect[1])
        elif effect[0] == gates.CHECK:
            checks.append(effect[1])
        else:
            out.blocked = effect[1]
    return checks


def immediate_statuses(policy: Policy, applies_to: AppliesTo, findings: list[Finding]) -> list[GuardrailStatus]:
    """The IMMEDIATE guardrails' lines after a whole text: hit, would_block or passed."""
    return [
        GuardrailStatus(g.name, g.checkpoint.value, immediate_state(g, findings))
        for g in policy.running(applies_to)
        if g.checkpoint is Checkpoint.IMMEDIATE
    ]


def immediate_state(guardrail: Guardrail, findings: list[Finding]) -> str:
    """``hit``, ``would_block``, ``passed`` or ``slower_than_declared`` of one guardrail over these findings."""
    mine = [f for f in findings if f.guardrail == guardrail.name]
    if not mine:
        return "slower_than_declared" if book(guardrail.impl).slower_than_declared else "passed"
    return "would_block" if all(f.would_have for f in mine) else "hit"
