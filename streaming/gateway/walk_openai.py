"""The chat-completions dialect, walked.

Exists because this dialect says text in a dozen places, and compatible servers in more. Protects the rule that what is
not known is a text with a gate of its own: every string in a delta that is not an identifier. A call's arguments are
held until they are complete, because only then can they be read as what they are; log probabilities, which spell the
text once more, sound and pictures are left out wherever something may be kept from the reader.
"""

from __future__ import annotations

import json
import math
from typing import cast

from guardrails.findings import AppliesTo
from streaming.gateway.channel import Channel
from streaming.gateway.fields import Fields, Spot
from streaming.gateway.gates import Gates
from streaming.gateway.measure import Measure, Pieces, numbered
from streaming.gateway.media import sort_of
from streaming.gateway.walker import (
    Chunks,
    Holder,
    Json,
    Slot,
    Waiting,
    Walker,
    WrongDialect,
    counts_in,
    index_of,
    objects,
    put,
)

_THINKING = ("reasoning", "thinking")
_IDENTIFIERS = frozenset({"id", "type", "role", "format", "object", "status"})
_FOR_READERS = frozenset({("content",), ("refusal",), ("reasoning_content",), ("reasoning",), ("thinking",)})
_PARTS = (("text",), ("refusal",), ("thinking",), ("summary",))
"""Fields that are words for the reader, and those of the parts that such a field may be a list of."""
_OF_PARTS = frozenset({"content", "reasoning_details"})
_UNSEEN = frozenset({"audio", "images"})
"""What no guardrail can look at."""
_CALLED = frozenset({"function", "custom"})
_LONGEST_INDEX = 32
LEGACY = -1
"""The index of the one call that the dialect had before it had a list of them."""

TOP = -2
"""Where channels of an answer are kept that are of no choice."""
_SAID_ONCE = frozenset(
    {"usage", "error", "citations", "search_results", "prompt_filter_results", "prompt_annotations", "x_groq"}
)
_AROUND = frozenset({"id", "object", "created", "model", "system_fingerprint", "service_tier", "provider", *_SAID_ONCE})
"""Fields that a chunk has beside its choices; all but some of them in every chunk."""
_OF_A_CHOICE = frozenset({"finish_reason", "native_finish_reason", "stop_reason", "content_filter_results"})

Path = tuple[str | int, ...]


class _Call:
    """A call that is being written."""

    def __init__(self, measure: Measure) -> None:
        measure.call()
        self.said: Json = {}
        self.name = ""
        self.text = Pieces(measure)
        self.key = "arguments"
        self.within = "function"
        self.beside: Json = {}
        """Other objects than the one that is called: a signature of thoughts, for one."""


class OpenAIWalker(Walker):
    """Chunks of ``chat.completion.chunk``, or one ``chat.completion``."""

    def __init__(self, gates: Gates) -> None:
        super().__init__(gates)
        self._around: Json = {}
        self._before: Json | None = None
        self._choices: dict[int, bool] = {}  # index -> it has ended
        self._calls: dict[tuple[int, int], _Call] = {}
        self._open: dict[int, list[Channel]] = {}
        self._annotated: dict[int, set[str]] = {}
        self._fields = Fields(self)

    @property
    def complete(self) -> bool:
        """Every choice has ended."""
        return bool(self._choices) and all(self._choices.values())

    def take(self, chunk: Json) -> None:
        """A chunk. Raises ``WrongDialect``."""
        chunk = chunk if self.known.covers(chunk) else self.named(chunk)
        if not isinstance(chunk.get("choices"), list):
            raise WrongDialect("a chunk without choices")
        around = self._said_around({name: value for name, value in chunk.items() if name in _AROUND})
        waiting, choices = Waiting({}), list[Json]()
        top = Spot(
            (), waiting, self._open.setdefault(TOP, []), lambda more: {**self._around, "choices": [], **more}, True
        )
        for name, value in chunk.items():
            if name == "choices":
                waiting.chunk[name] = choices
            elif name in around:
                waiting.chunk[name] = around[name]
            elif not (self.spells(name, value) or (name == "obfuscation" and self.deciding)):
                self._fields.put(waiting.chunk, name, value, (name,), top)
        for choice in objects(chunk["choices"]):
            index = numbered(choice.get("index"))
            self._choices.setdefault(index, False)
            delta = choice.get("delta")
            said = self._said(delta, index, waiting) if isinstance(delta, dict) else delta and None
            ends = bool(choice.get("finish_reason"))
            if ends:
                self._end(index, waiting)
                if index == 0:
                    self.ended_for(choice.get("finish_reason"))
            choices.append(self._choice(choice, "delta", said, self._beside(index, waiting)))
        if self.complete:  # before the counts, which a library takes from the last chunk
            self._end_top(waiting)
        self._queue.append(waiting)

    def _said_around(self, said: Json) -> Json:
        """The fields around the choices, looked at. Mostly they are what they were in the chunk before."""
        if said != self._before:
            self._before = None
            around = cast("Json", self.once(said))
            self._note(around)
            self._around = {name: value for name, value in around.items() if name not in _SAID_ONCE}
            if around != said or any(isinstance(value, dict | list) for value in said.values()):
                return around
            self._before = said
        return said

    def _beside(self, index: int, waiting: Waiting) -> Spot:
        """The place beside a choice's delta."""

        def say(more: Json) -> Json:
            return {**self._around, "choices": [{"index": index, "delta": {}, "finish_reason": None, **more}]}

        return Spot((index, "choice"), waiting, self._open.setdefault(index, []), say, steady=True)

    def _choice(self, choice: Json, key: str, said: object, spot: Spot | None) -> Json:
        out: Json = {}
        for name, value in choice.items():
            if name == key:
                out[name] = said
            elif self.spells(name, value):
                out |= {name: None} if name == "logprobs" else {}  # the dialect has it in every choice
            elif name == "index":
                out[name] = value
            elif spot is None:
                out[name] = self.field(name, value)
            elif name in _OF_A_CHOICE:
                out[name] = self.once(value, ("choice", index_of(choice.get("index")), name))
            else:
                self._fields.put(out, name, value, (name,), spot)
        return out

    def _end(self, index: int, waiting: Waiting) -> None:
        """A choice has ended: nothing of it is behind this chunk."""
        self._choices[index] = True
        for channel in self._open.pop(index, []):
            self.gates.finish(channel)
            here = any(slot.channel is channel for slot in waiting.slots)
            (waiting.needs if here else waiting.ends).append(channel)
        calls = [(key, call) for key, call in self._calls.items() if key[0] == index]
        for key, call in calls:
            del self._calls[key]
            self._queue.append(self._call_made(key, call))

    def _end_top(self, waiting: Waiting) -> None:
        for channel in self._open.pop(TOP, []):
            self.gates.finish(channel)
            here = any(slot.channel is channel for slot in waiting.slots)
            (waiting.needs if here else waiting.ends).append(channel)

    def finish(self) -> None:
        """The terminator, or the end."""
        waiting = Waiting({})
        self._end_top(waiting)
        for index, ended in list(self._choices.items()):
            if not ended:
                self._end(index, waiting)
        if waiting.ends:
            self._queue.append(waiting)
        self.finished = True

    # -- one message, whole or in pieces ----------------------------------------------------------------------

    def _said(self, said: Json, index: int, waiting: Waiting, *, whole: bool = False) -> Json:
        out: Json = {}
        for name, value in said.items():
            if name == "tool_calls" and isinstance(value, list):
                calls = self._whole_calls(value, waiting) if whole else self._pieces(value, index)
                if calls or whole:
                    out[name] = calls
            elif name == "function_call" and isinstance(value, dict):
                if whole:
                    out[name] = self._whole_call(value, value, waiting, "")
                elif self.gates.untouched(AppliesTo.TOOL_ARGUMENTS):
                    self._passes(value)
                    out[name] = value
                else:
                    self._piece({"function": value}, index, LEGACY)
            elif name in _UNSEEN:
                if value is not None and not self.deciding:
                    out[name] = value
            elif name == "role":
                out[name] = self.once(value, (index, name))
            elif name == "annotations" and isinstance(value, list) and not whole:
                out[name] = self.plain(self._unjoined(value, index))  # each is complete
            elif not self.spells(name, value):
                self._text(out, name, value, (name,), index, waiting, whole=whole)
        return out

    def _unjoined(self, items: list[object], index: int) -> list[object]:
        """The items of a list that comes in pieces which no library joins with one that was sent before.

        Some join those that say the same ``index``, some take it for the item's place in the list so far.
        """
        if not self.deciding:
            return items
        sent = self._annotated.setdefault(index, set())
        fresh: list[object] = []
        for item in objects(items):
            at = item.get("index")
            if at is None:
                name = f"# {len(sent)}"
            else:
                name = str(int(at)) if isinstance(at, bool | float) and math.isfinite(at) else str(at)[:_LONGEST_INDEX]
                try:
                    place = int(name)
                except ValueError:
                    place = len(sent)
                if name in sent or place < len(sent):
                    continue
            self.gates.measure.said(len(name))
            sent.add(name)
            fresh.append(item)
        return fresh

    def _text(
        self, out: Holder, name: str | int, value: object, path: Path, index: int, waiting: Waiting, *, whole: bool
    ) -> None:
        """One field of a message: its strings are texts, whatever it is called."""
        shown_name = self.gates.plain(name) if isinstance(name, str) else name
        if len(path) == (3 if path[0] in _OF_PARTS else 1):
            value = self.by_name(value, str(name))
        match value:
            case str(text) if name in _IDENTIFIERS and len(path) > 1:
                if whole or self.fixed(text):
                    put(out, name, self.plain(text))
                else:
                    here = self._open.setdefault(index, [])
                    spot = Spot((index,), waiting, here, lambda more: self._chunk(index, more), steady=True)
                    self._fields.put(out, name, text, path, spot)
            case str(text):
                self._spoken(out, name, text, path, index, waiting, whole=whole)
            case dict(fields):
                inner: Json = {}
                put(out, shown_name, inner)
                for key, part in fields.items():
                    if not self.spells(str(key), part):
                        self._text(inner, str(key), part, (*path, str(key)), index, waiting, whole=whole)
            case list(items):
                made: list[object] = []
                put(out, shown_name, made)
                for position, item in enumerate(items):
                    at = index_of(item.get("index"), position) if isinstance(item, dict) else position
                    made.append(None)
                    if self.deciding and path == ("content",) and isinstance(item, dict) and sort_of(item):
                        item = {"type": "text", "text": ""}  # what stands behind it keeps its number
                    self._text(made, position, item, (*path, at), index, waiting, whole=whole)
            case bool() | None:
                put(out, name, value)
            case _:
                put(out, name, value if name == "index" else self.plain(value))

    def _spoken(
        self, out: Holder, name: str | int, text: str, path: Path, index: int, waiting: Waiting, *, whole: bool
    ) -> None:
        thinking = any(isinstance(part, str) and part.startswith(_THINKING) for part in path)
        applies_to = AppliesTo.THINKING if thinking else AppliesTo.RESPONSE
        known = "thinking" if thinking else "text" if path == ("content",) else str(path[0])
        kept = path == ("content",)
        put(out, name, "")
        if whole and not text:
            return
        said = path in _FOR_READERS or (path[0] in ("content", "reasoning_details") and path[2:] in _PARTS)
        joined = len(path) > 1 and path[0] == "content" and not thinking  # thoughts stand elsewhere
        channel = self.gates.channel(
            (index, path), applies_to, known[:32], kept=kept, said=said, joined=said and joined, open_ended=not whole
        )
        self.gates.feed(channel, text)
        if whole:
            self.gates.finish(channel)
            waiting.needs.append(channel)
        elif channel not in self._open.setdefault(index, []):
            self._open[index].append(channel)
            beside: Json = {}
            if isinstance(out, dict) and len(path) > 1:
                beside = {key: out[key] for key in ("type", "id", "format", "index") if key in out}
            self.comes_late(channel, lambda more: self._late_chunk(index, path, beside, more))
        waiting.slots.append(Slot(out, name, channel, keep=whole or not text))

    def _late_chunk(self, index: int, path: Path, beside: Json, text: str) -> Json:
        """A chunk of our own for text that comes later than the one that it stood in."""
        value: object = text
        for depth, part in enumerate(reversed(path)):
            if isinstance(part, str):
                value = {**(beside if depth == 0 else {}), part: value}
            else:
                inner = {"index": part, **value} if isinstance(value, dict) and "index" in beside else value
                value = [inner]
        return self._chunk(index, value)

    def _chunk(self, index: int, delta: object, reason: str | None = None) -> Json:
        return {**self._around, "choices": [{"index": index, "delta": delta, "finish_reason": reason}]}

    # -- calls --------------------------------------------------------------------------------------------------

    def _pieces(self, calls: list[object], index: int) -> list[Json]:
        """What passes at once of pieces of calls: nothing where something may be kept from the reader."""
        if self.gates.untouched(AppliesTo.TOOL_ARGUMENTS):
            for call in objects(calls):
                self._passes(call.get("function"))
            return objects(calls)
        for position, call in enumerate(objects(calls)):
            self._piece(call, index, index_of(call.get("index"), position))
        return []

    def _passes(self, function: object) -> None:
        """A piece of arguments that nobody looks at counts all the same."""
        if isinstance(function, dict) and isinstance(text := function.get("arguments"), str):
            self.gates.measure.said(len(text))

    def _piece(self, piece: Json, index: int, number: int) -> None:
        call = self._calls.get((index, number))
        if call is None:
            call = self._calls[index, number] = _Call(self.gates.measure)
        for name, value in piece.items():
            if self.spells(name, value):
                continue
            if isinstance(value, dict) and name not in _CALLED and not {"arguments", "input"} & set(value):
                self.gates.measure.said(len(json.dumps(value)))
                call.beside[name] = _joined(call.beside.get(name), value)
            elif isinstance(value, dict):
                call.within = name
                for key, part in value.items():
                    if key in ("arguments", "input"):
                        call.key = key
                        text = part if isinstance(part, str) else "" if part is None else json.dumps(part)
                        self.collect(call.text, text)
                    elif key == "name" and isinstance(part, str):
                        self.gates.measure.said(len(part))
                        call.name += part
                    elif not self.spells(key, part):
                        call.said.setdefault(f"{name}.{key}", part)
            elif value is not None:
                call.said.setdefault(name, value)

    def _call_made(self, key: tuple[int, int], call: _Call) -> Waiting:
        """The chunk of one complete call."""
        about = {name: self.field(name, value) for name, value in call.said.items() if "." not in name}
        about |= {self.gates.plain(name): self.field(name, value) for name, value in call.beside.items()}
        within = {name.partition(".")[2]: value for name, value in call.said.items() if "." in name}
        inner: Json = {name: self.field(name, value) for name, value in within.items()}
        if call.name:
            inner["name"] = self.gates.plain(call.name, AppliesTo.TOOL_ARGUMENTS, "tool_arguments")
        text = call.text.taken()
        channel = self.arguments(text)
        inner[call.key] = ""
        index, number = key
        delta: Json = {"function_call": inner}
        if number != LEGACY:
            delta = {"tool_calls": [{"index": number, **about, call.within: inner}]}
        slot = Slot(inner, call.key, channel, keep=True, was=text, tool=call.name)
        return Waiting(self._chunk(index, delta), [slot], [channel])

    def _whole_calls(self, calls: list[object], waiting: Waiting) -> list[Json]:
        out: list[Json] = []
        for call in objects(calls):
            made: Json = {}
            for name, value in call.items():
                if self.spells(name, value):
                    continue
                inner = isinstance(value, dict) and bool({"arguments", "input"} & set(value))
                if inner:
                    made[name] = self._whole_call(cast("Json", value), call, waiting, name)
                else:
                    made[name] = self.field(name, value)
            out.append(made)
        return out

    def _whole_call(self, said: Json, call: Json, waiting: Waiting, within: str) -> Json:
        out: Json = {}
        for name, value in said.items():
            if name in ("arguments", "input") and value is not None:
                text = value if isinstance(value, str) else json.dumps(value)
                channel = self.arguments(text)
                waiting.needs.append(channel)
                tool = str(said.get("name", ""))
                waiting.slots.append(Slot(out, name, channel, keep=True, was=text, tool=tool))
                out[name] = ""
            elif name == "name" and isinstance(value, str):
                out[name] = self.gates.plain(value, AppliesTo.TOOL_ARGUMENTS, "tool_arguments")
            elif not self.spells(name, value):
                out[name] = self.field(name, value)
        return out

    # -- whole answers and ends ---------------------------------------------------------------------------------

    def whole(self, document: Json) -> None:
        """A ``chat.completion``. Raises ``WrongDialect``."""
        if not objects(document.get("choices")):
            raise WrongDialect("an answer without choices")
        document = self.named(document)
        waiting = Waiting({})
        around = cast("Json", self.plain({**document, "choices": []}))
        self._note(around)
        choices: list[Json] = []
        for choice in objects(document["choices"]):
            index, message = numbered(choice.get("index")), choice.get("message")
            self._choices[index] = True
            if index == 0:
                self.ended_for(choice.get("finish_reason"))
            said = self._said(message, index, waiting, whole=True) if isinstance(message, dict) else None
            choices.append(self._choice(choice, "message", said, None))
        waiting.chunk = {**around, "choices": choices}
        self._queue.append(waiting)

    def begin(self, id_: str, model: str, created: int, *, streaming: bool) -> None:
        """As the vendor calls them."""
        kind = "chat.completion.chunk" if streaming else "chat.completion"
        self._around = {"id": f"chatcmpl-{id_}", "object": kind, "created": created, "model": self.gates.plain(model)}

    def stopped(self, reason: str) -> Chunks:
        """The reason stands as a refusal; every choice that had not ended was filtered."""
        if not self._choices:
            self._choices[0] = False
        out: Chunks = []
        for index, ended in self._choices.items():
            if not ended:
                out.append(self._chunk(index, {"refusal": reason}, "content_filter"))
                self._choices[index] = True
        if not out:  # everything had been said to end before the block was known
            out.append(self._chunk(0, {"refusal": reason}, "content_filter"))
        self.finished = True
        return out

    def stopped_whole(self, document: Json | None, reason: str) -> Json:
        """What was released of each choice, and that it was filtered."""
        said = self._around if document is None else document
        around = cast("Json", self.plain({k: v for k, v in said.items() if k != "choices"}))
        indexes = [index_of(choice.get("index")) for choice in objects((document or {}).get("choices"))] or [0]
        choices: list[Json] = []
        for index in indexes:
            channel = self.gates.known((index, ("content",)))
            shown = "".join(channel.visible or ()) or None if channel is not None else None
            message: Json = {"role": "assistant", "content": shown, "refusal": reason}
            choices.append({"index": index, "message": message, "logprobs": None, "finish_reason": "content_filter"})
        return {**around, "choices": choices}

    def _cut_short(self, chunk: Json) -> Json | None:
        for choice in objects(chunk.get("choices")):
            if choice.get("finish_reason"):
                choice["finish_reason"] = None
                self._choices[index_of(choice.get("index"))] = False
        return chunk if chunk.get("choices") else None

    def _void(self, chunk: Json) -> bool:
        if not chunk:
            return True
        if chunk.get("usage") or not chunk.get("choices"):
            return False
        return not any(choice.get("delta") or choice.get("finish_reason") for choice in objects(chunk["choices"]))

    def _filled(self, waiting: Waiting) -> bool:
        # A chunk of ours that only ends channels carries nothing itself.
        return super()._filled(waiting) and bool(waiting.chunk)

    def _note(self, around: Json) -> None:
        self.usage |= counts_in(around.get("usage"))
        if isinstance(model := around.get("model"), str):
            self.model = model


def _joined(before: object, more: object) -> object:
    """What an object says that came in pieces: its texts one behind the other, each looked at when it is complete."""
    if isinstance(before, dict) and isinstance(more, dict):
        return {**before, **{name: _joined(before.get(name), value) for name, value in more.items()}}
    if isinstance(before, str) and isinstance(more, str) and before != more:
        return before + more
    return before if more is None else more
