"""Feeding a whole text to a gate, and reading and writing JSON for it, without keeping the event loop to itself.

Exists because a text comes in one piece where it is checked as a whole, and the gate's promise makes slices free: it
finds the same and shows the same for every way of cutting. Protects those who stream in the same process: between two
slices everybody else has a turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

from streaming.core.gate import RELEASE, Effect, Gate
from streaming.core.json_text import JsonChannel

SLICE = 1_024
"""Characters looked at in one go: a millisecond or so, thirty where every other word is a finding."""


async def fed(gate: Gate, text: str) -> list[Effect]:
    """What ``text`` leads to. Nobody else may feed the gate meanwhile."""
    effects = gate.feed(text[:SLICE])
    for at in range(SLICE, len(text), SLICE):
        await asyncio.sleep(0)
        effects += gate.feed(text[at : at + SLICE])
    return effects


READ = 4 * SLICE
"""Characters of JSON that are read or written in one go: two milliseconds where each of them is a token."""


def reading(channel: JsonChannel, text: str) -> Iterator[str]:
    """A JSON text as a gate is to read it, piece by piece; between two of them others may have a turn."""
    at = 0
    while len(text) - at > READ:
        yield channel.decode(text[at : at + READ])
        at += READ
    yield channel.decode(text[at:]) + channel.decode_rest()


def writing(channel: JsonChannel, effects: Sequence[Effect]) -> Iterator[str]:
    """What the gate answered as JSON, likewise."""
    parts: list[Effect] = []
    chars = 0
    for effect in effects:
        for part in _pieces(effect):
            parts.append(part)
            chars += len(part[1]) if part[0] == RELEASE else 0
            if chars >= READ:
                yield channel.encode(parts)
                parts, chars = [], 0
    yield channel.encode(parts)


def _pieces(effect: Effect) -> Iterator[Effect]:
    if effect[0] != RELEASE:
        yield effect
        return
    for at in range(0, len(effect[1]), READ):
        yield RELEASE, effect[1][at : at + READ]


async def read(channel: JsonChannel, text: str) -> str:
    """All of a JSON text as a gate is to read it."""
    return await _in_turns(reading(channel, text))


async def spelled(channel: JsonChannel, effects: Sequence[Effect]) -> str:
    """What the gate answered, as JSON."""
    return await _in_turns(writing(channel, effects))


async def _in_turns(parts: Iterator[str]) -> str:
    done = [next(parts, "")]
    for part in parts:
        await asyncio.sleep(0)
        done.append(part)
    return "".join(done)
