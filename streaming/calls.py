"""Tool calls as a model writes them: gathered from their pieces, numbered, and read.

Exists apart from the running of tools so that what a model may write is bounded in one place. Protects three rules.
What is collected of a call ends where it is too long to be made: an answer may go on writing arguments, they are not
kept. What goes back to a model of its own call is something that every vendor takes: an object, and a name of the form
that names have. And the id that an endpoint gives a call, in which anything can stand, goes back to a model and nowhere
else: readers and the record know a call by a number of ours. Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from streaming.core.events import ToolCallDelta
from streaming.core.gate import Hold
from streaming.tools.base import ToolError

MAX_CALLS = 64
"""More calls than this in one answer are a runaway model; the rest is dropped, and told."""
MAX_NAME_CHARS = 200
"""A call's id is cut there. A name that is longer is nobody's, and not shown: a cut could hide what a value is."""
NAME_WITHHELD = "name_withheld"
"""Stands for a name that may not be shown; of the form that every provider takes back."""
SENT_NAME_CHARS = 64
"""The longest that every provider takes back."""
NAMELESS = "nameless"
"""Stands for a name of no characters where one has to be sent."""
MAX_ARGUMENT_CHARS = 256_000
MAX_DEPTH = 32


@dataclass(slots=True)
class Call:
    """One tool call: ``wanted``, ``arguments`` as the model wrote them, ``name``, ``run`` as the guardrails left them.

    ``id`` is ours, ``sent_id`` the one that a model knows the call by. ``held``: what waits for guardrails now, with
    its channel. ``told``: a reader knows of the call. ``offered``: there is a tool of that name.
    """

    id: str = ""
    sent_id: str = ""
    wanted: str = ""
    name: str = ""
    pieces: list[str] = field(default_factory=list)
    chars: int = 0
    offered: bool = False
    ran_by_provider: bool = False
    run: str = ""
    result: str = ""
    failed: bool = False
    over: bool = False
    told: bool = False
    held: tuple[str, Hold] | None = None

    @property
    def arguments(self) -> str:
        """JSON text; a call without any means an empty object."""
        return "".join(self.pieces) or "{}"

    @property
    def sendable(self) -> str:
        """What passed the guardrails, as a model can be shown it: an object, whatever was written."""
        try:
            parsed(self.run)
        except ToolError:
            return "{}"
        return self.run

    @property
    def sent_name(self) -> str:
        """The name as a model is told it: vendors refuse a whole request for a name that is not of their form."""
        return self.name if self.offered else re.sub(r"[^a-zA-Z0-9_-]", "_", self.name)[:SENT_NAME_CHARS] or NAMELESS

    def add(self, arguments: str) -> None:
        """The next piece of its arguments; no more is kept than tells that they are too long."""
        if arguments and self.chars <= MAX_ARGUMENT_CHARS:
            kept = arguments[: MAX_ARGUMENT_CHARS + 1 - self.chars]
            self.pieces.append(kept)
            self.chars += len(kept)

    def refuse(self, why: str) -> None:
        """It is not made."""
        self.result, self.failed, self.over = why, True, True

    def record(self) -> dict[str, object]:
        """The call as it is stored beside the message: what a reader was shown of it."""
        shown: dict[str, object] = {"id": self.id, "name": self.name, "arguments": self.run}
        return {**shown, "error" if self.failed else "result": self.result}


class ToolCalls:
    """``take`` pieces while a round streams; ``round`` hands over what it asked for and begins the next."""

    __slots__ = ("_open", "made")

    def __init__(self) -> None:
        self._open: dict[tuple[int, int], Call] = {}
        self.made: list[Call] = []

    def take(self, piece: ToolCallDelta) -> bool:
        """Add a piece to its call; False: it is of one call too many."""
        key = (piece.choice, piece.index)
        if key not in self._open and len(self.made) + len(self._open) >= MAX_CALLS:
            return False
        call = self._open.setdefault(key, Call())
        call.sent_id = call.sent_id or piece.id[:MAX_NAME_CHARS]
        call.wanted = call.wanted or piece.name[: MAX_NAME_CHARS + 1]  # one more tells that it was too long
        call.add(piece.arguments)
        call.ran_by_provider = call.ran_by_provider or piece.ran_by_provider
        return True

    def answered(self, sent_id: str) -> Call | None:
        """The call that the provider ran and now has answered; None: it is one call too many.

        It is complete then, and its round need not be over. One that nobody asked for is a call without arguments.
        """
        for key, call in self._open.items():
            if call.ran_by_provider and call.sent_id == sent_id:
                del self._open[key]
                return self._closed(call)
        for call in self.made:
            if call.ran_by_provider and call.sent_id == sent_id and call.told and not call.over:
                call.over = True
                return call
        if len(self.made) + len(self._open) >= MAX_CALLS:
            return None
        return self._closed(Call(sent_id=sent_id, ran_by_provider=True))

    def end(self) -> None:
        """The answer is over: calls that were not complete are nothing that was asked for."""
        self._open.clear()

    def _closed(self, call: Call) -> Call:
        self._number([call])
        call.over = True
        return call

    def round(self) -> list[Call]:
        """The calls of the round that is over, in order, each with ids of its own."""
        calls = list(self._open.values())
        self._open.clear()
        self._number(calls)
        return calls

    def _number(self, calls: Sequence[Call]) -> None:
        """Put them on record, under ids that no other call has, here and where they are sent."""
        taken = {call.sent_id for call in self.made}
        for call in calls:
            number = len(self.made) + 1
            call.id = f"call_{number}"
            while not call.sent_id or call.sent_id in taken:
                call.sent_id = f"call_{number}"
                number += 1
            taken.add(call.sent_id)
            self.made.append(call)


def too_long(arguments: str) -> str:
    """Why such arguments are neither looked at nor shown; empty: they are."""
    if len(arguments) <= MAX_ARGUMENT_CHARS:
        return ""
    return f"the arguments are too long: at most {MAX_ARGUMENT_CHARS:,} characters are taken"


def parsed(arguments: str) -> dict[str, object]:
    """The arguments as an object. Raises ``ToolError``."""
    if why := too_long(arguments):
        raise ToolError(why)
    try:
        found = json.loads(arguments, parse_constant=_no_constant)
    except RecursionError:
        raise ToolError(f"the arguments are nested deeper than {MAX_DEPTH} levels") from None
    except ValueError:
        raise ToolError("the arguments are not JSON") from None
    if not isinstance(found, dict):
        raise ToolError("the arguments are not a JSON object")
    if _deeper_than(found, MAX_DEPTH):
        raise ToolError(f"the arguments are nested deeper than {MAX_DEPTH} levels")
    return found


def _no_constant(word: str) -> object:
    raise ValueError(f"{word} is no JSON")


def _deeper_than(value: object, most: int) -> bool:
    level: list[object] = [value]
    for _ in range(most):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return any(isinstance(item, dict | list) for item in level)
