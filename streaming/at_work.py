"""How the guardrails of active policies are doing: where they run, how fast they are, and whether they can be asked.

Exists so that readiness, metrics and the admin say the same. What is shared by all processes (breakers, demotions) is
asked for; times are this process's own, so of checks that workers make only a worker knows them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from channels.db import database_sync_to_async

from guardrails.findings import Mode, OnError
from guardrails.performance import Checkpoint
from guardrails.policy import Guardrail
from guardrails.selectors import PolicyUnavailable, active_policy, policy_choices
from streaming import breakers, demotion
from streaming.verdicts import book


@dataclass(frozen=True, slots=True)
class AtWork:
    """One guardrail of an active policy. ``breaker``: its state, empty for one that never leaves the process.

    ``checkpoint``: where sessions that begin now run it. ``slower``: this process measured more than ``declared``
    allows; ``p95_ms`` is what it measured, None if nothing.
    """

    policy: str
    guardrail: str
    kind: str
    mode: Mode
    on_error: OnError
    declared: str
    declared_checkpoint: Checkpoint
    checkpoint: Checkpoint
    p95_ms: float | None
    slower: bool
    breaker: str = ""

    @property
    def demoted(self) -> bool:
        """Runs later than it declares?"""
        return self.checkpoint is not self.declared_checkpoint

    @property
    def blocks(self) -> bool:
        """Are texts blocked while its breaker is not closed?"""
        return self.breaker not in ("", "closed") and self.mode is Mode.BLOCK and self.on_error is OnError.BLOCK

    @property
    def trouble(self) -> str:
        """What is wrong, in words; empty: nothing."""
        said = []
        if self.breaker not in ("", "closed"):
            said.append(f"circuit {self.breaker.replace('_', ' ')}" + (", which blocks" if self.blocks else ""))
        if self.demoted:
            said.append(f"slower than declared, runs {self.checkpoint.value} and not {self.declared_checkpoint.value}")
        elif self.slower:
            said.append(f"slower than declared ({self.declared}), p95 {self.p95_ms or 0:,.0f} ms")
        return " and ".join(said)


async def guardrails_at_work() -> list[AtWork]:
    """Every guardrail that is not DISABLED, by policy and in its order. Policies that cannot be loaded have none.

    Breakers that nobody has asked yet are closed.
    """
    found: list[tuple[AtWork, str]] = await database_sync_to_async(_at_work)()
    return _joined(found, await breakers.states([name for _, name in found if name]))


def guardrails_at_work_now() -> list[AtWork]:
    """The same for code that has no event loop."""
    found = _at_work()
    return _joined(found, breakers.states_now([name for _, name in found if name]))


def _joined(found: list[tuple[AtWork, str]], states: dict[str, str]) -> list[AtWork]:
    return [replace(each, breaker=states.get(name, "closed") if name else "") for each, name in found]


def _at_work() -> list[tuple[AtWork, str]]:
    found: list[tuple[AtWork, str]] = []
    for info in policy_choices():
        try:
            policy = demotion.current(active_policy(info.name))
        except PolicyUnavailable:  # readiness says so in its own part
            continue
        found += [(_of(info.name, g), _circuit(g)) for g in policy.guardrails if g.mode is not Mode.DISABLED]
    return found


def _circuit(guardrail: Guardrail) -> str:
    return breakers.GUARDRAIL + guardrail.circuit if guardrail.impl.performance.network else ""


def _of(policy: str, guardrail: Guardrail) -> AtWork:
    declared, measured = guardrail.impl.performance, book(guardrail.impl)
    return AtWork(
        policy=policy,
        guardrail=guardrail.name,
        kind=guardrail.kind,
        mode=guardrail.mode,
        on_error=guardrail.on_error,
        declared=declared.performance_class.value,
        declared_checkpoint=declared.checkpoint,
        checkpoint=guardrail.checkpoint,
        p95_ms=measured.p95_ms,
        slower=measured.slower_than_declared,
    )
