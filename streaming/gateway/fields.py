"""Fields of an answer that nobody here knows: each string in one is a text with a gate of its own.

Exists because a server may say what its model says in a field that is newer than this program, a piece in each chunk.
Protects the rule that such a text is looked at as the one text that it is, wherever its pieces are cut, and that a
field which only says the same again in every chunk stays what it is: it is looked at once, and shown when all of it may
be.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from guardrails.findings import AppliesTo
from streaming.gateway.channel import Channel
from streaming.gateway.gates import Key
from streaming.gateway.walker import Holder, Json, Slot, Waiting, Walker, index_of, put

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Spot:
    """Where such fields stand. ``key``: of what in the answer they are; ``waiting``: the chunk that they came in.

    ``open``: takes channels that have to be finished; ``say``: makes a chunk of fields that come later than theirs did.
    ``steady``: the same text again is the same field again, and not more of it.
    """

    key: Key
    waiting: Waiting
    open: list[Channel]
    say: Callable[[Json], Json]
    steady: bool = False


@dataclass(slots=True)
class _Steady:
    """What a field has said each time so far, and how often that was left out because some of it was held."""

    text: str
    left_out: int = 0
    varied: bool = False


class Fields:
    """The fields of one answer. ``put`` each into the chunk that is sent."""

    def __init__(self, walker: Walker) -> None:
        self._walker = walker
        self._steady: dict[Key, _Steady] = {}

    def put(self, out: Holder, name: str | int, value: object, path: Path, spot: Spot) -> None:
        """Put a field's value where it belongs in a chunk, text only so far as it is released."""
        if len(path) == 1:
            value = self._walker.by_name(value, str(name))
        match value:
            case str(text):
                self._said(out, name, text, path, spot)
            case dict(fields):
                inner: Json = {}
                put(out, name, inner)
                for key, part in fields.items():
                    if not self._walker.spells(str(key), part):
                        self.put(inner, str(key), part, (*path, str(key)), spot)
            case list(items):
                made: list[object] = [None] * len(items)
                put(out, name, made)
                for position, item in enumerate(items):
                    at = index_of(item.get("index"), position) if isinstance(item, dict) else position
                    self.put(made, position, item, (*path, at), spot)
            case _:
                put(out, name, value if name == "index" else self._walker.plain(value, name=str(name)))

    def _said(self, out: Holder, name: str | int, text: str, path: Path, spot: Spot) -> None:
        key = ("field", *spot.key, path)
        gates = self._walker.gates
        channel = gates.channel(key, AppliesTo.RESPONSE, "field", kept=True)
        put(out, name, "")
        if channel.ended and not self._walker.deciding:  # the answer is over, and nothing is kept from anybody
            put(out, name, self._walker.plain(text))
            return
        if spot.steady:
            said = self._steady.get(key)
            if said is None:
                said = self._steady[key] = _Steady(text)
            elif text == said.text and not said.varied:
                if channel.shown_as_it_came:
                    put(out, name, text)
                    return
                said.left_out += 1
                if isinstance(out, dict):
                    del out[str(name)]
                return
            elif not said.varied:  # it is said in pieces, and the first ones were alike
                said.varied = True
                gates.feed(channel, said.text * said.left_out)
            channel.entire = not said.varied
        gates.feed(channel, text)
        if channel not in spot.open:
            spot.open.append(channel)
            self._walker.comes_late(channel, lambda more: spot.say(_nested(path, more)))
        spot.waiting.slots.append(Slot(out, name, channel, keep=not text))


def _nested(path: Path, text: str) -> Json:
    """The text in fields as its path names them."""
    value: object = text
    for part in reversed(path[1:]):
        value = {part: value} if isinstance(part, str) else [value]
    return {str(path[0]): value}
