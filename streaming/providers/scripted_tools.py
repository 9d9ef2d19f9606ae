"""The scripted model with tools: what it asks for, and what it makes of the results.

Exists so that the demo and the tests see the whole loop without a model: text, calls beside each other while text goes
on, results, and an answer that is made of them. Deterministic; it says only what the results say.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from streaming.providers.base import ChatMessage


@dataclass(frozen=True, slots=True)
class ToolScenario:
    """``before`` each call stands its text; ``after`` is the answer, with ``{0}``, ``{1}`` … for the results."""

    label: str
    prompt: str
    calls: tuple[tuple[str, str, dict[str, object]], ...]
    after: str


TOOL_SCENARIOS = {
    "tools": ToolScenario(
        "Tools beside each other",
        "What does a lock chamber of 80 by 12 metres hold when it is 5.5 metres deep?",
        (
            ("Let me work that out. ", "calculator", {"expression": "80 * 12 * 5.5"}),
            ("While it fills, I count along. ", "slow_count", {"steps": 5, "seconds": 2}),
        ),
        "The chamber holds {0} cubic metres of water. Filling it took its time: I {1} meanwhile.",
    ),
    "tool_search": ToolScenario(
        "A search in these docs",
        "What happens to held text when I press Stop?",
        (("I look that up. ", "search_docs", {"query": "held text dropped interrupt early end", "results": 2}),),
        "This is what the documentation says:\n\n{0}",
    ),
    "tool_error": ToolScenario(
        "Tools that fail",
        "What is 7 divided by 0?",
        (
            ("I try. ", "calculator", {"expression": "7 / 0"}),
            ("And I ask somebody else. ", "oracle", {"question": "7 / 0"}),
        ),
        "It did not work. The calculator said: {0} And the other one: {1}",
    ),
}
"""Ready-made scenarios by name."""


def results_of(messages: Sequence[ChatMessage]) -> list[str]:
    """The results that came back after the last thing a user said."""
    found: list[str] = []
    for message in messages:
        if message.role == "user":
            found.clear()
        elif message.role == "tool":
            found.append(message.text)
    return found


def script(scenario: ToolScenario, messages: Sequence[ChatMessage]) -> list[str | tuple[str, str]]:
    """What the model says next: texts, and calls as (name, arguments)."""
    results = results_of(messages)
    if results:
        padded = [*results, *["nothing"] * len(scenario.calls)]
        return [scenario.after.format(*padded)]
    said: list[str | tuple[str, str]] = []
    for before, name, arguments in scenario.calls:
        said += [before, (name, json.dumps(arguments))]
    return said
