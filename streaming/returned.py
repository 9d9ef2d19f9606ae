"""A call that the provider ran itself and has answered, on its way through the gates.

Exists because such a call and what came of it arrive without anything running here. Protects two rules: a call is told
before its result, whichever of the two is decided upon first; and neither its name, its arguments nor its result is
shown before the guardrails for tools have decided about all of it. Pure: the answer feeds the gates and tells.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from guardrails.findings import AppliesTo
from guardrails.performance import Checkpoint
from guardrails.policy import Policy
from streaming.answer_lanes import Lane
from streaming.calls import Call
from streaming.core.gate import Gate, Hold
from streaming.core.json_text import JsonChannel


@dataclass(slots=True)
class Returned:
    """``asked``: its arguments' lane, ``shown`` of them as JSON so far. ``said``: its result's, once ``fed``.

    ``asked_over``, ``told``: no deciding guardrail has to answer about the arguments, about the result, any more.
    """

    number: int
    call: Call
    text: str
    failed: bool
    arguments: str
    written: JsonChannel
    asked: Lane
    said: Lane
    shown: list[str] = field(default_factory=list)
    fed: bool = False
    asked_over: bool = False
    told: bool = False

    @classmethod
    def of(
        cls, number: int, call: Call, text: str, failed: bool, policy: Policy, *, monitor: bool,
        written: JsonChannel, arguments: str,
    ) -> Returned:  # fmt: skip
        """Nothing has been fed to its gates yet. ``arguments``: the call's, as they were read through ``written``."""
        asked = Gate(policy, AppliesTo.TOOL_ARGUMENTS, "tool_arguments", monitor=monitor)
        said = Gate(policy, AppliesTo.TOOL_RESULT, "tool_result", monitor=monitor)
        lanes = Lane(asked, "tool_arguments", number), Lane(said, "tool_result", number)
        return cls(number, call, text, failed, arguments, written, *lanes)

    @property
    def lanes(self) -> dict[str, Lane]:
        """By channel."""
        return {lane.channel: lane for lane in (self.asked, self.said)}

    def held(self) -> Iterator[tuple[str, Hold]]:
        """What is kept back of it, in one piece each, by channel."""
        parts = (self.asked, self.asked_over, self.arguments), (self.said, self.told, self.text)
        for lane, over, text in parts:
            if not over and (hold := lane.gate.hold) is not None:
                yield lane.channel, replace(hold, chars=len(text))


def name_lane(policy: Policy, name: str, *, monitor: bool) -> Lane:
    """The lane of a tool's name; only rules look at it, so nobody is waited for."""
    rules = policy.only(Checkpoint.IMMEDIATE)
    return Lane(Gate(rules, AppliesTo.TOOL_ARGUMENTS, "tool_arguments", monitor=monitor), "tool_arguments", 0)
