"""The record of a request through the gateway: one session, opened before anything leaves, closed when it is over.

Exists so that what passes here is in the same audit log, under the same rules, as what streams elsewhere. Protects the
rule that every request that reached a guardrail has a row, however it ended: what is left behind by a process that died
is found by the sweep, because the row gives signs of life while it is open.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import structlog

from guardrails.findings import AppliesTo, Finding, Outcome
from guardrails.kinds.base import Turn
from guardrails.policy import Guardrail, Policy
from guardrails.selectors import ShadowPolicy
from streaming import conversing, endings, metrics, sessions, tasks, totals
from streaming.away import noted
from streaming.beside import Beside
from streaming.bookends import policy_ref
from streaming.checks import Later, Outside
from streaming.conf import conf
from streaming.core.events import GuardrailStatus
from streaming.database import AWAY
from streaming.gateway import laid, places
from streaming.gateway.gates import Gates, outcome_of, widened
from streaming.gateway.late import wholes
from streaming.gateway.places import Place
from streaming.gateway.prompt import Prompted, conversation
from streaming.gateway.shadow import looked
from streaming.log import LogUnavailable, MemoryLog, SessionLog
from streaming.log_redis import shared_log
from streaming.models import AuditSession, Message
from streaming.overheard import Overheard
from streaming.pace import RELAYED, Timeline
from streaming.sessions import DeferredText, Ending, NewSession, Started, Visitor
from streaming.shadow.asked import Late
from streaming.shadow.record import ShadowRecord, acted
from streaming.together import together

logger = structlog.get_logger(__name__)

ALIVE_EVERY_S = 2.0
MOST_CHOICES = 128
"""Choices of an answer that workers judge; no upstream gives more."""
LAST_CHOICE = 32_767
"""A choice has the number that the upstream gives it, and a row holds no higher one."""


@dataclass(slots=True)
class Record:
    """What is written of one request. Times in seconds."""

    started: Started
    policy: Policy
    prompted: Prompted
    provider: str
    model: str
    streaming: bool
    statuses: list[GuardrailStatus] = field(default_factory=list)
    late: list[Finding] = field(default_factory=list)
    fallback: str = ""
    upstream_ms: int = 0
    chunks: int = 0
    alive_at: float = field(default_factory=time.monotonic)
    began_at: float = field(default_factory=time.monotonic)
    arrivals: Timeline = field(default_factory=Timeline)
    releases: Timeline = field(default_factory=Timeline)
    came: int = 0
    settled: int = 0
    stop_reason: str = ""
    """Why the upstream ended the answer, as it said."""
    shadow: ShadowPolicy | None = None
    held: list[Place] = field(default_factory=list)
    """The places that the request takes up."""
    renewed_at: float = field(default_factory=time.monotonic)
    _written: int = 0
    _writing: asyncio.Task[None] | None = None
    _saying: asyncio.Task[None] | None = None
    _renewing: asyncio.Task[None] | None = None

    def moved(self, gates: Gates) -> None:
        """Note what of the answer has come since, and what is held no longer: shown, or hidden for good."""
        came, settled = gates.came_and_settled()
        ms = round((time.monotonic() - self.began_at) * 1000)
        if came > self.came:
            self.arrivals.add(ms, came - self.came)
        if settled > self.settled and gates.blocked is None:
            self.releases.add(ms, settled - self.settled)
        self.came, self.settled = came, max(settled, self.settled)

    def alive(self, gates: Gates) -> None:
        """Signs of life where they are due: at once when text has come since the last one, else in time for the sweep.

        Called every ``ALIVE_EVERY_S``. Beside the answer: a database that is away or slow holds up nobody's words.
        """
        now = time.monotonic()
        if now - self.renewed_at >= places.RENEWED_S and not _under_way(self._renewing):
            self.renewed_at = now
            self._renewing = asyncio.create_task(self._renew())
        chars_in, released, _, _ = gates.counts()
        if chars_in == self._written and now - self.alive_at < conf().stale_s / 3:
            return
        self.alive_at = now
        if _under_way(self._writing):
            if not _under_way(self._saying):
                self._saying = asyncio.create_task(endings.say_that_it_lives(_log(), self.started.session_id))
            return
        self._writing = asyncio.create_task(self._keep(text_of(gates), released, chars_in))

    async def _keep(self, content: str, released: int, chars_in: int) -> None:
        session_id = self.started.session_id
        try:
            await endings.keep_partial(
                _log(), session_id=session_id, content=content, released=released, chars_in=chars_in, last_seq=0
            )
        except AWAY as error:
            noted(error, session=session_id)
        else:
            self._written = chars_in

    async def _renew(self) -> None:
        for place in tuple(self.held):
            await place.renew()

    async def _settled(self) -> None:
        """Nothing is being written any more."""
        begun = (self._writing, self._saying, self._renewing)
        if open_ := {task for task in begun if task is not None and not task.done()}:
            await asyncio.wait(open_)

    async def end(
        self, gates: Gates, usage: dict[str, int], *, outcome: Outcome | None = None, code: str = "", error: str = "",
        out: Sequence[Later] = (), why: str = "",
    ) -> None:  # fmt: skip
        """The request is over. ``outcome`` None: what the guardrails made of it.

        ``out``: verdicts that nobody waits for any more, and ``why``; they stand in the record as failed checks.
        """
        answered, redactions = laid.answered(gates)
        findings = [*self.prompted.findings, *answered, *self.late]
        numbered = tuple(_numbered(finding, n) for n, finding in enumerate(findings, start=1))
        unasked = self.prompted.blocked is not None
        self.moved(gates)
        chars_in, released, withheld, exposed = gates.counts()
        guardrails: totals.AllTotals = {}
        checks = totals.add(guardrails, findings=numbered, statuses=[*self.prompted.statuses, *self.statuses])
        outcome = outcome or outcome_of(list(numbered), blocked=unasked or gates.blocked is not None)
        unheard = Overheard(self.started.session_id, out)
        deferred = () if unasked else (*self._deferred(gates), *unheard.deferred)
        timing: dict[str, object] = {
            RELAYED: True,
            "calls": 1,
            "chunks": self.chunks,
            "checks": checks,
            "naive_calls": self.chunks,
            "audit_rows": 3 + len(numbered),
            "prompt_chars": self.prompted.chars,
            "guardrails": {**guardrails},
            "arrivals": self.arrivals.points,
            "releases": self.releases.points,
        }
        if self.prompted.media:
            timing["unguarded"] = list(self.prompted.media)
        ending = Ending(
            outcome=outcome,
            status=_STATUS.get(outcome, Message.Status.COMPLETE),
            content=text_of(gates),
            metadata={
                "provider": self.provider,
                "model": self.model,
                "usage": usage,
                "streaming": self.streaming,
                "stop_reason": self.stop_reason,
                "redactions": [list(pair) for pair in redactions],
            },
            findings=numbered,
            deferred=deferred,
            chars_in=chars_in,
            released=released,
            withheld=withheld + self.prompted.withheld,
            exposed=exposed,
            provider=self.provider,
            model=self.model,
            timing=timing,
            error_code=code,
            error=error,
            streaming=self.streaming,
            fallback=self.fallback,
            shadow=await self._shadowed(gates, numbered, deferred),
        )
        metrics.shadowed(self.policy.name, ending.shadow)
        await self._settled()
        state = await endings.store(ending, session_id=self.started.session_id, log=_log())
        if state is None:
            logger.error("ending_not_stored", session=self.started.session_id, outcome=outcome.value)
        elif out:
            try:
                await unheard.give_up(_log(), why)
            except Exception:  # the sweep ends what is left
                logger.exception("overheard_not_stored", session=self.started.session_id)
        await self._settled()
        left = any(not item.held for item in deferred) or (ending.shadow is not None and ending.shadow.late)
        if left and state is not None:
            await tasks.queue_session(self.started.session_id)

    async def _shadowed(
        self, gates: Gates, findings: Sequence[Finding], deferred: tuple[DeferredText, ...]
    ) -> ShadowRecord | None:
        """What the shadow makes of the texts; the client has its answer."""
        if (which := self.shadow) is None or (seen := gates.noted) is None:
            return None
        if self.prompted.blocked is not None:  # it goes to nobody, whichever version asks
            which = replace(which, paid=False)
        wide = None if which.policy is None else widened(which.policy)
        did = acted(self.policy, findings, monitor=False)

        async def ask(late: Late) -> Callable[[str, AppliesTo], Awaitable[Outside]] | None:
            choices = [choice for choice in sorted(gates.answers)[:MOST_CHOICES] if 0 <= choice <= LAST_CHOICE]
            await wholes(late, gates, self.prompted, seen, deferred, choices, self._turns)
            return None if self.prompted.masking is None else self.prompted.masking.learned

        return await looked(which, wide, seen, acted=did, session=self.started.session_id, ask=ask)

    def _deferred(self, gates: Gates) -> list[DeferredText]:
        """What workers shall judge: the prompt, and the text of every choice, each by itself."""
        texts = [(AppliesTo.PROMPT, 0, self.prompted.raw)]
        for choice in sorted(gates.answers)[:MOST_CHOICES]:
            channels = gates.answers[choice]
            texts.append((AppliesTo.RESPONSE, choice, "".join("".join(channel.raw or ()) for channel in channels)))
        return [
            DeferredText(
                guardrail.name,
                applies_to.value,
                self._told(guardrail, applies_to, text),
                part=choice,
                turns=self._turns(guardrail, applies_to),
            )
            for applies_to, choice, text in texts
            if text and 0 <= choice <= LAST_CHOICE
            for guardrail in self.policy.deferred(applies_to)
            if not guardrail.decides
        ] + self._beside(gates)

    def _beside(self, gates: Gates) -> list[DeferredText]:
        """Thinking and arguments of the answer; results and documents that came with the request."""
        asked = Beside(gates.policy, told=self.prompted.told)
        for applies_to, text in self.prompted.beside:
            asked.add(applies_to, text, 0)
        return [
            replace(item, turns=self._turns(gates.policy.guardrail(item.guardrail), kind))
            for kind, found in ((AppliesTo.PROMPT, asked), (AppliesTo.RESPONSE, gates.heard_beside()))
            for item in found.deferred()
        ]

    def _turns(self, guardrail: Guardrail, applies_to: AppliesTo) -> tuple[Turn, ...] | None:
        """The messages as they went upstream; nobody else has them, and without values that are masked."""
        if not guardrail.impl.wants_conversation:
            return None
        turns = conversation(self.prompted)
        if applies_to is AppliesTo.PROMPT:
            turns = turns[: max((n for n, turn in enumerate(turns) if turn.role == "user"), default=0)]
        return conversing.told(guardrail, turns)

    def _told(self, guardrail: Guardrail, applies_to: AppliesTo, text: str) -> str:
        """The upstream's words are told as they came; what the user typed without values that are masked."""
        return text if applies_to is AppliesTo.RESPONSE else self.prompted.told(guardrail, text)


_STATUS = {
    Outcome.BLOCKED: Message.Status.BLOCKED,
    Outcome.INTERRUPTED: Message.Status.INTERRUPTED,
    Outcome.ABANDONED: Message.Status.INTERRUPTED,
    Outcome.ERROR: Message.Status.ERROR,
}


def _under_way(task: asyncio.Task[None] | None) -> bool:
    return task is not None and not task.done()


def _log() -> SessionLog:
    """Where it is said that a request lives while the database cannot be told; nowhere if no store is configured."""
    try:
        return shared_log()
    except LogUnavailable:
        return MemoryLog()


def text_of(gates: Gates) -> str:
    """The visible text of the first choice; masked values stay placeholders in the record."""
    return "".join("".join(channel.recorded) for channel in gates.answer)


async def opened(
    visitor: Visitor, policy: Policy, prompted: Prompted, *, provider: str, model: str, streaming: bool,
    correlation_id: str, session_id: str, shadow: ShadowPolicy | None = None,
) -> Record:  # fmt: skip
    """The row of a request, stored."""
    new = NewSession(
        visitor=visitor,
        prompt=prompted.shown,
        prompt_metadata={"redactions": [list(pair) for pair in prompted.redactions]},
        policy=policy_ref(policy),
        provider=provider,
        model=model[:200],
        blocked=prompted.blocked is not None,
        correlation_id=correlation_id,
        streaming=streaming,
        origin=AuditSession.Origin.GATEWAY,
        session_id=session_id,
        shadow=0 if shadow is None else shadow.version,
    )
    started = await together(partial(sessions.start_session, new))
    return Record(started, policy, prompted, provider, model[:200], streaming, shadow=shadow)


def _numbered(finding: Finding, n: int) -> Finding:
    return replace(finding, n=n)
