"""A text as the set of its hashed word and character n-grams.

Exists once, for training and for use, so that the two cannot drift apart. Protects the rule that a classifier sees
through the cheapest disguises: full-width and mathematical letters, marks, zero-width characters and letters spaced
out are undone before anything is counted. Pure, and without numpy: what runs beside a stream must not need it.
"""

from __future__ import annotations

import html
import re
import unicodedata
from zlib import crc32

BITS = 17
BUCKETS = 1 << BITS
MAX_CHARS = 4_000
"""Characters of one window; longer texts are read in several (see ``windows``)."""

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?|[^\w\s]")
_SPACED_OUT = re.compile(r"\b(?:\w[ .\-_]){3,}\w\b")
_DIGITS = re.compile(r"\d+")


def plain(text: str) -> str:
    """The text in lower case without disguises."""
    if "&" in text:
        text = html.unescape(text)
    text = unicodedata.normalize("NFKD", text)
    text = "".join(char for char in text if unicodedata.category(char) not in ("Mn", "Cf", "Me"))
    text = _SPACED_OUT.sub(lambda found: re.sub(r"[ .\-_]", "", found[0]), text)
    return _DIGITS.sub("0", text.lower())


def features(text: str) -> set[int]:
    """Buckets of the text's word 1- to 3-grams and of the character 3- to 5-grams inside its words."""
    words = _WORD.findall(plain(text[:MAX_CHARS]))
    found: set[int] = set()
    add, mask = found.add, BUCKETS - 1
    before, last = "", "\x02"
    for word in [*words, "\x03"]:
        add(crc32(f"1{word}".encode()) & mask)
        add(crc32(f"2{last} {word}".encode()) & mask)
        if before:
            add(crc32(f"3{before} {last} {word}".encode()) & mask)
        before, last = last, word
        padded = f" {word} "
        for size in (3, 4, 5):
            for at in range(len(padded) - size + 1):
                add(crc32(padded[at : at + size].encode()) & mask)
    return found


def windows(text: str, size: int = 1_200, step: int = 600) -> list[str]:
    """The text itself when it is short, else overlapping windows that begin and end between words."""
    if len(text) <= size + step:
        return [text]
    out, at = [], 0
    while at < len(text):
        end = min(len(text), at + size)
        cut = text.rfind(" ", at + step, end) if end < len(text) else end
        out.append(text[at : cut if cut > at else end])
        if end == len(text):
            break
        space = text.find(" ", at + step, at + step + 40)
        at = space + 1 if space > 0 else at + step
    return out
