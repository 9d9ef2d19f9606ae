"""Texts beside prompt and answer that workers judge: thinking, arguments and results of tools, documents.

Exists because a guardrail that runs after the answer and does not decide is asked by nobody on the way, and may name
any kind of text. Protects the rule that it is asked about every kind that it applies to, and once about each: of a
session all texts of one kind are one text, in the order in which they were looked at, with an empty line between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from guardrails.findings import AppliesTo
from guardrails.policy import Guardrail, Policy
from streaming.checks import Looked
from streaming.providers.base import ChatMessage
from streaming.sessions import DeferredText

KINDS = (AppliesTo.DOCUMENT, AppliesTo.TOOL_RESULT, AppliesTo.THINKING, AppliesTo.TOOL_ARGUMENTS)
BETWEEN = "\n\n"

Told = Callable[[Guardrail, str, AppliesTo], str]
"""A text as this guardrail may be told it."""


def as_it_came(guardrail: Guardrail, text: str, applies_to: AppliesTo) -> str:
    """For texts that nothing hides."""
    return text


def asked_later(policy: Policy, applies_to: AppliesTo, *, monitor: bool = False) -> tuple[Guardrail, ...]:
    """Guardrails that workers ask about this kind of text; those that decide are asked by the gate."""
    return tuple(guardrail for guardrail in policy.deferred(applies_to) if monitor or not guardrail.decides)


@dataclass(slots=True)
class Beside:
    """The texts of one session. ``wanted``: the kinds that anybody is asked about, the others are not kept."""

    policy: Policy
    monitor: bool = False
    told: Told = as_it_came
    texts: dict[AppliesTo, list[tuple[str, int]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wanted = (kind for kind in KINDS if asked_later(self.policy, kind, monitor=self.monitor))
        self.texts = {kind: [] for kind in wanted}

    def wants(self, applies_to: AppliesTo) -> bool:
        """Whether texts of this kind are kept."""
        return applies_to in self.texts

    def look(self, looked: Looked) -> None:
        """A whole text that was looked at."""
        self.add(looked.applies_to, looked.text, looked.released)

    def given(self, texts: Iterable[Looked], messages: Sequence[ChatMessage]) -> None:
        """What a client hands over: the results that the model has not answered yet. Those before were new once."""
        last = max((n for n, message in enumerate(messages) if message.role == "assistant"), default=-1)
        new = {f"messages[{n}]" for n in range(last + 1, len(messages))}
        for looked in texts:
            if looked.channel in new and looked.applies_to is AppliesTo.TOOL_RESULT:
                self.add(looked.applies_to, looked.text, 0)

    def add(self, applies_to: AppliesTo, text: str, shown: int) -> None:
        """A text; ``shown``: how many of its characters a reader has seen."""
        if text and applies_to in self.texts:
            self.texts[applies_to].append((text, shown))

    def deferred(self) -> list[DeferredText]:
        """What workers shall judge."""
        return [
            DeferredText(
                guardrail.name,
                applies_to.value,
                BETWEEN.join(self.told(guardrail, text, applies_to) for text, _ in texts),
                shown=sum(shown for _, shown in texts),
            )
            for applies_to, texts in self.texts.items()
            if texts
            for guardrail in asked_later(self.policy, applies_to, monitor=self.monitor)
        ]
