"""What a gate answers with.

Effects are plain tuples whose first item names them: the gate makes one per chunk, and a frozen dataclass there costs
a third of the whole budget.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from guardrails.findings import Finding

RELEASE: Literal["release"] = "release"
REDACTED: Literal["redacted"] = "redacted"
FOUND: Literal["found"] = "found"
CHECK: Literal["check"] = "check"
BLOCKED: Literal["blocked"] = "blocked"


@dataclass(frozen=True, slots=True)
class SentenceCheck:
    """A text that guardrails have to judge: a sentence, or (``whole``) the answer.

    ``start`` and ``end`` are code points of the original text; ``guardrails`` names who is asked.
    """

    id: int
    text: str
    start: int
    end: int
    guardrails: tuple[str, ...]
    whole: bool = False


ReleaseEffect: TypeAlias = tuple[Literal["release"], str]
RedactedEffect: TypeAlias = tuple[Literal["redacted"], str, int, str, str, str]
FoundEffect: TypeAlias = tuple[Literal["found"], Finding]
CheckEffect: TypeAlias = tuple[Literal["check"], SentenceCheck]
BlockedEffect: TypeAlias = tuple[Literal["blocked"], Finding, int]
Effect: TypeAlias = ReleaseEffect | RedactedEffect | FoundEffect | CheckEffect | BlockedEffect


@dataclass(frozen=True, slots=True)
class Hold:
    """How many characters are held now, and which guardrail's rule is why."""

    chars: int
    guardrail: str
    rule: str


@dataclass(slots=True)
class Counters:
    """Characters in, shown, kept back, and shown although a MONITOR or warn rule hit them."""

    chars_in: int = 0
    released: int = 0
    withheld: int = 0
    exposed: int = 0


@dataclass(slots=True)
class TextResult:
    """The verdict on a whole text. ``action`` is allow, warn, redact or block; ``findings`` in text order."""

    action: str
    visible: str
    findings: list[Finding] = field(default_factory=list)
    checks: list[SentenceCheck] = field(default_factory=list)
