"""The parts of one choice's text as readers put them together, read along as they are sent.

Exists because parts may interleave, and readers differ: some show a part by itself, some join parts by their number,
some join what comes as it comes. Protects the rule that a value that was put back stands in running text for each of
them. What is sent before a value is read as it was sent, and where one of the three finds an address or markup open
there, the placeholder is sent in its place. What a part says when values stand in parts with a higher number is sent up
to the last sign behind which nothing is open; what is left when it ends is sent only as it opens nothing. Pure.
"""

from __future__ import annotations

from bisect import bisect, insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain

from streaming.core.places import Place
from streaming.gateway.channel import Channel, Said

_MOST_PLACES, _MOST_HELD, _MOST_UNSETTLED = 6, 256, 32
"""What one part may cost, and how many may have left something open in front of parts that were there before."""


@dataclass(slots=True, eq=False)
class _Part:
    """``key``: its place among parts, by their number; none where it has no number.

    ``places``: where it stands, behind the part before it, in whatever ways that may be read, and by itself.
    """

    channel: Channel
    places: list[Place]
    key: tuple[int, int] | None
    unread: int = 0
    begun: bool = False
    lost: bool = False
    """It stands in too many places to follow."""
    blank: bool = False
    """It has said a blank before any value."""
    valued: bool = False
    held: list[Said] = field(default_factory=list)

    @property
    def settled(self) -> bool:
        return not self.lost and all(place.settled for place in self.places)


class Joined:
    """``add`` each channel as it comes; what ``passed`` returns may be sent now, and is taken for sent."""

    def __init__(self) -> None:
        self._parts: dict[Channel, _Part] = {}
        self._arrival: Place | None = None
        self._begun: list[tuple[tuple[int, int], _Part]] = []
        self._unsettled: set[_Part] = set()
        self._lost = False
        self._valued = self._last = (-1, -1)

    def add(self, channel: Channel, number: int) -> None:
        """A channel that is new, and stands behind nothing yet. ``number``: the part's; below 0: it has none."""
        assert channel.restorer is not None
        channel.restorer.put_in = []
        key = None if number < 0 else (number, len(self._parts))
        self._parts[channel] = _Part(channel, [channel.restorer.place], key)
        channel.passing = self.passed
        if len(self._parts) == 2:
            self._begin()

    def _begin(self) -> None:
        """Until now there was one, whose restorer has read along."""
        first = next(iter(self._parts.values()))
        assert first.channel.restorer is not None
        self._arrival, first.places = first.channel.restorer.place, [first.channel.restorer.place]
        first.unread = sum(map(len, first.channel.parts))
        if first.channel.sent or first.unread:
            self._come(first)

    def passed(self, channel: Channel, said: list[Said]) -> str:
        """What may be sent of what a channel has released, and of what was held of it."""
        part = self._parts[channel]
        before = ""
        while said and (self._arrival is None or part.unread):
            text, written = said.pop(0)
            if self._arrival is not None and part.unread < len(text):
                said.insert(0, (text[part.unread :], written))
                text = text[: part.unread]
            before += text
            part.unread = max(0, part.unread - len(text))
            self._note(part, text, written)
        said, part.held = part.held + said, []
        if not said:
            return before
        if not part.begun:
            self._come(part)
        if part.key is not None and self._valued > part.key:
            return before + self._late(part, said)
        shown = before + "".join(self._read(part, one) for one in said)
        self._settle(part)
        return shown

    def _come(self, part: _Part) -> None:
        """It says something for the first time: it stands behind the part before it as that has been sent."""
        part.begun = True
        if part.key is None:
            return
        at = bisect(self._begun, part.key, key=lambda one: one[0])
        if at:
            former = self._begun[at - 1][1]
            part.lost = former.lost
            part.places = [*(place.copy() for place in former.places), Place()]
        insort(self._begun, (part.key, part), key=lambda one: one[0])
        self._last = max(self._last, part.key)

    def _read(self, part: _Part, one: Said) -> str:
        text, written = one
        if written and not self._running(part):
            text, written = written, ""
        for place in self._read_in(part):
            (place.read_value if written else place.read)(text)
        self._note(part, text, written)
        return text

    def _note(self, part: _Part, text: str, written: str) -> None:
        if written:
            part.valued = True
            if part.key is not None:
                self._valued = max(self._valued, part.key)
        elif not (part.blank or part.valued):
            part.blank = any(map(str.isspace, text))

    def _read_in(self, part: _Part) -> Iterator[Place]:
        if self._arrival is not None:
            yield self._arrival
        yield from part.places

    def _running(self, part: _Part) -> bool:
        if part.lost or not all(place.running_text for place in self._read_in(part)):
            return False
        key = part.key
        return key is None or not (
            self._lost or any(other.key is not None and other.key < key for other in self._unsettled)
        )

    def _settle(self, part: _Part) -> None:
        """How it stands now, for those behind it that were there before."""
        kept = part.places
        if len(kept) > 1:
            made = [Place() if place.settled else place for place in kept]
            kept = [one for at, one in enumerate(made) if all(one.state() != other.state() for other in made[:at])]
        part.places, part.lost = kept[:_MOST_PLACES], part.lost or len(kept) > _MOST_PLACES
        if part.key is None or part.key >= self._last or part.settled:
            self._unsettled.discard(part)
        elif len(self._unsettled) < _MOST_UNSETTLED:
            self._unsettled.add(part)
        else:
            self._lost = True

    def _late(self, part: _Part, said: list[Said]) -> str:
        """More of one that has values behind it."""
        shown, since = "", ""
        pieces = list(chain.from_iterable(map(_words, said)))
        done, kept = 0, self._kept(part)
        part.channel.holding = False
        for number, piece in enumerate(pieces, 1):
            since += self._read(part, piece)
            if part.settled:
                shown, since, done, kept = shown + since, "", number, self._kept(part)
        if not since:
            return shown
        self._back(part, kept)
        part.held = pieces[done:]
        if not (part.channel.over or sum(len(text) for text, _ in part.held) > _MOST_HELD):
            part.channel.holding = True
            return shown
        rest, part.held = part.held, []
        return shown + self._closed(part, rest)

    def _closed(self, part: _Part, said: list[Said]) -> str:
        """It as it opens nothing, if it can be said so."""
        kept = self._kept(part)
        for made in (said, [*said, _END], [*((text.replace("<", "&lt;"), written) for text, written in said), _END]):
            shown = "".join(self._read(part, one) for one in made)
            if part.settled or (made is said and self._harmless(part)):
                return shown
            self._back(part, kept)
        return ""

    def _harmless(self, part: _Part) -> bool:
        """Whether it leaves at most a word open, which ends with the next blank, and that one is there."""
        if part.lost or part.key is None or not all(place.within_word for place in part.places):
            return False
        at = bisect(self._begun, part.key, key=lambda one: one[0])
        return at < len(self._begun) and self._begun[at][1].blank

    def _kept(self, part: _Part) -> tuple[Place | None, list[Place]]:
        arrival = self._arrival
        return None if arrival is None else arrival.copy(), [place.copy() for place in part.places]

    def _back(self, part: _Part, kept: tuple[Place | None, list[Place]]) -> None:
        arrival, places = kept
        self._arrival = None if arrival is None else arrival.copy()
        part.places = [place.copy() for place in places]


_END: Said = ("\n\n", "")


def _words(said: Said) -> Iterator[Said]:
    """A text in pieces, each of which ends with a blank; a value in one."""
    text, written = said
    at = 0
    if not written:
        for number, char in enumerate(text, 1):
            if char in " \t\n\r\f\v":
                yield text[at:number], ""
                at = number
    if at < len(text):
        yield text[at:], written
