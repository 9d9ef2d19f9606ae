"""Sentence ends against the segmenter run over all of the visible text, and for every way of cutting."""

from __future__ import annotations

import random

import pytest
from uniseg.sentencebreak import sentence_boundaries

from streaming.core.sentences import LOOK_AHEAD, SentenceCutter

PIECES = [
    *("One. ", "Two! ", "He said etc. and left. ", "3.14 is pi. ", "Mr. Smith ", "U.S. law ", "ok?) ", "\n", "\r\n"),
    *("…", "。日本。", "word ", "1 2 3 ", "\u0301", "\u200b", '"Quote." ', "end.", "A.", " b", "??? ", "--- "),
    *("Ünder. über. ", "'s. ", ". . . "),
]


def slow(text: str, limit: int) -> list[tuple[int, str]]:
    """What the cutter promises, character by character, with the segmenter over the whole tail every time."""
    out, start, tail = [], 0, ""

    def certain() -> int:
        for end in sentence_boundaries(tail):
            if 0 < end < len(tail) and end <= limit:
                ahead = tail[end : end + LOOK_AHEAD]
                return end if len(ahead) >= LOOK_AHEAD or any(map(str.isalpha, ahead)) else 0
        return limit if len(tail) >= limit + LOOK_AHEAD else 0

    for char in text:
        tail += char
        while (end := certain()) > 0:
            out.append((start, tail[:end]))
            start, tail = start + end, tail[end:]
    while tail:
        end = min([*(e for e in sentence_boundaries(tail) if e > 0), len(tail)][0], limit)
        out.append((start, tail[:end]))
        start, tail = start + end, tail[end:]
    return out


def cut(chunks: list[str], limit: int) -> list[tuple[int, str]]:
    cutter = SentenceCutter(limit)
    return [sentence for chunk in chunks for sentence in cutter.feed(chunk)] + cutter.finish()


def test_it_works() -> None:
    assert cut(["One. T", "wo"], 600) == [(0, "One. "), (5, "Two")]


@pytest.mark.parametrize("seed", range(60))
def test_the_same_as_the_segmenter_over_everything(seed: int) -> None:
    chance = random.Random(seed)
    text = "".join(chance.choice(PIECES) for _ in range(chance.randint(1, 7)))
    limit = chance.choice([12, 600])
    want = slow(text, limit)
    assert "".join(sentence for _, sentence in want) == text
    assert cut([text], limit) == want
    assert cut(list(text), limit) == want
    at = chance.randint(0, len(text))
    assert cut([text[:at], text[at:]], limit) == want
