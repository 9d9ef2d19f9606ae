"""Ollama's chat dialect, walked.

Exists because a line of this dialect is a message each time: text and thinking in pieces, calls complete with their
arguments as objects. Protects the rule that the last line, which counts everything, comes behind all that was held.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import cast

from guardrails.findings import AppliesTo
from streaming.gateway.channel import Channel
from streaming.gateway.fields import Fields, Spot
from streaming.gateway.gates import Gates
from streaming.gateway.walker import Chunks, Json, Slot, Waiting, Walker, WrongDialect, objects

_SAID = {"content": AppliesTo.RESPONSE, "thinking": AppliesTo.THINKING}
_AROUND = frozenset(
    {"model", "created_at", "done", "done_reason", "total_duration", "load_duration", "prompt_eval_count",
     "prompt_eval_duration", "eval_count", "eval_duration"}
)  # fmt: skip
"""Fields that a line has beside its message."""
_KNOWN = frozenset({"role", "tool_calls", "tool_name", "images"})


class OllamaWalker(Walker):
    """Lines of a chat, or the one line of it."""

    def __init__(self, gates: Gates) -> None:
        super().__init__(gates)
        self._around: Json = {}
        self._role = "assistant"
        self._over = False
        self._open: dict[str, Channel] = {}
        self._extra: list[Channel] = []
        self._fields = Fields(self)

    @property
    def complete(self) -> bool:
        """A line said that it is done."""
        return self._over

    @property
    def said_all(self) -> bool:
        """The same."""
        return self._over

    def take(self, chunk: Json) -> None:
        """A line. Raises ``WrongDialect``."""
        self._line(chunk, whole=False)

    def whole(self, document: Json) -> None:
        """The one line of an answer that is not streamed. Raises ``WrongDialect``."""
        self._line(document, whole=True)

    def _line(self, line: Json, *, whole: bool) -> None:
        line = self.named(line)
        message, done = line.get("message"), line.get("done")
        if not isinstance(message, dict) or not isinstance(done, bool | None):
            raise WrongDialect("a line without a message")
        known = {name: value for name, value in line.items() if name != "message" and (whole or name in _AROUND)}
        around = cast("Json", self.once(known))
        self._around = {name: around[name] for name in ("model", "created_at") if name in around}
        if isinstance(model := around.get("model"), str):
            self.model = model
        waiting = Waiting({})
        said = self._message(message, waiting, whole=whole)
        # The place of the message among the fields does not matter, but a reader of logs is used to it.
        top = Spot((), waiting, self._extra, self._beside, steady=True)
        for name, value in line.items():
            if name == "message" or name in around:
                waiting.chunk[name] = said if name == "message" else around[name]
            elif not self.spells(name, value):
                self._fields.put(waiting.chunk, name, value, (name,), top)
        if done or whole:
            self._over = True
            self.ended_for(line.get("done_reason"))
            counts = {"input_tokens": line.get("prompt_eval_count"), "output_tokens": line.get("eval_count")}
            self.usage |= {name: value for name, value in counts.items() if isinstance(value, int)}
            self._end(waiting)
        self._queue.append(waiting)

    def _message(self, message: Json, waiting: Waiting, *, whole: bool) -> Json:
        made: Json = {}
        for name, value in message.items():
            if self.spells(name, value):
                continue
            if name == "tool_calls" and isinstance(value, list):
                made[name] = [self._call(call, waiting) for call in objects(value)]
            elif name == "images":
                if not self.deciding:
                    made[name] = value
            elif isinstance(value, str) and name not in _KNOWN:
                channel = self._channel(name)
                self.gates.feed(channel, value if name in _SAID else str(self.by_name(value, name)))
                made[name] = ""
                # A line without text is still a line: clients count on the field.
                waiting.slots.append(Slot(made, name, channel, keep=not value or whole or name == "content"))
            elif name in _KNOWN:
                made[name] = self.once(value, ("message", name))
            elif whole:
                made[name] = self.field(name, value)
            else:
                spot = Spot(("message",), waiting, self._extra, lambda more: self._beside({}, more))
                self._fields.put(made, name, value, (name,), spot)
        if isinstance(role := made.get("role"), str):
            self._role = role
        return made

    def _channel(self, name: str) -> Channel:
        found = self._open.get(name)
        if found is None:
            applies_to = _SAID.get(name, AppliesTo.RESPONSE)
            known = {"content": "text", "thinking": "thinking"}.get(name, "field")
            found = self.gates.channel((0, name), applies_to, known, kept=name == "content", said=name in _SAID)
            self._open[name] = found
            self.comes_late(found, lambda text: self._late_line(name, text))
        return found

    def _beside(self, top: Json, message: Json | None = None) -> Json:
        """A line of our own for fields that come later than the line that they stood in."""
        said: Json = {"role": self._role, "content": "", **(message or {})}
        return {**self._around, **top, "message": said, "done": False}

    def _late_line(self, name: str, text: str) -> Json:
        said = {"content": "", name: text}
        return {**self._around, "message": {"role": self._role, **said}, "done": False}

    def _call(self, call: Json, waiting: Waiting) -> Json:
        made: Json = {}
        for name, value in call.items():
            if self.spells(name, value):
                continue
            made[name] = self._function(value, waiting) if isinstance(value, dict) else self.field(name, value)
        return made

    def _function(self, said: Json, waiting: Waiting) -> Json:
        made: Json = {}
        for name, value in said.items():
            if name == "arguments" and isinstance(value, dict | list | str):
                self.gates.measure.call()
                text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
                channel = self.arguments(text)
                waiting.needs.append(channel)
                parsed = not isinstance(value, str)
                waiting.slots.append(
                    Slot(made, name, channel, keep=True, was=text, tool=str(said.get("name", "")), parsed=parsed)
                )
                made[name] = {} if parsed else ""
            elif name == "name" and isinstance(value, str):
                made[name] = self.gates.plain(value, AppliesTo.TOOL_ARGUMENTS, "tool_arguments")
            elif not self.spells(name, value):
                made[name] = self.field(name, value)
        return made

    def _end(self, waiting: Waiting) -> None:
        for channel in (*self._open.values(), *self._extra):
            self.gates.finish(channel)
            if channel in [slot.channel for slot in waiting.slots]:
                waiting.needs.append(channel)
            else:
                waiting.ends.append(channel)

    def finish(self) -> None:
        """The end of the stream."""
        self.finished = True

    def begin(self, id_: str, model: str, created: int, *, streaming: bool) -> None:
        """Answers of this dialect have no names."""
        self._around = {"model": self.gates.plain(model), "created_at": stamp(created)}

    def stopped(self, reason: str) -> Chunks:
        """The last line, with the reason beside the dialect's own."""
        self.finished = True
        message: Json = {"role": "assistant", "content": ""}
        return [{**self._around, "message": message, "done": True, **_done(reason)}]

    def stopped_whole(self, document: Json | None, reason: str) -> Json:
        """The text that was released."""
        channel = self.gates.known((0, "content"))
        shown = "".join(channel.visible or ()) if channel is not None else ""
        said = self._around if document is None else document
        around = cast("Json", self.plain({name: value for name, value in said.items() if name != "message"}))
        return {**around, "message": {"role": "assistant", "content": shown}, "done": True, **_done(reason)}

    def _cut_short(self, chunk: Json) -> Json | None:
        if not chunk.get("done"):
            return chunk
        message = cast("Json", chunk.get("message") or {})
        return {**self._around, "message": message, "done": False} if message.get("content") else None

    def _void(self, chunk: Json) -> bool:
        message = cast("Json", chunk.get("message") or {})
        return not chunk.get("done") and not any(value for name, value in message.items() if name != "role")

    def _filled(self, waiting: Waiting) -> bool:
        had = any(slot.channel.has_text for slot in waiting.slots)
        asked = [slot for slot in waiting.slots if slot.channel in self._open.values()]
        filled = super()._filled(waiting)
        # A line whose text is held says nothing; what was empty from the beginning stays.
        return filled and (had or not asked or not self._void(waiting.chunk) or not self.gates.deciding)


def _done(reason: str) -> Json:
    return {"done_reason": "content_filter", "sluicegate": {"action": "block", "reason": reason}}


def stamp(created: int) -> str:
    """A time as the dialect writes it."""
    return datetime.fromtimestamp(created, UTC).isoformat().replace("+00:00", "Z")
