"""What an answer keeps of each of its channels: its gate, what is visible of it, and what readers were told of it.

Exists apart from ``streaming.answer`` because the answer is what happens to these. Plain records, no rules.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from guardrails.findings import AppliesTo, Finding
from streaming.core.gate import Gate, SentenceCheck

HOLD_EVERY_MS = 50
"""A hold is told at most this often."""

NOTHING = (0, "", "")

Key = tuple[str, int]


@dataclass(slots=True)
class Telling:
    """What readers were last told to be held in a channel (characters, guardrail, rule), and when in ms."""

    channel: str
    told: tuple[int, str, str] = (0, "", "")
    told_at: int = -HOLD_EVERY_MS


@dataclass(slots=True)
class Lane:
    """One channel of one choice: its gate and what is visible of it."""

    gate: Gate
    channel: str
    choice: int
    parts: list[str] = field(default_factory=list)
    redactions: list[tuple[int, str]] = field(default_factory=list)
    told: tuple[int, str, str] = (0, "", "")
    told_at: int = -HOLD_EVERY_MS
    streamed: bool = False
    settled: int = 0
    found: list[Finding] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Question:
    """A text that a guardrail has to be asked about."""

    key: Key
    check: SentenceCheck
    applies_to: AppliesTo


@dataclass(slots=True)
class Round:
    """What one round of the model has said so far: where its visible parts begin, its raw thinking, what it used."""

    text: int = 0
    thinking: int = 0
    thought: list[str] = field(default_factory=list)
    signature: str = ""
    usage: dict[str, int] = field(default_factory=dict)
