"""Made sentences: harmless ones of the words that attacks are made of, and for toxicity both sides.

Exists because public collections teach a classifier that "ignore" is an attack: in them hardly anybody asks to ignore a
warning of a compiler, and rude tweets teach little about plain language. Used in training only. A sentence is a start,
an end and a frame, combined by a seeded draw; ends are split before the draw, so that those used for judging never
stand in a sentence that was trained on.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Literal, TypedDict

Sort = Literal["tricky", "hostile", "mild"]
"""Harmless with trigger words; insults, threats and contempt; harmless of the same build as those."""


class _Part(TypedDict):
    starts: list[str]
    ends: list[str]


class _Grammar(TypedDict):
    frames: list[str]
    parts: list[_Part]


_GRAMMARS: dict[Sort, _Grammar] = json.loads((Path(__file__).parent / "made.json").read_text("utf-8"))


def sentences(sort: Sort, *, judging: bool, count: int) -> list[str]:
    """``count`` different sentences of that sort, sorted; always the same ones."""
    grammar = _GRAMMARS[sort]
    draw = random.Random(f"{sort} {judging}")  # noqa: S311 - a selection, not a secret
    made: set[str] = set()
    while len(made) < count:
        part = draw.choice(grammar["parts"])
        ends = [end for number, end in enumerate(part["ends"]) if (number % 4 == 3) is judging]
        sentence = draw.choice(grammar["frames"]).format(f"{draw.choice(part['starts'])} {draw.choice(ends)}")
        made.add(sentence[0].upper() + sentence[1:] if draw.random() < 0.8 else sentence)
    return sorted(made)
