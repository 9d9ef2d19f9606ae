"""An answer of a dialect, walked: which strings of a chunk are whose text, and the chunk again with released text only.

Exists so that an answer of the very dialect that the client speaks passes with everything in it that is not text: ids,
usage, reasons, fields that are newer than this program. Protects the rule that no string of an upstream's answer is
sent that no gate has seen. Chunks keep their order: one that ends a channel waits until all of that channel is decided,
and what comes behind it waits with it. Pure: chunks go in, chunks come out.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias, cast

from guardrails.findings import Action, AppliesTo, Finding, Mode
from streaming.gateway.gates import Channel, Gates

Json: TypeAlias = dict[str, object]
Chunks: TypeAlias = list[Json]

MAX_DEPTH = 40
"""Deeper than this nothing is passed on."""
MAX_ARGUMENTS = 1_000_000
"""Characters of one call's arguments; more than that are a runaway model, and the answer is stopped."""


class WrongDialect(ValueError):
    """What an upstream sent is not the dialect that it was asked in."""


@dataclass(slots=True)
class Slot:
    """A place in a chunk where a channel's text goes. ``keep``: it stays there when there is none.

    ``was``: the arguments as the model wrote them, where it is those of a call; ``tool``: whose. ``parsed``: an object.
    """

    where: Json
    key: str
    channel: Channel
    keep: bool = False
    was: str | None = None
    tool: str = ""
    parsed: bool = False


@dataclass(slots=True)
class Waiting:
    """A chunk on its way out. ``needs``: channels that must be decided; ``ends``: those whose last text goes before."""

    chunk: Json
    slots: list[Slot] = field(default_factory=list)
    needs: list[Channel] = field(default_factory=list)
    ends: list[Channel] = field(default_factory=list)

    @property
    def ready(self) -> bool:
        """Everything in it is decided."""
        return not any(channel.waiting for channel in (*self.needs, *self.ends))


class Walker(ABC):
    """Subclasses say the dialect. ``take`` a chunk, then send what ``drain`` says; take no more while ``busy``."""

    def __init__(self, gates: Gates) -> None:
        self.gates = gates
        self.usage: dict[str, int] = {}
        self.model = ""
        self.finished = False
        self._queue: deque[Waiting] = deque()
        self._late: dict[int, tuple[Channel, Callable[[str], Json]]] = {}

    @property
    def busy(self) -> bool:
        """Something waits for verdicts, and so does all that comes behind it."""
        return bool(self._queue)

    @property
    @abstractmethod
    def complete(self) -> bool:
        """Whether the stream has said that the answer is over, by its terminator or choice by choice."""

    @abstractmethod
    def take(self, chunk: Json) -> None:
        """A chunk of a stream. Raises ``WrongDialect``."""

    @abstractmethod
    def finish(self) -> None:
        """The stream has ended as the dialect ends one, or without: what is complete is complete."""

    @abstractmethod
    def whole(self, document: Json) -> None:
        """An answer that is not streamed. Raises ``WrongDialect``."""

    @abstractmethod
    def begin(self, id_: str, model: str, created: int, *, streaming: bool) -> None:
        """What an answer is called for which nobody was asked. ``created``: seconds since 1970."""

    @abstractmethod
    def stopped(self, reason: str) -> Chunks:
        """How the dialect ends a stream that was stopped."""

    @abstractmethod
    def stopped_whole(self, document: Json | None, reason: str) -> Json:
        """How the dialect answers where the answer was stopped; None: nothing was asked."""

    def drain(self) -> Chunks:
        """What may be sent now, in order."""
        out: Chunks = []
        while self._queue and self._queue[0].ready:
            waiting = self._queue.popleft()
            for channel in waiting.ends:
                out += self._rest_of(channel)
            if not self._filled(waiting):
                continue
            chunk = waiting.chunk if self.gates.blocked is None else self._cut_short(waiting.chunk)
            if chunk is not None:
                out.append(chunk)
        if not self._queue or self.gates.blocked is not None:
            for channel, _ in list(self._late.values()):
                out += self._rest_of(channel)
        if self.gates.blocked is not None:
            self._queue.clear()
        return out

    @abstractmethod
    def _cut_short(self, chunk: Json) -> Json | None:
        """What is left of a chunk when the answer was stopped in it: what began, not that it ended."""

    def _filled(self, waiting: Waiting) -> bool:
        """Put the texts in; False when nothing is left of a chunk that was only text."""
        empty = False
        for slot in waiting.slots:
            text = slot.channel.take()
            if slot.was is not None:
                if not self.still_json(text, slot.was):
                    return False
                text = self.gates.restore_arguments(text, slot.tool)
            if text or slot.keep:
                slot.where[slot.key] = json.loads(text) if slot.parsed and _is_json(text) else text
            else:
                slot.where.pop(slot.key, None)
                empty = True
        return not (empty and self._void(waiting.chunk))

    def _void(self, chunk: Json) -> bool:
        """Whether a chunk without the text that it had says nothing any more."""
        return False

    def _rest_of(self, channel: Channel) -> Chunks:
        entry = self._late.get(id(channel))
        if entry is None or not channel.has_text:
            return []
        return [entry[1](channel.take())]

    def _streamed(self, channel: Channel, say: Callable[[str], Json]) -> None:
        """A channel whose text may come later than the chunk that it stood in; ``say`` makes a chunk of it."""
        self._late[id(channel)] = (channel, say)

    # -- texts --------------------------------------------------------------------------------------------------

    def plain(self, value: object, depth: int = 0, *, numbers: bool = False) -> object:
        """The value with every string in it looked at, names included. ``numbers``: those as well."""
        if depth > MAX_DEPTH:
            return None
        match value:
            case str(text):
                return self.gates.plain(text)
            case dict(fields):
                return {
                    self.gates.plain(str(name)): self.plain(part, depth + 1, numbers=numbers)
                    for name, part in fields.items()
                }
            case list(items):
                return [self.plain(part, depth + 1, numbers=numbers) for part in items]
            case bool() | None:
                return value
            case int() | float() if numbers:
                said = json.dumps(value)
                shown = self.gates.plain(said)
                return value if shown == said else shown
        return value

    def arguments(self, text: str) -> Channel:
        """Complete arguments of a call as they may be seen: JSON text with every string in it decoded and looked at.

        A number that had to be redacted is a string then. Where what is left is no JSON, the answer is stopped.
        """
        if len(text) > MAX_ARGUMENTS:
            self.gates.block(_unfit("over_long_arguments"))
            return self.gates.whole("", AppliesTo.TOOL_ARGUMENTS, "tool_arguments")
        try:
            value = json.loads(text) if text else None
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict | list):
            looked = self._arguments(value, 0)
            if looked != value:
                text = json.dumps(looked, ensure_ascii=False)
        return self.gates.whole(text, AppliesTo.TOOL_ARGUMENTS, "tool_arguments")

    def _arguments(self, value: object, depth: int) -> object:
        if depth > MAX_DEPTH:
            self.gates.block(_unfit("over_deep_arguments"))
            return None
        match value:
            case str(text):
                return self._argument(text)
            case dict(fields):
                return {self._argument(str(k)): self._arguments(part, depth + 1) for k, part in fields.items()}
            case list(items):
                return [self._arguments(part, depth + 1) for part in items]
            case bool() | None:
                return value
        said = json.dumps(value)
        shown = self._argument(said)
        return value if shown == said else shown

    def _argument(self, text: str) -> str:
        if len(text) < 3:
            return text
        return self.gates.plain(text, AppliesTo.TOOL_ARGUMENTS, "tool_arguments", asked=True)

    def still_json(self, said: str, was: str) -> bool:
        """Whether arguments are JSON if they were; else the answer is stopped."""
        if said == was or not _is_json(was) or _is_json(said):
            return True
        self.gates.block(_unfit("arguments_cut"))
        return False


def _unfit(rule: str) -> Finding:
    return Finding("gateway", "gateway", rule, "tool_arguments", 0, 0, Mode.BLOCK, Action.BLOCK, "tool_arguments")


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def objects(value: object) -> list[Json]:
    """The objects of a list; of anything else none."""
    return [cast("Json", item) for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def index_of(value: object, default: int = 0) -> int:
    """An index as it was sent."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 100_000 else default


def counts_in(usage: object) -> dict[str, int]:
    """The whole numbers of a usage object, for the record."""
    if not isinstance(usage, dict):
        return {}
    return {str(k): v for k, v in usage.items() if isinstance(v, int) and not isinstance(v, bool)}
