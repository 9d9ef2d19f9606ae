"""Writes ``folding_v1.json``, the folding table (``python -m guardrails.patterns.folding_build``).

The table is shipped, not computed at start, because it decides verdicts: two machines with different Python (and so
Unicode) versions must fold alike, and a signed rule must mean tomorrow what it meant when it was signed. A change of
the table is a new version of it.

Sources: Unicode Character Database as in this Python's ``unicodedata``; Default_Ignorable_Code_Point (Unicode
Standard, section 5.21); confusables of Unicode Technical Standard #39 as packaged in ``confusable-homoglyphs``.
"""

from __future__ import annotations

import json
import sys
import unicodedata
from collections import defaultdict
from pathlib import Path

TARGET = Path(__file__).with_name("folding_v1.json")
DEFAULT_IGNORABLE = (
    (0x00AD, 0x00AD), (0x034F, 0x034F), (0x061C, 0x061C), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F),
    (0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0x3164, 0x3164), (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF),
    (0xFFA0, 0xFFA0), (0xFFF0, 0xFFF8), (0x1BCA0, 0x1BCA3), (0x1D173, 0x1D17A), (0xE0000, 0xE0FFF),
)  # fmt: skip
UNSPACED = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3005, 0x3007), (0x3040, 0x30FF), (0x31F0, 0x31FF),
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF),
)  # fmt: skip
"""Scripts written without spaces (Thai, Lao, Myanmar, Khmer, kana, Han): their letters never glue words together."""


def _ignorable(code: int) -> bool:
    if unicodedata.category(chr(code)) in ("Mn", "Me", "Cf"):
        return True
    return any(lo <= code <= hi for lo, hi in DEFAULT_IGNORABLE)


def _look_alikes() -> dict[str, str]:
    """Letter -> the ASCII letters it can be mistaken for, the one of its own case preferred."""
    from confusable_homoglyphs.confusables import confusables_data

    out: dict[str, str] = {}
    for char, similar in confusables_data.items():
        if len(char) != 1 or ord(char) < 128 or not unicodedata.category(char).startswith("L"):
            continue
        targets = [s["c"] for s in similar if s["c"].isascii() and s["c"].isalpha() and len(s["c"]) == 1]
        if targets:
            upper = unicodedata.category(char) == "Lu"
            best = sorted(targets, key=lambda t: (t.isupper() != upper, t))[0]
            out[char] = "I" if upper and best == "l" else best  # the confusables list knows I only as l
    return out


def build() -> dict[str, object]:
    """The table as it is written: ignorable ranges, word ranges, and target string -> all characters folding to it."""
    similar = _look_alikes()
    special = {"ß": "ss", "ẞ": "SS", "ø": "o", "Ø": "O", "đ": "d", "Đ": "D", "ł": "l", "Ł": "L", "æ": "ae", "Æ": "AE",
               "œ": "oe", "Œ": "OE", "ı": "i"}  # fmt: skip

    def base(char: str) -> str:
        return special.get(char) or similar.get(char) or char

    by_target: dict[str, list[str]] = defaultdict(list)
    ignorable: list[list[int]] = []
    word: list[list[int]] = []
    for code in range(128, sys.maxunicode):
        char = chr(code)
        if _ignorable(code):
            if ignorable and ignorable[-1][1] == code - 1:
                ignorable[-1][1] = code
            else:
                ignorable.append([code, code])
            continue
        category = unicodedata.category(char)
        folded = char
        if category == "Nd":
            folded = str(unicodedata.decimal(char))
        elif category.startswith("L") and not 0xAC00 <= code <= 0xD7A3:  # Hangul syllables stay whole
            parts = special.get(char) or unicodedata.normalize("NFKD", char)
            folded = "".join(base(part) for part in parts if not _ignorable(ord(part)))
            if not folded or not all(unicodedata.category(part).startswith("L") for part in folded):
                folded = base(char)
        if folded != char:
            by_target[folded].append(char)
    for code in range(sys.maxunicode):
        char = chr(code)
        if (char.isalnum() or char == "_") and not any(lo <= code <= hi for lo, hi in UNSPACED):
            if word and word[-1][1] == code - 1:
                word[-1][1] = code
            else:
                word.append([code, code])
    return {
        "version": 1,
        "unicode": unicodedata.unidata_version,
        "ignorable": ignorable,
        "word": word,
        "fold": {target: "".join(chars) for target, chars in sorted(by_target.items())},
    }


if __name__ == "__main__":
    TARGET.write_text(json.dumps(build(), ensure_ascii=True, separators=(",", ":")) + "\n")
