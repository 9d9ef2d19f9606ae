"""Sentence ends as a function of the text, never of its chunks.

Unicode Standard Annex #29 (through uniseg) needs to see what follows: ``He said etc. `` ends a sentence, ``He said
etc. and left.`` does not. An end therefore counts when the segmenter keeps it with the next letter visible, or when
``LOOK_AHEAD`` characters follow it, or when the text ends. A sentence is at most ``limit`` characters.
"""

from __future__ import annotations

import functools
import re

from uniseg.sentencebreak import SentenceBreak, sentence_boundaries, sentence_break

LOOK_AHEAD = 64
_BEFORE = 16  # characters before a terminator that the segmenter is shown: it looks at one or two letters
_MAY_END = re.compile(r"[.?!\r\n]|[^\x00-\x7f]")
_LETTER = re.compile(r"[^\W\d_]")
_ENDING = frozenset({SentenceBreak.STERM, SentenceBreak.ATERM, SentenceBreak.SEP, SentenceBreak.CR, SentenceBreak.LF})


@functools.lru_cache(maxsize=4096)
def _ends(char: str) -> bool:
    """May a sentence end behind this character? (Sentence_Break property, UAX #29.)"""
    return sentence_break(char) in _ENDING


class SentenceCutter:
    """Takes text as it comes and gives the ends of the sentences that have certainly ended.

    Offsets are code points of the original text. The state is the unfinished tail, at most ``limit`` plus
    ``LOOK_AHEAD`` characters and one chunk.
    """

    __slots__ = ("_limit", "_seen", "start", "tail")

    def __init__(self, limit: int, *, start: int = 0, tail: str = "") -> None:
        self._limit = limit
        self.tail = tail  # the unfinished sentence and what was read ahead of its end
        self.start = start  # offset of the unfinished sentence
        self._seen = 0  # terminators before this offset of the tail end nothing

    def feed(self, text: str) -> list[tuple[int, str]]:
        """More text; returns (offset, text) of every sentence that has certainly ended."""
        out: list[tuple[int, str]] = []
        # one decision window at a time, so that the same text gives the same sentences in any chunks
        step = self._limit + LOOK_AHEAD
        at = 0
        while at < len(text):
            room = max(1, step - len(self.tail))
            self.tail += text[at : at + room]
            at += room
            while (end := self._certain_end()) > 0:
                out.append(self._cut(end))
        return out

    def finish(self) -> list[tuple[int, str]]:
        """The text has ended: every sentence that is left."""
        out: list[tuple[int, str]] = []
        while self.tail:
            ends = [int(end) for end in sentence_boundaries(self.tail) if end > 0]
            end = min(ends[0] if ends else len(self.tail), self._limit)
            out.append(self._cut(end))
        return out

    def _cut(self, end: int) -> tuple[int, str]:
        sentence = (self.start, self.tail[:end])
        self.start += end
        self.tail = self.tail[end:]
        self._seen = 0
        return sentence

    def _certain_end(self) -> int:
        """The first end that no further text can take back, or 0."""
        tail = self.tail
        while (found := _MAY_END.search(tail, self._seen)) is not None:
            at = found.start()
            if not _ends(tail[at]):
                self._seen = at + 1
                continue
            letter = _LETTER.search(tail, at + 1, at + 1 + LOOK_AHEAD)
            # the segmenter is slow (50 µs a character): show it no more than what decides
            low, high = max(0, at - _BEFORE), letter.end() + 1 if letter else at + 2 + LOOK_AHEAD
            window = tail[low:high]
            end = next((low + int(end) for end in sentence_boundaries(window) if low + end > at), 0)
            if end < low + len(window):
                return end if end <= self._limit and self._is_certain(tail, end) else self._overlong()
            if letter is None:
                break  # nothing but blanks and marks behind it: still open
            self._seen = at + 1  # a letter is visible and the sentence goes on: this is no end for good
        return self._overlong()

    @staticmethod
    def _is_certain(tail: str, end: int) -> bool:
        ahead = tail[end : end + LOOK_AHEAD]
        return len(ahead) >= LOOK_AHEAD or _LETTER.search(ahead) is not None

    def _overlong(self) -> int:
        return self._limit if len(self.tail) >= self._limit + LOOK_AHEAD else 0
