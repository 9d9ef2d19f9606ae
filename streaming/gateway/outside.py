"""What guardrails over the network are told of a request: its texts, without the values that are masked in them.

Exists because a judge at a vendor is as much outside as the model is. Protects the rule that a value which a policy
masks leaves the house on no way: not within the request, and not within a question about it. All texts of a request are
looked at by the rules before anybody is asked about one of them, because what makes a value one may stand in another.
Guardrails of this process read texts as they were typed. Pure but for giving way to others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from guardrails.findings import AppliesTo, Finding
from guardrails.masking import masking_guardrails
from guardrails.performance import Checkpoint
from guardrails.policy import Policy
from streaming.checks import Outside, check_text
from streaming.core.effects import SentenceCheck
from streaming.core.gate import gate_text
from streaming.gateway.sweep import LONG

Hide = Callable[[str, Sequence[Finding]], str]
"""A text with these values masked; known ones too."""


class Hiding:
    """The texts of one request. ``learn`` all of them, then ask."""

    def __init__(self, policy: Policy, hide: Hide) -> None:
        self._rules = policy.only(Checkpoint.IMMEDIATE)
        self._masking = masking_guardrails(policy)
        self._hide = hide
        self._found: dict[tuple[str, AppliesTo], list[Finding]] = {}

    async def learn(self, texts: Iterable[tuple[str, AppliesTo]]) -> None:
        """Have the rules look at texts; what they find in one is hidden in all."""
        for text, applies_to in texts:
            if (text, applies_to) in self._found:
                continue
            await asyncio.sleep(0)  # others stream meanwhile
            checked = await check_text(self._rules, text, applies_to=applies_to)
            found = self._found[(text, applies_to)] = self._masked(checked.findings)
            if found:
                if len(text) > LONG:
                    await asyncio.to_thread(self._hide, text, found)
                else:
                    self._hide(text, found)

    async def learned(self, text: str, applies_to: AppliesTo) -> Outside:
        """``told`` of a text that may not have been learned, when all of the others have been masked."""
        await self.learn([(text, applies_to)])
        return self.told(text, applies_to)

    def told(self, text: str, applies_to: AppliesTo) -> Outside:
        """What is told of checks of a text that was learned."""
        found = self._found[(text, applies_to)]

        def told(check: SentenceCheck) -> str:
            inside = [one for one in found if one.start < check.end and check.start < one.end]
            length = check.end - check.start
            moved = [
                replace(one, start=max(0, one.start - check.start), end=min(length, one.end - check.start))
                for one in inside
            ]
            return self._hide(check.text, moved)

        return told

    def whole(self, text: str, applies_to: AppliesTo = AppliesTo.PROMPT) -> str:
        """Any text, when all have been learned."""
        found = self._found.get((text, applies_to))
        if found is None:
            found = self._masked(gate_text(self._rules, text, applies_to=applies_to).findings)
        return self._hide(text, found)

    def _masked(self, findings: Iterable[Finding]) -> list[Finding]:
        return [one for one in findings if one.guardrail in self._masking]


def needed(policy: Policy) -> bool:
    """Whether the policy masks, and asks anybody over the network."""
    return bool(masking_guardrails(policy)) and any(g.impl.performance.network for g in policy.guardrails)
