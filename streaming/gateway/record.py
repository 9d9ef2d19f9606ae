"""The record of a request through the gateway: one session, opened before anything leaves, closed when it is over.

Exists so that what passes here is in the same audit log, under the same rules, as what streams elsewhere. Protects the
rule that every request that reached a guardrail has a row, however it ended: what is left behind by a process that died
is found by the sweep, because the row gives signs of life while it is open.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

from channels.db import database_sync_to_async

from guardrails.findings import AppliesTo, Finding, Outcome
from guardrails.policy import Policy
from streaming import sessions, tasks, totals
from streaming.bookends import policy_ref
from streaming.core.events import GuardrailStatus
from streaming.gateway.gates import Gates, outcome_of
from streaming.gateway.prompt import Prompted
from streaming.models import AuditSession, Message
from streaming.pace import Timeline
from streaming.sessions import DeferredText, Ending, NewSession, Started, Visitor

ALIVE_EVERY_S = 2.0


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

    def moved(self, gates: Gates) -> None:
        """Note what of the answer has come since, and what is held no longer: shown, or hidden for good."""
        came, settled = gates.came_and_settled()
        ms = round((time.monotonic() - self.began_at) * 1000)
        if came > self.came:
            self.arrivals.add(ms, came - self.came)
        if settled > self.settled and gates.blocked is None:
            self.releases.add(ms, settled - self.settled)
        self.came, self.settled = came, max(settled, self.settled)

    async def alive(self, gates: Gates) -> None:
        """A sign of life, at most every ``ALIVE_EVERY_S``."""
        if time.monotonic() - self.alive_at < ALIVE_EVERY_S:
            return
        self.alive_at = time.monotonic()
        chars_in, released, _, _ = gates.counts()
        await database_sync_to_async(sessions.keep_partial)(
            session_id=self.started.session_id, content=text_of(gates), released=released, chars_in=chars_in, last_seq=0
        )

    async def end(
        self, gates: Gates, usage: dict[str, int], *, outcome: Outcome | None = None, code: str = "", error: str = ""
    ) -> None:
        """The request is over. ``outcome`` None: what the guardrails made of it."""
        findings = [*self.prompted.findings, *gates.findings, *self.late]
        numbered = tuple(_numbered(finding, n) for n, finding in enumerate(findings, start=1))
        blocked = self.prompted.blocked is not None or gates.blocked is not None
        self.moved(gates)
        chars_in, released, withheld, exposed = gates.counts()
        guardrails: totals.AllTotals = {}
        checks = totals.add(guardrails, findings=numbered, statuses=[*self.prompted.statuses, *self.statuses])
        outcome = outcome or outcome_of(list(numbered), blocked=blocked)
        deferred = () if blocked else tuple(self._deferred(gates))
        timing: dict[str, object] = {
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
            metadata={"provider": self.provider, "model": self.model, "usage": usage, "streaming": self.streaming},
            findings=numbered,
            deferred=deferred,
            chars_in=chars_in,
            released=released,
            withheld=withheld,
            exposed=exposed,
            model=self.model,
            timing=timing,
            error_code=code,
            error=error,
            streaming=self.streaming,
            fallback=self.fallback,
        )
        state = await database_sync_to_async(sessions.finish_streaming)(
            session_id=self.started.session_id, ending=ending
        )
        if deferred and state is not None:
            await tasks.queue_session(self.started.session_id)

    def _deferred(self, gates: Gates) -> list[DeferredText]:
        raw = "".join("".join(channel.raw or ()) for channel in gates.answer)
        texts = ((AppliesTo.PROMPT, self.prompted.raw), (AppliesTo.RESPONSE, raw))
        return [
            DeferredText(guardrail.name, applies_to.value, text)
            for applies_to, text in texts
            if text
            for guardrail in self.policy.deferred(applies_to)
            if not guardrail.decides
        ]


_STATUS = {
    Outcome.BLOCKED: Message.Status.BLOCKED,
    Outcome.INTERRUPTED: Message.Status.INTERRUPTED,
    Outcome.ABANDONED: Message.Status.INTERRUPTED,
    Outcome.ERROR: Message.Status.ERROR,
}


def text_of(gates: Gates) -> str:
    """The visible text of the first choice; masked values stay placeholders in the record."""
    return "".join("".join(channel.recorded) for channel in gates.answer)


async def opened(
    visitor: Visitor, policy: Policy, prompted: Prompted, *, provider: str, model: str, streaming: bool,
    correlation_id: str,
) -> Record:  # fmt: skip
    """The row of a request, stored."""
    new = NewSession(
        visitor=visitor,
        prompt=prompted.shown,
        policy=policy_ref(policy),
        provider=provider,
        model=model[:200],
        blocked=prompted.blocked is not None,
        correlation_id=correlation_id,
        streaming=streaming,
        origin=AuditSession.Origin.GATEWAY,
    )
    started = await database_sync_to_async(sessions.start_session)(new)
    return Record(started, policy, prompted, provider, model[:200], streaming)


def _numbered(finding: Finding, n: int) -> Finding:
    return replace(finding, n=n)
