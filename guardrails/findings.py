"""The words of a verdict: actions, modes, findings.

Exists so that every layer (gate, workers, JSON, screens, audit) says the same thing with the same word.
Protects the rule "one word per idea": nothing else in the project spells an action or a mode.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from typing_extensions import TypedDict  # pydantic reads it for the OpenAPI page, and before Python 3.12 only this one


class Mode(StrEnum):
    """Whether a guardrail decides."""

    BLOCK = "BLOCK"
    MONITOR = "MONITOR"
    DISABLED = "DISABLED"


class Action(StrEnum):
    """What a hit does.

    ``MASK`` is for prompts that the gateway passes on: a placeholder goes upstream, and the value is back in the answer
    (``guardrails.masking``). Everywhere else it acts as ``REDACT``.
    """

    BLOCK = "block"
    REDACT = "redact"
    MASK = "mask"
    WARN = "warn"


class OnError(StrEnum):
    """What a failing guardrail does. Always visible, never silent."""

    BLOCK = "block"
    ALLOW = "allow"
    WARN = "warn"


class AppliesTo(StrEnum):
    """The kinds of text a guardrail may look at."""

    PROMPT = "prompt"
    RESPONSE = "response"
    THINKING = "thinking"
    TOOL_ARGUMENTS = "tool_arguments"
    TOOL_RESULT = "tool_result"
    DOCUMENT = "document"


class Outcome(StrEnum):
    """How a session ended."""

    ALLOWED = "allowed"
    REDACTED = "redacted"
    BLOCKED = "blocked"
    WARNED = "warned"
    INTERRUPTED = "interrupted"
    ABANDONED = "abandoned"
    EXPIRED = "expired"
    ERROR = "error"


HIDING = frozenset({Action.BLOCK, Action.REDACT, Action.MASK})
"""Actions that keep a span from the reader; a guardrail in BLOCK mode with one of them is *deciding*."""


def would_have(mode: Mode, action: Action) -> str | None:
    """What a hit in MONITOR mode would have done in BLOCK mode: ``"blocked"``, ``"redacted"`` or None."""
    if mode is not Mode.MONITOR:
        return None
    return {Action.BLOCK: "blocked", Action.REDACT: "redacted", Action.MASK: "redacted"}.get(action)


class FindingDict(TypedDict):
    """A finding as it stands in JSON."""

    n: int
    guardrail: str
    kind: str
    rule: str
    category: str
    channel: str
    start: int
    end: int
    score: float
    mode: str
    action: str
    would_have: str | None
    exposed: int


@dataclass(frozen=True, slots=True)
class Finding:
    """One hit.

    ``start`` and ``end`` are code points of the original text of the channel, ``end`` exclusive.
    ``score`` is 0..1, higher is riskier. ``exposed`` counts the characters of the span that are part of the
    final visible text: 0 for every deciding finding, the true number for MONITOR and warn.
    ``n`` numbers the findings of one session from 1.
    """

    guardrail: str
    kind: str
    rule: str
    category: str
    start: int
    end: int
    mode: Mode
    action: Action
    channel: str = "text"
    score: float = 1.0
    exposed: int = 0
    n: int = 0
    would_have: str | None = None

    def as_dict(self) -> FindingDict:
        """The finding as a JSON-ready dict, keys as in the design's table of words."""
        return {
            "n": self.n,
            "guardrail": self.guardrail,
            "kind": self.kind,
            "rule": self.rule,
            "category": self.category,
            "channel": self.channel,
            "start": self.start,
            "end": self.end,
            "score": self.score,
            "mode": self.mode.value,
            "action": self.action.value,
            "would_have": self.would_have,
            "exposed": self.exposed,
        }


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a BATCHED or DEFERRED check says of one text.

    ``hit`` is the decision at the guardrail's threshold, ``score`` 0..1. ``error`` is set when the check could
    not be made (then ``hit`` is meaningless and the guardrail's ``on_error`` rules).
    """

    hit: bool
    score: float = 0.0
    category: str = ""
    reason: str = ""
    error: str | None = None
    details: dict[str, str] = field(default_factory=dict)
