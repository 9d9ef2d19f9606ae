"""A moment as a word: letters that no rule looks for, so that a token can carry when it was sent."""

from __future__ import annotations

ALPHABET = "bcdfghjklmnpqrstvwxz"
LETTERS = 7
SIZE = LETTERS + 1
"""Characters of a token: the word and a space."""
TICKS = 10_000
"""A second's."""
_WRAP = len(ALPHABET) ** LETTERS


def stamp(seconds: float) -> str:
    """The token for a moment."""
    ticks, out = round(seconds * TICKS) % _WRAP, ""
    for _ in range(LETTERS):
        ticks, letter = divmod(ticks, len(ALPHABET))
        out += ALPHABET[letter]
    return out + " "


def late_ms(word: str, now: float) -> float:
    """Milliseconds since the word's moment."""
    ticks = 0
    for letter in reversed(word[:LETTERS]):
        ticks = ticks * len(ALPHABET) + ALPHABET.index(letter)
    return (round(now * TICKS) - ticks) % _WRAP * 1000 / TICKS
