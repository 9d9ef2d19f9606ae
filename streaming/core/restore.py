"""Values back into an answer: behind the gate, one restorer a channel, in running text alone.

Exists because what a model says about ``MASK-MAIL-…`` has to reach the user as what it says about the user's own
address. Protects two rules: only what this very request brought comes back (``Masker.restored``), and it never comes
back into what a browser would fetch or follow (``places.py``), so that a document that makes a model write
``![](http://elsewhere/?q=<placeholder>)`` gets nothing out.

The gate goes first, always: its policy judges what the model wrote, the restorer puts in what the user wrote. What may
still become a placeholder is held by the same engine as everything else, from its one static rule, at most 31
characters; behind a placeholder the text is held until it is clear that it begins no address (``P.elsewhere.example``),
at most 128 characters, mostly one.

Sans-IO, and serialisable like the gate; the values themselves are never part of the state::

    restorer = Restorer(masker)                     # after all texts of the request went through ``masker.mask``
    shown = restorer.feed(released)                 # text that the channel's gate has released, placeholders of
    shown = restorer.finish()                       # redactions included; then the rest, when the channel ends
    restorer = Restorer.restore(masker, state)      # any process that has the request can go on

After a block, feed nothing more and do not call ``finish``: what is held then stays away. Tool arguments are JSON and
have a channel of their own (``arguments.py``).
"""

from __future__ import annotations

import json
from typing import NotRequired, TypedDict

from guardrails.findings import AppliesTo
from guardrails.masking import PLACEHOLDERS, Masker
from streaming.core.effects import FOUND, RELEASE, Effect
from streaming.core.gate import Gate
from streaming.core.places import Place, PlaceState, begins_address, run_goes_on
from streaming.core.snapshot import GateState, StateError

FORMAT = 1
_SLICE = 4_096  # characters looked at in one go
_MOST_PLACES, _LONGEST_HELD = 6, 128  # what one more channel may cost
_HIDDEN = "[X]"  # what may come to stand for a value, whatever it says: the brackets count


class RestorerState(TypedDict):
    """A restorer as JSON. ``waiting``: what stands behind the first placeholder that is not decided yet."""

    format: int
    tag: str
    gate: GateState
    raw: str
    place: PlaceState
    beside: NotRequired[list[PlaceState]]
    waiting: list[list[str]]


class Restorer:
    """Puts the values of one request back into one channel of its answer."""

    __slots__ = ("_around", "_beside", "_gate", "_masker", "_place", "_raw", "_waiting")

    def __init__(self, masker: Masker, *, one_value: bool = False, around: Place | None = None) -> None:
        """``one_value``: a program reads the channel's text as one value (``Place``).

        ``around``: the place in JSON of which this text is a string, and which may be shown as it is. It reads along,
        in the spelling of JSON; no value comes back where markup is open there.
        """
        self._masker = masker
        self._around = around
        self._gate = Gate(PLACEHOLDERS, AppliesTo.RESPONSE)
        self._raw = ""  # read by the gate and not settled by it
        self._place = Place(one_value=one_value)
        self._beside: list[Place] = []  # where this stands as well, for a reader who saw other channels before it
        # Pairs of (text as the model wrote it, value or empty). The first is a placeholder, and undecided.
        self._waiting: list[tuple[str, str]] = []

    def feed(self, text: str) -> str:
        """More text that was released. Returns what can be shown now."""
        if not len(self._masker):
            return text
        out: list[str] = []
        for at in range(0, len(text), _SLICE):
            part = text[at : at + _SLICE]
            self._raw += part
            out.append(self._take(self._gate.feed(part)))
        return "".join(out)

    def finish(self) -> str:
        """The channel has ended. Returns the rest."""
        if not len(self._masker):
            return ""
        return self._take(self._gate.finish()) + self._decided(over=True)

    def follow(self, former: Restorer) -> None:
        """Go on where another channel has ended: what a reader sees joined, an address or a tag may stand across.

        Call it before the first ``feed``. A channel that has been fed nothing is copied as often as one likes.
        """
        self._place = _copied(former._place)
        self._beside = [_copied(place) for place in former._beside]

    def stand_behind(self, former: Restorer | None, held: str, *, again: bool = False) -> bool:
        """Go on behind a channel that may not have ended. False: it is not clear where that stands, nothing is done.

        ``former``: None where it has been given up. ``held``: text of it that may come to be shown or not. ``again``:
        this one has been fed before, and stands behind that as well. Values come back only where none of the places
        forbids it.
        """
        if former is None or (places := former._open_places(held)) is None:
            return False
        kept: list[Place] = []
        for place in ([self._place, *self._beside] if again else []) + places:
            if all(place.state() != other.state() for other in kept):
                kept.append(place)
        if len(kept) > _MOST_PLACES:
            return False
        self._place, *self._beside = kept
        return True

    def _open_places(self, held: str) -> list[Place] | None:
        """Where another channel may begin now; None where what is held may open or close something."""
        if self._waiting or len(held) > _LONGEST_HELD:
            return None
        places = [_copied(place) for place in (self._place, *self._beside)]
        if text := self._raw + held:
            for place in places[:]:
                further = _copied(place)
                for char in text:
                    further.read(char)
                    if not further.running_text:
                        return None
                places.append(further)
        if held:  # of which something may be hidden, and then a word in brackets stands there
            for place in places[: len(places) // 2]:
                further = _copied(place)
                further.read(_HIDDEN)
                places.append(further)
        return places

    def given_up(self) -> str:
        """What is held, as it was fed, where nothing comes back any more. Feed nothing behind it."""
        text = "".join(written for written, _ in self._waiting) + self._raw
        self._waiting, self._raw = [], ""
        return text

    def begin_behind(self, text: str) -> None:
        """Begin where ``text`` ends, which a reader sees right before this channel's. Call it before ``follow``."""
        self._place.read(text)

    @property
    def held(self) -> int:
        """Characters that were fed and not shown yet, as the model wrote them."""
        return len(self._raw) + sum(len(written) for written, _ in self._waiting)

    def _take(self, effects: list[Effect]) -> str:
        out: list[str] = []
        for effect in effects:
            if effect[0] == RELEASE:
                self._raw = self._raw[len(effect[1]) :]
                out.append(self._plain(effect[1]))
            elif effect[0] == FOUND:
                length = effect[1].end - effect[1].start
                written, self._raw = self._raw[:length], self._raw[length:]
                value = self._masker.restored(written)
                if value is None:
                    out.append(self._plain(written))
                else:
                    self._waiting.append((written, value))
                    out.append(self._decided())
        return "".join(out)

    def _plain(self, text: str) -> str:
        """Text that is no placeholder of ours."""
        if not self._waiting:
            self._read(text)
            return text
        at = 0
        while at < len(text) and run_goes_on(text[at]):
            at += 1
        if at:
            self._waiting.append((text[:at], ""))
        out = self._decided(over=at < len(text))
        if at == len(text):
            return out
        self._read(text[at:])
        return out + text[at:]

    def _decided(self, *, over: bool = False) -> str:
        """What waits no longer. ``over``: nothing stands behind it that an address could go on with.

        One after the other: what is decided about a placeholder depends on all of the run behind it, of which those
        further on may still have to see more.
        """
        out: list[str] = []
        while self._waiting:
            written, value = self._waiting[0]
            if value:
                begins = begins_address("".join(text for text, _ in self._waiting[1:]))
                if not (begins or over):
                    break
                if not begins and self._running_text:
                    for place in (self._place, *self._beside):
                        place.read_value(value)
                    if self._around is not None:
                        self._around.read_value(_spelled(value))
                    self._masker.put_back += 1
                    written = value
                else:
                    self._read(written)
            else:
                self._read(written)
            out.append(written)
            del self._waiting[0]
        return "".join(out)

    @property
    def _running_text(self) -> bool:
        running = self._place.running_text and all(place.running_text for place in self._beside)
        return running and (self._around is None or not self._around.within_markup)

    def _read(self, text: str) -> None:
        self._place.read(text)
        for place in self._beside:
            place.read(text)
        if self._around is not None:
            self._around.read(_spelled(text))

    def state(self) -> RestorerState:
        """The state as JSON-able data, without any value."""
        return {
            "format": FORMAT,
            "tag": self._masker.tag,
            "gate": self._gate.state(),
            "raw": self._raw,
            "place": self._place.state(),
            "beside": [place.state() for place in self._beside],
            "waiting": [[written, "placeholder" if value else ""] for written, value in self._waiting],
        }

    @classmethod
    def restore(cls, masker: Masker, state: RestorerState) -> Restorer:
        """A restorer that goes on where ``state`` was taken.

        ``masker`` must hold the same request's values again. Raises ``StateError`` if it is of another conversation.
        """
        if state.get("format") != FORMAT:
            raise StateError(f"state format {state.get('format')!r} is not {FORMAT}")
        if state.get("tag") != masker.tag:
            raise StateError("state belongs to another conversation")
        restorer = cls(masker)
        restorer._gate = Gate.restore(PLACEHOLDERS, state["gate"])
        restorer._raw = state["raw"]
        restorer._place = Place.restore(state["place"])
        restorer._beside = [Place.restore(place) for place in state.get("beside", [])]
        restorer._waiting = [
            (written, (masker.restored(written) or "") if sort else "") for written, sort in state["waiting"]
        ]
        return restorer


def _copied(place: Place) -> Place:
    return Place.restore(place.state())


def _spelled(text: str) -> str:
    """A part of a string as JSON writes it: a line end in it ends no line of what is shown."""
    return json.dumps(text, ensure_ascii=False)[1:-1]
