"""An answer on a terminal: text as it is released, and below it what the guardrails are doing.

Finished lines are printed and stay; only the line being written and the status below it are redrawn, so that an answer
may be longer than the window. Protects readability: a redaction stands out in the text, and nothing is said by colour
alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.columns import Columns
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from guardrails.performance import Checkpoint
from streaming.terminal.telling import FAILED, Event, Telling, Tool, safe

LANES = [checkpoint.value for checkpoint in Checkpoint]
CHIP = "bold black on yellow"
STATES = {"hit": "bold red", "would block": "magenta", "checking": "cyan", "waiting": "cyan", "passed": "green"}
TROUBLE = "yellow"
"""For the states that say that a guardrail did not work as it should."""


class Screen:
    """A ``View`` that redraws (rich)."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._telling = Telling()
        self._line = Text()
        self._channel = "text"

    def begin(self) -> None:
        """The status line appears."""
        self._telling, self._line, self._channel = Telling(), Text(), "text"
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._live.start()

    def show(self, batch: Sequence[Event]) -> None:
        """All of the batch, drawn once."""
        for event in batch:
            self._telling.take(event)
            match event["type"]:
                case "message_stream" if not event["choice"]:
                    thinking = event["channel"] == "thinking"
                    self._write(str(event["channel"]), safe(event["chunk"]), "dim italic" if thinking else "")
                case "redaction":
                    self._write(str(event["channel"]), safe(event["label"]), CHIP)
                case "tool_result":
                    self._apart(Text(f"  {self._telling.tool_result(event)}", "cyan"))
        if self._live is not None:
            self._live.update(self._now(), refresh=True)

    def end(self) -> None:
        """The status goes, the last line stays, and the summary is printed."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._line:
            self._console.print(self._line)
            self._line = Text()
        telling = self._telling
        for note in telling.notes:
            self._console.print(Text(f"  {note}", TROUBLE))
        for finding in telling.findings:
            self._console.print(Text(f"  {finding}", "dim"))
        style = "bold red" if telling.outcome in FAILED else "bold green"
        self._console.print(Text(f"  {telling.summary()}", TROUBLE if telling.outcome == "interrupted" else style))

    def say(self, text: str) -> None:
        """A line of its own."""
        self._console.print(Text(safe(text), TROUBLE))

    def _write(self, channel: str, text: str, style: str) -> None:
        if channel != self._channel:
            self._channel = channel
            if self._line:
                self._apart()
        *whole, rest = text.split("\n")
        for part in whole:
            self._line.append(part, style)
            self._console.print(self._line)
            self._line = Text()
        self._line.append(rest, style)
        lines = self._line.wrap(self._console, self._console.width)
        for line in lines[:-1]:
            self._console.print(line)
        if len(lines) > 1:
            self._line = lines[-1]

    def _apart(self, line: Text | None = None) -> None:
        """End the line being written, and print another one below it."""
        if self._line:
            self._console.print(self._line)
            self._line = Text()
        if line is not None:
            self._console.print(line)

    def _now(self) -> Group:
        """What is redrawn: the line being written, tools under way, guardrails."""
        parts: list[Text | Table] = [self._line] if self._line else []
        if self._telling.tools:
            parts.append(_bars(self._telling.tools))
        return Group(*parts, *self._status())

    def _status(self) -> list[Table | Text]:
        """What is held, and a line for each lane: who looks while text comes, and who looks later."""
        telling = self._telling
        held = Text()
        if telling.held:
            who = f" ({telling.held_by})" if telling.held_by else ""
            held = Text(f"  holding {telling.held}{who}", "bold yellow")
        if not telling.lanes:
            words = "no guardrail looks at this answer" if telling.answer_id else "checking the prompt"
            return [held, Text(f"  {words}", TROUBLE)]
        lanes = Table.grid(padding=(0, 2))
        for name in sorted(telling.lanes, key=_place):
            parts = [_part(guardrail, state) for guardrail, state in telling.lanes[name].items()]
            lanes.add_row(Text(f"  {name}", "bold"), Columns(parts, padding=(0, 3)))
        out: list[Table | Text] = [held, lanes]
        if telling.state == "MONITORING":
            out.append(Text("  (Ctrl-C: do not wait)", "dim"))
        return out


def _part(guardrail: str, state: str) -> Text:
    style = STATES.get(state, "dim" if state == "idle" else TROUBLE)
    return Text.assemble((f"{guardrail} ", "dim"), (state, style), no_wrap=True)


def _place(lane: str) -> int:
    return LANES.index(lane) if lane in LANES else len(LANES)


def _bars(tools: dict[str, Tool]) -> Table:
    table = Table.grid(padding=(0, 1))
    for tool in tools.values():
        bar = ProgressBar(total=1.0, completed=min(max(tool.progress, 0.0), 1.0), width=24)
        table.add_row(Text(f"  {tool.name}", "cyan"), bar, Text(f"{tool.progress:4.0%} {tool.message}"))
    return table
