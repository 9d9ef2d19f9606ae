"""Tool calls of an answer: gathered from their pieces, checked whole, shown.

No tool is offered to a model yet, so every call is either one that the provider ran itself (shown, never run here) or
an unknown one (its result is an error that says so). Protects two rules: a reader sees arguments only when they are
complete and have passed the guardrails for tool arguments, and nothing is ever run because a model named it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from guardrails.findings import AppliesTo, Finding
from guardrails.policy import Policy
from streaming.core import gate as gates
from streaming.core.events import ServerEvent, ToolCall, ToolCallDelta, ToolResult
from streaming.core.gate import Gate

MAX_CALLS = 64
"""More calls than this in one answer are a runaway model; the rest is dropped."""


@dataclass(slots=True)
class _Call:
    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)
    ran_by_provider: bool = False


class ToolCalls:
    """``take`` pieces while the answer streams, ``finish`` when it has ended."""

    def __init__(self, policy: Policy, *, monitor: bool) -> None:
        self._policy = policy
        self._monitor = monitor
        self._calls: dict[tuple[int, int], _Call] = {}

    def take(self, piece: ToolCallDelta) -> None:
        """Add a piece to its call."""
        key = (piece.choice, piece.index)
        if key not in self._calls and len(self._calls) >= MAX_CALLS:
            return
        call = self._calls.setdefault(key, _Call())
        call.id = call.id or piece.id
        call.name = call.name or piece.name
        call.arguments.append(piece.arguments)
        call.ran_by_provider = call.ran_by_provider or piece.ran_by_provider

    def finish(self) -> tuple[list[ServerEvent], list[Finding], Finding | None]:
        """Events of all calls in order, what was found in their arguments, and what blocked (the rest is not shown)."""
        out: list[ServerEvent] = []
        findings: list[Finding] = []
        for number, call in enumerate(self._calls.values(), start=1):
            gate = Gate(self._policy, AppliesTo.TOOL_ARGUMENTS, "tool_arguments", monitor=self._monitor)
            effects = [*gate.feed("".join(call.arguments)), *gate.finish()]
            findings += [effect[1] for effect in effects if effect[0] == gates.FOUND]
            if gate.block is not None:
                return out, findings, gate.block
            shown = "".join(effect[1] for effect in effects if effect[0] in (gates.RELEASE, gates.REDACTED))
            call_id = call.id or f"call_{number}"
            out.append(ToolCall(call_id, call.name, shown))
            if not call.ran_by_provider:
                out.append(ToolResult(call_id, error=f"there is no tool named “{call.name}” here"))
        return out, findings, None
