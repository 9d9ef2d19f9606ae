"""What was said before a text: how much of it guardrails want to know, and how it travels to a worker with the text.

Exists so that every way in here (chats, checks, streams, the gateway, workers) tells a guardrail as much as it asks
for. Protects two rules: a conversation that is longer than anybody reads begins with ``OMITTED``, so that a judge is
told; and what a client handed over is stored nowhere but sealed with the text, and wiped with it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from guardrails.findings import AppliesTo
from guardrails.kinds.ai_judge import MOST_TURNS, earlier_turns
from guardrails.kinds.base import OMITTED, Turn
from guardrails.policy import Guardrail, Policy


def turns_wanted(applies_to: AppliesTo, *policies: Policy) -> int:
    """How many earlier messages any guardrail of these policies wants to know about such a text."""
    wanted = (most_of(g) for policy in policies for g in policy.running(applies_to) if g.impl.wants_conversation)
    return max(wanted, default=0)


def most_of(guardrail: Guardrail) -> int:
    """The same of one guardrail; of one that wants all, as many as anybody reads."""
    wanted = guardrail.impl.turns_wanted()
    return MOST_TURNS if wanted == "all" else wanted


def newest(turns: Sequence[Turn], most: int) -> tuple[Turn, ...]:
    """The last ``most`` turns, and that earlier ones are left out where they are. ``most`` 0: none."""
    if len(turns) <= most:
        return tuple(turns)
    return (OMITTED, *turns[-most:]) if most else ()


def told(guardrail: Guardrail, turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """What this guardrail is going to show of them, which is little: a request may be megabytes."""
    wanted = guardrail.impl.turns_wanted() if guardrail.impl.wants_conversation else 0
    shown, left_out = earlier_turns(tuple(turns), wanted)
    return (OMITTED, *shown) if left_out else shown


def together(text: str, turns: Sequence[Turn]) -> str:
    """A text and what was said before it, to be sealed."""
    return json.dumps([text, *([turn.role, turn.text] for turn in turns)])


def apart(sealed: str) -> tuple[str, tuple[Turn, ...]]:
    """The same again."""
    text, *turns = json.loads(sealed)
    return str(text), tuple(Turn(str(role), str(said)) for role, said in turns)
