"""What can happen to an answer under way: the items of the pump's inbox.

Exists so that everything that may reach the loop can be read in one place. Protects the rule that there is one order of
things: who wants something of a running answer puts one of these into its inbox, and nothing else touches it.
"""

from __future__ import annotations

from dataclasses import dataclass

from guardrails.findings import Outcome
from guardrails.policy import Guardrail
from streaming.agent import Said
from streaming.answer_lanes import Question
from streaming.checks import Checked, Later
from streaming.core.events import ProviderEvent
from streaming.providers.base import ProviderError


@dataclass(frozen=True, slots=True)
class Arrived:
    """The provider has said something."""

    event: ProviderEvent


@dataclass(frozen=True, slots=True)
class ProviderEnded:
    """Nothing more comes from the provider; ``error``: why, unless it has said all."""

    error: ProviderError | None = None


class RoundEnded:
    """The model has said what it has to say for now; tools may follow, and another round."""

    __slots__ = ()


class CallsEnded:
    """All tool calls of a round have ended."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Judged:
    """A guardrail has answered."""

    question: Question
    guardrail: Guardrail
    checked: Checked


@dataclass(frozen=True, slots=True)
class JudgedLater:
    """A guardrail that nobody waits for has answered about a prompt, or about what a tool is given or returns."""

    later: Later
    checked: Checked


@dataclass(frozen=True, slots=True)
class Broken:
    """Something of ours failed outside the loop; the loop fails with it."""

    error: Exception


@dataclass(frozen=True, slots=True)
class Stop:
    """The answer is to end now, and how its end is called."""

    outcome: Outcome


class Tick:
    """Time has passed: a hold may be due, or it is time to write through."""

    __slots__ = ()


Item = Arrived | Broken | RoundEnded | CallsEnded | Said | ProviderEnded | Judged | JudgedLater | Stop | Tick
"""``Said``: a tool call has something to tell."""
