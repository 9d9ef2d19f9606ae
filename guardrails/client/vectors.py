"""Parity vectors: texts with the spans that a rule has in them, for a client to try before it trusts its own engine.

They are the rule's own examples and texts made from its pattern: matches, and near matches that differ from one by a
character, by look-alikes, or by an end that is missing. What is made depends on the rule alone, so that publishing the
same document twice gives the same bytes.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator

from guardrails.lint import spans_in
from guardrails.patterns.charset import Ranges, contains
from guardrails.patterns.compiler import CompiledRule
from guardrails.patterns.tree import Alt, Assert, Chars, Group, Node, Repeat, Seq

LONGEST = 240
"""Code points of a vector; a text of a rule that needs more is not made."""
TRIES = 120
"""Texts made in search of one that the rule's check accepts: one card number in ten passes Luhn."""
LINES = 2
"""Matches to make near matches of."""
_PLAIN = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 -._@/"
_WIDE = 0xFEE0
"""From an ASCII character to its full-width twin, which folds to it."""


def vectors(compiled: CompiledRule, *, most: int) -> list[tuple[str, list[tuple[int, int]]]]:
    """At most ``most`` texts with their spans in code points, matches first."""
    rule = compiled.rule
    chance = random.Random(f"{rule.id}\n{rule.pattern}")  # noqa: S311 - the same texts every time is what is wanted
    written = [text for text in (*rule.must_match, *rule.must_not_match) if _usable(text)]
    texts = list(dict.fromkeys([*written[: most // 2], *_made(compiled, chance)]))[:most]
    return [(text, spans_in(compiled, text)) for text in texts]


def _made(compiled: CompiledRule, chance: random.Random) -> Iterator[str]:
    found: list[str] = []
    for n in range(TRIES):
        if len(found) == LINES:
            break
        text = _piece(compiled.tree, chance, thrift=n >= TRIES // 2)
        if _usable(text) and text not in found and spans_in(compiled, text):
            found.append(text)
    for text in found:
        yield f"To {text} or"
    for text in found:
        middle = chance.randrange(len(text))
        yield text[:-1]
        yield text[:middle] + chance.choice(_PLAIN) + text[middle + 1 :]
        if compiled.folds:
            yield _look_alike(text)
        yield f"{text}{text}"[:LONGEST]
        yield f"a{text}9"


def _look_alike(text: str) -> str:
    """The text with its first half in full-width letters and digits, and something that nobody sees between."""
    half = len(text) // 2
    wide = "".join(chr(ord(char) + _WIDE) if char.isascii() and char.isalnum() else char for char in text[:half])
    return f"{wide}\u200b{text[half:]}"


def _usable(text: str) -> bool:
    return 0 < len(text) <= LONGEST and not any("\ud800" <= char <= "\udfff" for char in text)


def _piece(node: Node, chance: random.Random, *, thrift: bool) -> str:
    """A text that the node matches, but for its assertions; ``thrift``: no more turns than it must have."""
    match node:
        case Chars(ranges):
            return _one_of(ranges, chance)
        case Seq(items):
            return "".join(_piece(item, chance, thrift=thrift) for item in items)
        case Alt(branches):
            return _piece(chance.choice(branches), chance, thrift=thrift)
        case Repeat(body, low, high):
            turns = low if thrift else min(high or low, low + chance.choice((0, 0, 1, 2)))
            return "".join(_piece(body, chance, thrift=thrift) for _ in range(turns))
        case Group(_, body):
            return _piece(body, chance, thrift=thrift)
        case Assert():
            return ""


def _one_of(ranges: Ranges, chance: random.Random) -> str:
    if plain := _plain_of(ranges):
        return chance.choice(plain)
    return chr(chance.choice(ranges)[0]) if ranges else ""


@functools.lru_cache(maxsize=512)
def _plain_of(ranges: Ranges) -> str:
    return "".join(char for char in _PLAIN if contains(ranges, ord(char)))
