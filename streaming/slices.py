"""Feeding a whole text to a gate without keeping the event loop to itself.

Exists because a text comes in one piece where it is checked as a whole, and the gate's promise makes slices free: it
finds the same and shows the same for every way of cutting. Protects those who stream in the same process: between two
slices everybody else has a turn.
"""

from __future__ import annotations

import asyncio

from streaming.core.gate import Effect, Gate

SLICE = 1_024
"""Characters looked at in one go: a millisecond or so, thirty where every other word is a finding."""


async def fed(gate: Gate, text: str) -> list[Effect]:
    """What ``text`` leads to. Nobody else may feed the gate meanwhile."""
    effects = gate.feed(text[:SLICE])
    for at in range(SLICE, len(text), SLICE):
        await asyncio.sleep(0)
        effects += gate.feed(text[at : at + SLICE])
    return effects
