"""Random rules, and texts built from pieces of their matches, so that near-misses and overlaps are common."""

from __future__ import annotations

import random

from guardrails.patterns.tree import Alt, Assert, Chars, Group, Node, Repeat, Seq

ALPHABET = "ab1-"
NOISE = ["\u200b", "\u0301", "１", "а", "ß", "İ", "\u212a", " ", "\n", "B", "漢", "🙂", "\u200b" * 17, "_"]


def pattern(chance: random.Random, depth: int = 3) -> str:
    """A random pattern over a small alphabet; not every one is accepted as a rule."""
    pick = chance.random()
    if depth == 0 or pick < 0.35:
        return chance.choice([*ALPHABET, *ALPHABET, ".", "[ab]", r"\d", "[^a]", "[a-b1]", "(?i:b)", r"\w"])
    if pick < 0.65:
        return "".join(pattern(chance, depth - 1) for _ in range(chance.randint(1, 3)))
    if pick < 0.8:
        body = pattern(chance, depth - 1)
        body = body if len(body) == 1 else f"(?:{body})"
        return body + chance.choice(["?", "{2}", "{1,3}", "{0,2}", "+", "*", "{2,}"])
    if pick < 0.92:
        return "(?:" + "|".join(pattern(chance, depth - 1) for _ in range(2)) + ")"
    return chance.choice([r"\b", r"\B", "^", "$", "(?m:^)", "(?m:$)", ""]) + pattern(chance, depth - 1)


def piece(node: Node, chance: random.Random) -> str:
    """A text that the node (roughly) matches: assertions are not looked at."""
    match node:
        case Chars(ranges):
            usable = [
                chr(c) for lo, hi in ranges for c in range(lo, min(hi, lo + 80) + 1) if chr(c) in ALPHABET + "B\n "
            ]
            return chance.choice(usable) if usable else chr(ranges[0][0] if ranges else 97)
        case Seq(items):
            return "".join(piece(item, chance) for item in items)
        case Alt(branches):
            return piece(chance.choice(branches), chance)
        case Repeat(body, low, high):
            assert high is not None
            turns = min(high, low + chance.choice((0, 0, 1, 2, 6)))
            return "".join(piece(body, chance) for _ in range(turns))
        case Group(_, body):
            return piece(body, chance)
        case Assert():
            return ""


def text(trees: list[Node], chance: random.Random, pieces: int = 4) -> str:
    """A text of matches, cut matches and noise."""
    out = ""
    for _ in range(chance.randint(1, pieces)):
        part = piece(chance.choice(trees), chance)
        if chance.random() < 0.4:
            part = part[: chance.randint(0, len(part))]
        if chance.random() < 0.4 and part:
            at = chance.randint(0, len(part))
            part = part[:at] + chance.choice(NOISE) + part[at:]
        out += part + chance.choice(["", "", " ", "a", "-", "1"])
    return out[:60]
