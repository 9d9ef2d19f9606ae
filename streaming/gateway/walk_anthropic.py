"""The Messages dialect, walked.

Exists because an answer of this dialect is a row of blocks, each of a kind, each said in pieces of a kind. Protects the
rule that a block ends only when all of it is decided, and that pieces of a kind that is not known are texts with a gate
of their own. The input of a tool is held until its block ends, because only then can it be read as what it is.
"""

from __future__ import annotations

import json
from typing import cast

from guardrails.findings import AppliesTo
from streaming.gateway.channel import Channel
from streaming.gateway.fields import Fields, Spot
from streaming.gateway.gates import Gates
from streaming.gateway.measure import Pieces
from streaming.gateway.media import without_media
from streaming.gateway.walker import Chunks, Json, Slot, Waiting, Walker, WrongDialect, counts_in, index_of, objects

_SAID = {"text": AppliesTo.RESPONSE, "thinking": AppliesTo.THINKING}
"""Fields that are said in pieces."""
_DELTAS = frozenset(
    {"text_delta", "thinking_delta", "signature_delta", "input_json_delta", "citations_delta", "compaction_delta"}
)
_KINDS = frozenset(
    {"message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta",
     "message_stop", "ping"}
)  # fmt: skip


class AnthropicWalker(Walker):
    """Events of a message, or one message."""

    def __init__(self, gates: Gates) -> None:
        super().__init__(gates)
        self._start: Json | None = None
        self._begun = self._over = False
        self._open: dict[int, list[Channel]] = {}
        self._inputs: dict[int, Pieces] = {}
        self._given: set[int] = set()
        self._tools: dict[int, str] = {}
        self._events: list[Channel] = []
        self._fields = Fields(self)
        self._signed: dict[int, list[str]] = {}

    @property
    def complete(self) -> bool:
        """The message has ended."""
        return self._over

    @property
    def said_all(self) -> bool:
        """The same."""
        return self._over

    def take(self, chunk: Json) -> None:
        """An event. Raises ``WrongDialect``."""
        chunk = self.named(chunk)
        match chunk.get("type"):
            case "message_start":
                self._message_start(chunk)
            case "content_block_start":
                self._block_start(chunk)
            case "content_block_delta":
                self._block_delta(chunk)
            case "content_block_stop":
                self._block_stop(chunk)
            case "message_delta" | "message_stop":
                self._over = True
                said = cast("Json", self.once(chunk, (str(chunk["type"]),)))
                self.usage |= counts_in(said.get("usage"))
                if isinstance(delta := chunk.get("delta"), dict):
                    self.ended_for(delta.get("stop_reason"))
                waiting = Waiting(said)
                self._end_events(waiting)
                for index in list(self._open):
                    self._end(index, waiting)
                self._queue.append(waiting)
            case "ping":
                self._queue.append(Waiting(cast("Json", self.once(chunk, ("ping",)))))
            case "error":
                self._queue.append(Waiting(cast("Json", self.plain(chunk))))
            case str(kind):
                if not self._begun:
                    raise WrongDialect("an event that is none of a message")
                self._unknown(kind, chunk)
            case _:
                raise WrongDialect("an event without a type")

    def _unknown(self, kind: str, chunk: Json) -> None:
        """An event of a kind that nobody here knows. All of them are of the kind that is said first."""
        shown = str(self.once(kind, ("event",)))
        waiting = Waiting({"type": shown})
        spot = Spot((shown,), waiting, self._events, lambda more: {"type": shown, **more})
        for name, value in chunk.items():
            if name != "type" and not self.spells(name, value):
                self._fields.put(waiting.chunk, name, value, (name,), spot)
        self._queue.append(waiting)

    def _end_events(self, waiting: Waiting) -> None:
        for channel in self._events:
            self.gates.finish(channel)
            waiting.ends.append(channel)
        self._events.clear()

    def _message_start(self, chunk: Json) -> None:
        message = chunk.get("message")
        if not isinstance(message, dict):
            raise WrongDialect("a message_start without a message")
        self._begun = True
        said = cast("Json", self.once(chunk))
        inner = cast("Json", said["message"])
        self.usage |= counts_in(inner.get("usage"))
        if isinstance(model := inner.get("model"), str):
            self.model = model
        self._queue.append(Waiting(said))

    def _block_start(self, chunk: Json) -> None:
        block, index = chunk.get("content_block"), index_of(chunk.get("index"))
        if not isinstance(block, dict):
            raise WrongDialect("a block that is no object")
        block = self._seen(block)
        self._open.setdefault(index, [])
        self._tools[index] = str(block.get("name", ""))
        if self._tools[index]:
            self.gates.measure.call()
        waiting = Waiting(self._around(chunk, "content_block"))
        made: Json = {}
        waiting.chunk["content_block"] = made
        for name, value in block.items():
            if self.spells(name, value):
                continue
            if name in _SAID and isinstance(value, str):
                made[name] = ""
                if value:
                    channel = self._channel(index, name, f"{name}_delta", name)
                    self.gates.feed(channel, value)
                    waiting.slots.append(Slot(made, name, channel, keep=True))
            elif name == "signature" and isinstance(value, str) and self._keeps(index, value):
                made[name] = ""
            elif name == "input" and value and not self.gates.untouched(AppliesTo.TOOL_ARGUMENTS):
                self._given.add(index)
                self._input(made, name, value, self._tools[index], waiting)
            else:
                made[name] = self.field(name, value)
        self._queue.append(waiting)

    def _seen(self, block: Json) -> Json:
        """A block without pictures and the like, at which nobody can look, where something may be kept from readers."""
        return without_media(block) if self.deciding else block

    def _block_delta(self, chunk: Json) -> None:
        delta, index = chunk.get("delta"), index_of(chunk.get("index"))
        if not isinstance(delta, dict):
            raise WrongDialect("a delta that is no object")
        if index not in self._open:
            raise WrongDialect("a delta of a block that has not begun")
        kind = str(delta.get("type", ""))
        if kind not in _DELTAS:
            kind = str(self.once(kind, ("delta", index)))
        waiting = Waiting(self._around(chunk, "delta"))
        withheld = False
        made: Json = {"type": kind}
        waiting.chunk["delta"] = made
        for name, value in delta.items():
            if name == "type" or self.spells(name, value):
                continue
            if name == "partial_json" and isinstance(value, str):
                if self.gates.untouched(AppliesTo.TOOL_ARGUMENTS):
                    self.gates.measure.said(len(value))
                    made[name] = value
                else:
                    withheld = True
                    if index not in self._given:  # a library would put these in the place of those, or behind them
                        self._inputs.setdefault(index, Pieces(self.gates.measure))
                        self.collect(self._inputs[index], value)
            elif name == "signature" and isinstance(value, str) and self._keeps(index, value):
                withheld = True
            elif kind == "citations_delta" and not isinstance(value, str):
                made[name] = self.field(name, value)  # complete each time
            elif not isinstance(value, str):
                self._fields.put(made, name, value, (name,), self._within(index, kind, waiting))
            else:
                channel = self._channel(index, name, kind, name)
                self.gates.feed(channel, str(self.by_name(value, name)))
                made[name] = ""
                waiting.slots.append(Slot(made, name, channel, keep=not value))
        if not (withheld and self._void(waiting.chunk)):
            self._queue.append(waiting)

    def _around(self, chunk: Json, but: str) -> Json:
        """An event without its block: what nobody here knows of it only where nothing is kept from the reader."""
        known = ("type", "index") if self.gates.deciding else tuple(name for name in chunk if name != but)
        return {name: self.plain(value) for name, value in chunk.items() if name in known}

    def _input(self, made: Json, name: str, value: object, tool: str, waiting: Waiting) -> None:
        """Arguments that are there at once: what they stand in waits until they are decided."""
        text = json.dumps(value, ensure_ascii=False)
        channel = self.arguments(text)
        waiting.needs.append(channel)
        waiting.slots.append(Slot(made, name, channel, keep=True, was=text, tool=tool, parsed=True))
        made[name] = {}

    def _within(self, index: int, kind: str, waiting: Waiting) -> Spot:
        """The place within a piece of a kind that nobody here knows."""

        def say(more: Json) -> Json:
            return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **more}}

        return Spot((index, kind), waiting, self._open[index], say)

    def _keeps(self, index: int, signature: str) -> bool:
        """Whether a signature waits until it is known that the thoughts it is for are shown as they were signed."""
        if not signature or self.gates.signed_as_shown:
            return False
        self.gates.measure.said(len(signature))
        self._signed.setdefault(index, []).append(signature)
        return True

    def _signature(self, index: int, signature: str) -> Json:
        """A signature for thoughts that are all decided; empty where they are shown otherwise than they were signed."""
        thoughts = self.gates.known((0, "thinking", index, ""))
        altered = thoughts is not None and self.gates.altered(thoughts)
        said = self.gates.plain(signature, AppliesTo.THINKING, "thinking", asked=True)
        return {"signature": "" if altered or said != signature else signature}

    def _channel(self, index: int, name: str, kind: str, field: str) -> Channel:
        known = name if name in _SAID else "field"
        key = (0, name, index, "" if name in _SAID else kind)
        said = name in _SAID
        channel = self.gates.channel(
            key, _SAID.get(name, AppliesTo.RESPONSE), known, kept=said, said=said, joined=name == "text"
        )
        if channel not in self._open.setdefault(index, []):
            self._open[index].append(channel)

            def late(text: str) -> Json:
                return {"type": "content_block_delta", "index": index, "delta": {"type": kind, field: text}}

            self.comes_late(channel, late)
        return channel

    def _block_stop(self, chunk: Json) -> None:
        index = index_of(chunk.get("index"))
        waiting = Waiting(self._around(chunk, ""))
        self._end(index, waiting)
        self._queue.append(waiting)

    def _end(self, index: int, waiting: Waiting) -> None:
        for channel in self._open.pop(index, []):
            self.gates.finish(channel)
            waiting.ends.append(channel)
        self._given.discard(index)
        if (signed := self._signed.pop(index, None)) is not None:
            signature: Json = {"type": "signature_delta", "signature": "".join(signed)}
            event: Json = {"type": "content_block_delta", "index": index, "delta": signature}
            self._queue.append(Waiting(event, ends=list(waiting.ends), signed=[(signature, index)]))
        if (pieces := self._inputs.pop(index, None)) is None:
            return
        text = pieces.taken()
        channel = self.arguments(text)
        delta: Json = {"type": "input_json_delta", "partial_json": ""}
        slot = Slot(delta, "partial_json", channel, keep=True, was=text, tool=self._tools.pop(index, ""))
        made: Json = {"type": "content_block_delta", "index": index, "delta": delta}
        self._queue.append(Waiting(made, [slot], [channel]))

    def finish(self) -> None:
        """The end of the stream."""
        waiting = Waiting({})
        self._end_events(waiting)
        for index in list(self._open):
            self._end(index, waiting)
        if waiting.ends:
            self._queue.append(waiting)
        self.finished = True

    # -- whole answers and ends ---------------------------------------------------------------------------------

    def whole(self, document: Json) -> None:
        """A message. Raises ``WrongDialect``."""
        if document.get("type") != "message" or not isinstance(document.get("content"), list):
            raise WrongDialect("an answer that is no message")
        document = self.named(document)
        waiting = Waiting({})
        around = cast("Json", self.plain({**document, "content": []}))
        self.usage |= counts_in(around.get("usage"))
        self.ended_for(document.get("stop_reason"))
        if isinstance(model := around.get("model"), str):
            self.model = model
        content = [self._whole_block(block, at, waiting) for at, block in enumerate(objects(document["content"]))]
        waiting.chunk = {**around, "content": content}
        self._over = True
        self._queue.append(waiting)

    def _whole_block(self, block: Json, at: int, waiting: Waiting) -> Json:
        made: Json = {}
        block = self._seen(block)
        for name, value in block.items():
            if self.spells(name, value):
                continue
            if name in _SAID and isinstance(value, str):
                key = (0, name, at, "")
                channel = self.gates.channel(key, _SAID[name], name, kept=True, said=True, joined=name == "text")
                self.gates.feed(channel, value)
                self.gates.finish(channel)
                waiting.needs.append(channel)
                made[name] = ""
                waiting.slots.append(Slot(made, name, channel, keep=True))
            elif name == "input" and value:
                self._input(made, name, value, str(block.get("name", "")), waiting)
            elif name == "signature" and isinstance(value, str) and not self.gates.signed_as_shown:
                made[name] = value
                waiting.signed.append((made, at))
            else:
                made[name] = self.field(name, value)
        return made

    def begin(self, id_: str, model: str, created: int, *, streaming: bool) -> None:
        """As the vendor calls them."""
        self._start = {
            "id": f"msg_{id_}", "type": "message", "role": "assistant", "model": self.gates.plain(model),
            "content": [], "stop_reason": None, "stop_sequence": None,
            "usage": {"input_tokens": 0, "output_tokens": 0},
        }  # fmt: skip

    def stopped(self, reason: str) -> Chunks:
        """Open blocks end, and the message with a refusal that says why."""
        out: Chunks = []
        if not self._begun and self._start is not None:
            out.append({"type": "message_start", "message": self._start})
        out += [{"type": "content_block_stop", "index": index} for index in self._open]
        self._open.clear()
        out.append(
            {
                "type": "message_delta",
                "delta": {"stop_reason": "refusal", "stop_sequence": None, "stop_details": _details(reason)},
                "usage": {"output_tokens": self.usage.get("output_tokens", 0)},
            }
        )
        out.append({"type": "message_stop"})
        self.finished = True
        return out

    def stopped_whole(self, document: Json | None, reason: str) -> Json:
        """The texts that were released, and a refusal that says why."""
        said = (self._start or {}) if document is None else document
        around = cast("Json", self.plain({name: value for name, value in said.items() if name != "content"}))
        content: list[Json] = []
        for at, block in enumerate(objects(said.get("content"))):
            channel = self.gates.known((0, "text", at, "")) if block.get("type") == "text" else None
            if channel is not None and (shown := "".join(channel.visible or ())):
                content.append({"type": "text", "text": shown})
        ended = {"stop_reason": "refusal", "stop_sequence": None, "stop_details": _details(reason)}
        return {**around, "content": content, **ended}

    def _cut_short(self, chunk: Json) -> Json | None:
        return None if chunk.get("type") in ("message_delta", "message_stop") else chunk

    def _void(self, chunk: Json) -> bool:
        delta = chunk.get("delta")
        return isinstance(delta, dict) and set(delta) <= {"type"} and set(chunk) <= {"type", "index", "delta"}

    def _filled(self, waiting: Waiting) -> bool:
        filled = super()._filled(waiting) and bool(waiting.chunk)
        for holder, index in waiting.signed:
            holder |= self._signature(index, str(holder["signature"]))
            filled = filled and bool(holder["signature"] or holder is not waiting.chunk.get("delta"))
        if not filled and waiting.chunk.get("type") == "content_block_start":
            self._open.pop(index_of(waiting.chunk.get("index")), None)  # what never began is not ended
        return filled


def _details(reason: str) -> Json:
    return {"type": "refusal", "category": None, "explanation": reason}
