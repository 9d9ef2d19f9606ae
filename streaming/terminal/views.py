"""How an answer looks where nothing can be redrawn: one event a line for programs, plain text for pipes and logs.

Protects the rule that standard output carries the answer and nothing else (or the events and nothing else): what is
said *about* it goes to standard error, so that ``chat … > file`` keeps what a person would have read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from streaming.core.wire import to_json
from streaming.terminal.telling import Event, Telling, safe

Write = Callable[[str], None]
"""Writes the text as it is, at once."""


class View(Protocol):
    """Shows one answer after another; ``show`` gets events as readers do, in batches."""

    def begin(self) -> None:
        """An answer begins."""

    def show(self, batch: Sequence[Event]) -> None:
        """More of it."""

    def end(self) -> None:
        """Nothing more comes of it, for whatever reason."""

    def say(self, text: str) -> None:
        """A word beside the answers: a refused prompt, that nothing is guarded."""


class JsonLines:
    """Every event as a line of JSON."""

    def __init__(self, out: Write, aside: Write) -> None:
        self._out, self._aside = out, aside

    def begin(self) -> None:
        """Nothing to prepare."""

    def show(self, batch: Sequence[Event]) -> None:
        """The events as they are."""
        self._out("".join(f"{to_json(event)}\n" for event in batch))

    def end(self) -> None:
        """Nothing to clear."""

    def say(self, text: str) -> None:
        """Beside the events."""
        self._aside(f"{safe(text)}\n")


class Plain:
    """The visible text as it is released; tools, findings and the last line beside it.

    ``raw``: the answer goes to a file or a program, which gets every character as it came.
    """

    def __init__(self, out: Write, aside: Write, *, raw: bool) -> None:
        self._out, self._aside = out, aside
        self._shown = str if raw else safe
        self._telling = Telling()
        self._last = ""

    def begin(self) -> None:
        """Forget the answer before."""
        self._telling, self._last = Telling(), ""

    def show(self, batch: Sequence[Event]) -> None:
        """Text to standard output, the rest to standard error."""
        for event in batch:
            self._telling.take(event)
            match event["type"]:
                case "message_stream" | "redaction" if event["channel"] == "text" and not event.get("choice"):
                    self._write(self._shown(event.get("chunk", event.get("label", ""))))
                case "tool_result":
                    self._aside(f"[{self._telling.tool_result(event)}]\n")

    def end(self) -> None:
        """The line is ended, and what there is to say about the answer is said."""
        if self._last and self._last != "\n":
            self._write("\n")
        for line in (*self._telling.notes, *self._telling.findings, self._telling.summary()):
            self._aside(f"[{line}]\n")

    def say(self, text: str) -> None:
        """Beside the answer."""
        self._aside(f"[{safe(text)}]\n")

    def _write(self, text: str) -> None:
        if text:
            self._out(text)
            self._last = text[-1]
