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
from datetime import datetime
from typing import TypeAlias, cast

from guardrails.findings import Action, AppliesTo, Finding, Mode
from streaming import stops
from streaming.gateway.channel import Channel
from streaming.gateway.gates import Gates
from streaming.gateway.known import Known
from streaming.gateway.loose_json import has_escapes, has_numbers, is_json, one_meaning
from streaming.gateway.measure import Pieces
from streaming.gateway.named import without_named
from streaming.gateway.names import is_count, spelled

Json: TypeAlias = dict[str, object]
Chunks: TypeAlias = list[Json]
Holder: TypeAlias = Json | list[object]
"""What a value stands in, by its name or its number there."""

MAX_DEPTH, MOST_INDEX = 40, 100_000
"""Deeper than this nothing is passed on; a number that is not below that says no place in a row."""
MAX_ARGUMENTS = 1_000_000
"""Characters of one call's arguments; more than that are a runaway model, and the answer is stopped."""


_SPELL_TEXT = frozenset(
    {"logprobs", "top_logprobs", "prompt_logprobs", "input_token_logprobs", "output_token_logprobs",
     "input_top_logprobs", "output_top_logprobs", "completion_probabilities", "token_ids", "prompt_token_ids",
     "input_ids", "output_ids", "tokens", "__verbose"}
)  # fmt: skip
"""Fields that say a text once more, token by token."""


_WORDS = frozenset(
    {"safe", "low", "medium", "high", "stop", "length", "tool_calls", "content_filter", "function_call", "error",
     "end_turn", "max_tokens", "stop_sequence", "tool_use", "pause_turn", "refusal", "load", "unload", "assistant",
     "default", "auto", "flex", "priority", "standard", "function", "text", "unknown", "completed", "in_progress",
     "incomplete", "reasoning.text", "reasoning.summary", "reasoning.encrypted", "openai-responses-v1",
     "azure-openai-responses-v1", "xai-responses-v1", "anthropic-claude-v1", "google-gemini-v1"}
)  # fmt: skip
"""Words that vendors say in the place of a number: degrees, reasons, kinds."""


SAYS_WHY = frozenset({"error", "message"})
"""Where the document of an error has its sentence."""


class WrongDialect(ValueError):
    """What an upstream sent is not the dialect that it was asked in."""


@dataclass(slots=True)
class Slot:
    """A place in a chunk where a channel's text goes. ``keep``: it stays there when there is none.

    ``was``: the arguments as the model wrote them, where it is those of a call; ``tool``: whose. ``parsed``: an object.
    """

    where: Holder
    key: str | int
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
    signed: list[tuple[Json, int]] = field(default_factory=list)
    """Objects with a signature, and the number of the block whose thoughts it is for."""

    @property
    def ready(self) -> bool:
        """Everything in it is decided."""
        return not any(channel.waiting for channel in (*self.needs, *self.ends))


class Walker(ABC):
    """Subclasses say the dialect. ``take`` a chunk, then send what ``drain`` says; take no more while ``busy``."""

    def __init__(self, gates: Gates) -> None:
        self.gates = gates
        self.deciding = gates.deciding
        """Something may be kept from the reader."""
        self.usage: dict[str, int] = {}
        self.stop_reason = ""
        """Why the first choice ended, as the upstream says and rules leave it."""
        self.model = ""
        self.finished = False
        self.known = Known(MAX_DEPTH, MOST_INDEX)
        self._first: dict[tuple[str | int, ...], str] = {}
        self._queue: deque[Waiting] = deque()
        self._late: dict[int, tuple[Channel, Callable[[str], Json]]] = {}

    @property
    def busy(self) -> bool:
        """Something waits for verdicts, and so does all that comes behind it."""
        return bool(self._queue)

    @property
    def said_all(self) -> bool:
        """Whether what is sent next can be a client's last line of the answer; some dialects have one behind it."""
        return False

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
                put(slot.where, slot.key, json.loads(text) if slot.parsed and is_json(text) else text)
            elif isinstance(slot.where, list):
                put(slot.where, slot.key, "")  # what stands behind it keeps its number
            else:
                slot.where.pop(str(slot.key), None)
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

    def comes_late(self, channel: Channel, say: Callable[[str], Json]) -> None:
        """A channel whose text may come later than the chunk that it stood in; ``say`` makes a chunk of it."""
        self._late[id(channel)] = (channel, say)

    def ended_for(self, said: object) -> None:
        """What the upstream says of why the first choice ended."""
        if isinstance(said, str) and said:
            self.stop_reason = said if stops.known(said) else stops.kept(self.gates.plain(said))

    # -- texts --------------------------------------------------------------------------------------------------

    def spells(self, name: str, value: object) -> bool:
        """Whether a field is left out because it says a text once more that may be kept from the reader."""
        return self.deciding and name in _SPELL_TEXT and isinstance(value, dict | list | str)

    def plain(self, value: object, depth: int = 0, *, name: str = "", failed: bool = False) -> object:
        """The value with all in it looked at: strings, names, and numbers but for counts. ``name``: the value's own.

        ``failed``: it is the document of an error, whose sentence is told although nobody is asked about it.
        """
        made = self._plain(value, depth, name, failed=failed)
        return self.by_name(made, name) if isinstance(made, dict | list) else made

    def field(self, name: str, value: object) -> object:
        """The same of a field that nobody here knows, whose name may say what its value is."""
        return self.by_name(self.plain(value, name=name), name)

    def _plain(self, value: object, depth: int, name: str, *, failed: bool) -> object:
        if depth > MAX_DEPTH:
            return None
        match value:
            case str(text):
                return self.gates.plain(text, asked=failed and name in SAYS_WHY)
            case dict(fields):
                return {
                    self.gates.plain(str(key)): self._plain(part, depth + 1, str(key), failed=failed)
                    for key, part in fields.items()
                    if not self.spells(str(key), part)
                }
            case list(items):
                return [self._plain(part, depth + 1, "", failed=failed) for part in items]
        return self._number(value, name)

    def by_name(self, value: object, name: str = "") -> object:
        """A value without what rules hide that go by the name of a field in it, or by ``name``, its own."""
        return without_named(self.gates, value, name) if self.deciding else value

    def _number(self, value: object, name: str | int) -> object:
        """A number, as text if something in it had to be hidden; what is none is as it was."""
        if isinstance(value, bool) or not isinstance(value, int | float) or is_count(name, value):
            return value
        said = spelled(value)
        shown = self.gates.plain(said)
        return value if shown == said else shown

    @staticmethod
    def fixed(text: str) -> bool:
        """Whether a text is a word that means the same wherever it stands, and never a piece of another."""
        return text in _WORDS or _is_time(text)

    def once(self, value: object, path: tuple[str | int, ...] = ()) -> object:
        """The same of what a stream says once, or the same each time: what it says first stands for all that follows.

        So that no text is said in pieces in the place of a name. Words of a fixed meaning may change.
        """
        if isinstance(value, dict) and self.deciding:
            value = {name: self.by_name(part, name) for name, part in value.items()}
        return self._once(value, path)

    def _once(self, value: object, path: tuple[str | int, ...]) -> object:
        if len(path) > MAX_DEPTH:
            return None
        match value:
            case str(text):
                shown = self.gates.plain(text)
                if not (self.deciding and text) or self.fixed(text):
                    return shown
                return self._first.setdefault(path, shown)
            case dict(fields):
                return {
                    name: self._once(part, (*path, name))
                    for name, part in fields.items()
                    if not self.spells(name, part)
                }
            case list(items):
                return [self._once(part, (*path, at)) for at, part in enumerate(items)]
        return self._number(value, path[-1] if path else "")

    def named(self, fields: Json) -> Json:
        """A chunk whose names of fields have been looked at, and the numbers that say which of a row something is."""
        return cast("Json", self._named(fields, 0))

    def _named(self, value: object, depth: int) -> object:
        if depth > MAX_DEPTH:
            return None
        if isinstance(value, list):
            return [self._named(part, depth + 1) for part in value]
        if not isinstance(value, dict):
            return value
        return {
            self.known.learn(str(name), self.gates.plain(str(name))): self.plain(part, depth)
            if name == "index" and index_of(part, -1) < 0
            else self._named(part, depth + 1)
            for name, part in value.items()
        }

    def collect(self, pieces: Pieces, text: str) -> None:
        """Keep a piece of a call until all of it is there; one too long stops the answer. Raises ``Endless``."""
        pieces.add(text)
        if pieces.chars > MAX_ARGUMENTS and self.gates.blocked is None:
            self.gates.block(_unfit("over_long_arguments"))

    def arguments(self, text: str) -> Channel:
        """Complete arguments of a call as they may be seen: JSON text with every string in it decoded and looked at.

        A number that had to be redacted is a string then. Where what is left is no JSON, the answer is stopped. What
        was none, or says a field twice, is decoded wherever it has quotes.
        """
        if len(text) > MAX_ARGUMENTS:
            self.gates.block(_unfit("over_long_arguments"))
            return self.gates.whole("", AppliesTo.TOOL_ARGUMENTS, "tool_arguments")
        value = one_meaning(text)
        if isinstance(value, dict | list):
            looked = self._arguments(value, 0)
            if looked != value or (has_escapes(text) and self.gates.must_ask(AppliesTo.TOOL_ARGUMENTS)):
                text = json.dumps(looked, ensure_ascii=False)
            if has_numbers(text) and self.gates.hides(text, AppliesTo.TOOL_ARGUMENTS):  # a rule goes by a field's name
                text = self.gates.decoded(text, again=True)
        elif text:
            text = self.gates.decoded(text)
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
        said = spelled(cast("int | float", value))
        shown = self._argument(said)
        return value if shown == said else shown

    def _argument(self, text: str) -> str:
        if len(text) < 3:
            return text
        return self.gates.plain(text, AppliesTo.TOOL_ARGUMENTS, "tool_arguments", asked=True)

    def still_json(self, said: str, was: str) -> bool:
        """Whether arguments are JSON if they were; else the answer is stopped."""
        if said == was or not is_json(was) or is_json(said):
            return True
        self.gates.block(_unfit("arguments_cut"))
        return False


def _unfit(rule: str) -> Finding:
    return Finding("gateway", "gateway", rule, "tool_arguments", 0, 0, Mode.BLOCK, Action.BLOCK, "tool_arguments")


def _is_time(text: str) -> bool:
    if not 19 <= len(text) <= 40:
        return False
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def put(holder: Holder, key: str | int, value: object) -> None:
    """Put a value where it belongs."""
    holder[key] = value  # type: ignore[index]  # names in objects, numbers in lists


def objects(value: object) -> list[Json]:
    """The objects of a list; of anything else none."""
    return [cast("Json", item) for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def index_of(value: object, default: int = 0) -> int:
    """An index as it was sent."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST_INDEX else default


def counts_in(usage: object) -> dict[str, int]:
    """The whole numbers of a usage object, for the record."""
    if not isinstance(usage, dict):
        return {}
    return {str(k): v for k, v in usage.items() if isinstance(v, int) and not isinstance(v, bool)}
