"""Sentence ends as a function of the text, never of its chunks.

Unicode Standard Annex #29 (through uniseg) needs to see what follows: ``He said etc. `` ends a sentence, ``He said
etc. and left.`` does not. An end therefore counts when the segmenter keeps it with the next letter visible, or when
``LOOK_AHEAD`` characters follow it, or when the text ends. A sentence is at most ``limit`` characters.
"""

from __future__ import annotations

from uniseg.sentencebreak import sentence_boundaries

LOOK_AHEAD = 64


class SentenceCutter:
    """Takes text as it comes and gives the ends of the sentences that have certainly ended.

    Offsets are code points of the original text. The state is the unfinished tail, at most ``limit`` plus
    ``LOOK_AHEAD`` characters and one chunk.
    """

    __slots__ = ("_limit", "start", "tail")

    def __init__(self, limit: int, *, start: int = 0, tail: str = "") -> None:
        self._limit = limit
        self.tail = tail  # the unfinished sentence and what was read ahead of its end
        self.start = start  # offset of the unfinished sentence

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
        return sentence

    def _certain_end(self) -> int:
        """The first end that no further text can take back, or 0."""
        tail = self.tail
        if len(tail) < 2:
            return 0
        for end in map(int, sentence_boundaries(tail)):
            if 0 < end < len(tail) and end <= self._limit:
                ahead = tail[end : end + LOOK_AHEAD]
                if len(ahead) >= LOOK_AHEAD or any(map(str.isalpha, ahead)):
                    return end
                return 0
        return self._limit if len(tail) >= self._limit + LOOK_AHEAD else 0
