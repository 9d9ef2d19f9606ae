"""Checks that ask somebody else: run one guardrail's ``check`` within its time limit, and never let it fail loudly.

Exists because BATCHED and DEFERRED guardrails may be slow, wrong or away. Protects the rule that a failing guardrail
is visible and handled by its ``on_error``: every failure becomes a ``Verdict`` with ``error`` set, in words that carry
neither the judged text nor a key. A guardrail that leaves the process and fails again and again is not asked for a
while; that is a failure like any other.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial

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
from streaming.slices import fed, spelled
from streaming.tries import TRIES, wait_within_s
from streaming.verdicts import Computing, book

logger = structlog.get_logger(__name__)
Clock = Callable[[], float]
rest = asyncio.sleep
"""Between two tries."""

FAILURES = Counter(
    "sluicegate_guardrail_failures",
    "Checks that this process made without getting a verdict, by why: error, timeout or circuit_open.",
    ("guardrail", "result"),
    registry=None,
)
"""Stands in the registry of ``streaming.metrics``, which needs this page."""
MAX_UNANSWERED = 10
"""Texts of one answer, or of one whole text, that guardrails are asked about at once; the others wait."""
CATEGORY_CHARS = 100
"""What the column takes."""
ERROR_CHARS = 500
"""Of a failure's words: rows, events and logs carry them, and a page shows them in a line."""
FAILURES_WITHIN_S = 30.0
"""Seconds within which failures of a guardrail add up to open its breaker."""


@dataclass(frozen=True, slots=True)
class Checked:
    """A verdict with how long it took, in milliseconds, and the guardrail's 95th percentile so far.

    ``slow``: the guardrail is slower than the class that it declares. ``remembered``: nobody was asked again.
    ``permanent``: asking again would fail again. ``circuit_open``: nobody was asked, the breaker is open. ``answered``:
    whoever was asked did answer, also where no verdict can be read out of that.
    """

    verdict: Verdict
    took_ms: float
    timed_out: bool = False
    p95_ms: float | None = None
    slow: bool = False
    remembered: bool = False
    permanent: bool = False
    circuit_open: bool = False
    answered: bool = False


async def complete(provider: str, turns: list[Turn], time_limit_s: float) -> str:
    """The model call lent to judges. Raises ``ProviderError``, ``UnknownProvider`` or ``TimeoutError``."""
    request = ProviderRequest(tuple(ChatMessage(turn.role, turn.text) for turn in turns))
    async with asyncio.timeout(time_limit_s):
        return await get_provider(provider).complete(request)


async def run_check(
    guardrail: Guardrail, request: CheckRequest, clock: Clock = time.monotonic, *, tries: int = TRIES
) -> Checked:
    """One guardrail's verdict; never raises but for cancellation.

    One that goes over the network is asked up to ``tries`` times when it fails in a way that may pass, all within its
    one time limit; its breaker counts each of them. Workers ask once: a check of theirs is queued again.
    """
    kept = book(guardrail.impl)
    if (verdict := kept.remembered(request, clock)) is not None:
        return Checked(verdict, 0.0, p95_ms=kept.p95_ms, slow=kept.slower_than_declared, remembered=True)
    checked = await _once(guardrail, request, clock, guardrail.time_limit_s)
    left_s = guardrail.time_limit_s - checked.took_ms / 1000
    for attempt in range(1, tries if guardrail.impl.performance.network else 1):
        if not _may_pass(checked) or left_s <= 0:
            break
        wait_s = wait_within_s(attempt, left_s)
        await rest(wait_s)
        left_s -= wait_s
        found = await _once(guardrail, request, clock, left_s)
        if found.circuit_open:  # what it failed of says more
            break
        left_s -= found.took_ms / 1000
        checked = replace(found, took_ms=(guardrail.time_limit_s - left_s) * 1000)
    if checked.verdict.error is not None:
        result = "circuit_open" if checked.circuit_open else "timeout" if checked.timed_out else "error"
        FAILURES.labels(guardrail.name, result).inc()
    return checked


def _may_pass(checked: Checked) -> bool:
    """Did it fail on the way? An answer out of form speaks of one text, which could have itself judged three times."""
    over = checked.permanent or checked.timed_out or checked.circuit_open or checked.answered
    return checked.verdict.error is not None and not over


async def _once(guardrail: Guardrail, request: CheckRequest, clock: Clock, limit_s: float) -> Checked:
    """One try, within ``limit_s`` seconds."""
    kept = book(guardrail.impl)
    started = clock()
    timed_out = permanent = asking = answered = False
    tried = None
    if guardrail.impl.performance.network:
        tried = await breakers.breaker(breakers.GUARDRAIL + guardrail.circuit, within_s=FAILURES_WITHIN_S)
    failure: Exception | None = None
    try:
        # The limit is the guardrail's, so it begins when it is its turn: else our own queue would decide about texts.
        async with kept.slot(), _turn(guardrail, limit_s) as turn, asyncio.timeout(limit_s):
            if tried is not None:
                await tried.enter()
            asking = True
            started = clock()  # what is measured is the guardrail, not the queue before it
            verdict = await _verdict(guardrail, request, turn)
        answered = True
    except breakers.CircuitOpen:
        verdict = Verdict(hit=False, error=breakers.NOT_ASKED)
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
        verdict = Verdict(hit=False, error=_ours(error))
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
    verdict = _storable(verdict)
    took_ms = (clock() - started) * 1000
    kept.measured(took_ms, clock)
    kept.remember(request, verdict, clock)
    slow = kept.slower_than_declared
    return Checked(verdict, took_ms, timed_out, kept.p95_ms, slow, permanent=permanent, answered=answered)


def _storable(verdict: Verdict) -> Verdict:
    """The verdict in words that any database takes: whoever judges may say what it likes."""
    category = _words(verdict.category, CATEGORY_CHARS)
    error = None if verdict.error is None else _words(verdict.error, ERROR_CHARS)
    return replace(verdict, category=category, error=error)


def _words(said: str, chars: int) -> str:
    return said[:chars].replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def _ours(error: Exception) -> str:
    """What is told of a failure: not what a model's endpoint says of it, behind the colon, which may quote the text."""
    said = str(error)
    quotes = isinstance(error, ProviderError) and not isinstance(error, ProviderAuthError)
    return said.partition(": ")[0] if quotes else said


def _counts(error: Exception, permanent: bool) -> bool:
    """Does the failure speak of the other side, so that it counts towards the breaker?

    What is said of one text does not: else one user's texts could have nobody's texts judged any more. A key that is
    not accepted is permanent and counts all the same, because no text will be judged with it.
    """
    return isinstance(error, ProviderAuthError) or not (permanent or isinstance(error, NoVerdict))


def _turn(guardrail: Guardrail, limit_s: float) -> AbstractAsyncContextManager[Computing | None]:
    return Computing(limit_s) if guardrail.apart is not None or guardrail.impl.computes else nullcontext()


async def _verdict(guardrail: Guardrail, request: CheckRequest, turn: Computing | None) -> Verdict:
    if turn is not None:
        return await turn.run(partial(_computed, guardrail, request))
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


Outside = Callable[[SentenceCheck], str]
"""The text of a check as a guardrail that goes over the network is told it."""


@dataclass(frozen=True, slots=True)
class Later:
    """What a guardrail that does not decide has yet to be asked about a text. Nobody waits for its verdict."""

    gate: Gate
    check: SentenceCheck
    guardrail: Guardrail
    conversation: tuple[Turn, ...] = ()
    outside: Outside | None = None
    channel: str = ""
    at: int = 0
    """Of the text that ``channel`` names, if any: where this one begins."""

    @property
    def request(self) -> CheckRequest:
        """What the guardrail is asked."""
        return _request(self.check, self.guardrail, self.gate.applies_to, self.conversation, self.outside)

    def findings(self, checked: Checked) -> list[Finding]:
        """What the verdict amounts to, now that it is there."""
        warned(self.guardrail, checked)
        effects = self.gate.verdict(self.check.id, self.guardrail.name, checked.verdict)
        found = [effect[1] for effect in effects if effect[0] == gates.FOUND]
        if not self.channel:
            return found
        return [replace(f, channel=self.channel, start=f.start + self.at, end=f.end + self.at) for f in found]


def warned(guardrail: Guardrail, checked: Checked) -> None:
    """A failure whose ``on_error`` is to warn is said in the log. One that decides leaves a finding as well."""
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
    """A whole text that guardrails have looked at: what they found in it, and how many characters they released.

    ``asked`` False: rules alone, because it is the name of something. ``limits`` False: it may be as long as it likes.
    """

    text: str
    applies_to: AppliesTo
    channel: str
    findings: tuple[Finding, ...] = ()
    released: int = 0
    conversation: tuple[Turn, ...] = ()
    asked: bool = True
    limits: bool = True


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
    outside: Outside | None = None,
) -> CheckedText:
    """Run a whole text through the gate, asking BATCHED and holding DEFERRED guardrails as it demands.

    ``later``: guardrails that do not decide are not asked here; what they are to be asked is handed back. ``held`` is
    told, before anybody is asked, when the text is kept back until guardrails that decide have answered. ``written``:
    what the text was decoded by; what is visible of it is JSON again. ``outside``: what is told over the network
    instead of the text of a check; None: the text.
    """
    gate = Gate(policy, applies_to, channel, monitor=monitor)
    effects = [*await fed(gate, text), *gate.finish()]
    if held is not None and gate.waiting and (hold := gate.hold) is not None:
        held(hold)
    out = await settled(
        gate, effects, conversation=conversation, clock=clock, later=later, written=written, outside=outside
    )
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
    outside: Outside | None = None,
) -> CheckedText:
    """What these effects come to once every guardrail that the gate asks for has answered: about one text at the same
    time, and about ``MAX_UNANSWERED`` texts at most.

    ``later``: once every one that decides has; the others are not asked. Findings stand in the order in which they
    became certain; the counters are the gate's own, since its beginning.
    """
    policy, out = gate.policy, CheckedText()
    parts: list[str] = []
    slots = asyncio.Semaphore(MAX_UNANSWERED)

    async def asked(check: SentenceCheck, guardrails: Sequence[Guardrail]) -> list[Checked]:
        async with slots:
            requests = [(one, _request(check, one, gate.applies_to, conversation, outside)) for one in guardrails]
            return await asyncio.gather(*(run_check(one, request, clock) for one, request in requests))

    waiting = await _collect(effects, out, parts, written)
    while waiting:
        jobs: list[tuple[SentenceCheck, list[Guardrail]]] = []
        for check in waiting:
            guardrails = [policy.guardrail(name) for name in check.guardrails]
            aside = [one for one in guardrails if later and (gate.monitor or not one.decides)]
            out.later += [Later(gate, check, one, conversation, outside) for one in aside]
            jobs.append((check, [one for one in guardrails if one not in aside]))
        results = await asyncio.gather(*(asked(check, guardrails) for check, guardrails in jobs))
        waiting = []
        for check, guardrail, checked in (
            (check, guardrail, checked)
            for (check, guardrails), said in zip(jobs, results, strict=True)
            for guardrail, checked in zip(guardrails, said, strict=True)
        ):
            out.statuses.append(status_after(guardrail, checked))
            if checked.verdict.error is not None:
                out.failed.append(guardrail.name)
                warned(guardrail, checked)
            try:
                effects = gate.verdict(check.id, guardrail.name, checked.verdict)
            except KeyError:  # a block before this sentence has made the question moot
                continue
            waiting += await _collect(effects, out, parts, written)
    awaited = gate.awaited
    out.later = [question for question in out.later if question.check.id in awaited]
    if written is not None and out.blocked is None:
        parts.append(written.finish())
    out.visible = "".join(parts)
    out.counters = gate.counters
    out.action = strongest(out.findings)
    return out


def _request(
    check: SentenceCheck,
    guardrail: Guardrail,
    applies_to: AppliesTo,
    conversation: tuple[Turn, ...],
    outside: Outside | None,
) -> CheckRequest:
    turns = conversation if guardrail.impl.wants_conversation else ()
    told = check.text if outside is None or not guardrail.impl.performance.network else outside(check)
    return CheckRequest(told, applies_to, turns, guardrail.time_limit_s)


async def _collect(
    effects: list[gates.Effect], out: CheckedText, parts: list[str], written: JsonChannel | None
) -> list[SentenceCheck]:
    checks: list[SentenceCheck] = []
    if written is not None:
        parts.append(await spelled(written, effects))
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
