"""The terminal's picture: ``manage.py chat`` itself on a pseudo-terminal, drawn as it stands there while text is held.

What the command wrote is put on a small screen that keeps its colours, and rich draws that screen as SVG.
"""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import DIMMED_MONOKAI
from rich.text import Text

from tests.streaming.test_chat_on_a_terminal import Glass, talking

COLUMNS = 96
FORMAT = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">
<style>.{unique_id}-matrix {{ font-family: monospace; font-size: {char_height}px; line-height: {line_height}px; }}
{styles}</style>
<defs>{lines}</defs>
<rect width="100%" height="100%" fill="#191919"/>
<g transform="translate(8, 12)">{backgrounds}<g class="{unique_id}-matrix">{matrix}</g></g>
</svg>"""
"""As rich's own, without the frame of a window and without a font from another host."""


class ColouredGlass(Glass):
    """As ``Glass``; each character keeps how it was to look."""

    def __init__(self) -> None:
        super().__init__()
        self._style = ""
        self.styled: list[dict[int, tuple[str, str]]] = [{}]

    def _move(self, number: str, what: str) -> None:
        if what == "m":
            self._style = "" if number in ("", "0") else f"\x1b[{number}m"
        super()._move(number, what)
        if what == "K":
            self.styled[self._row] = {}

    def _put(self, one: str) -> None:
        row, column = self._row, self._column
        super()._put(one)
        while len(self.styled) < len(self.lines):
            self.styled.append({})
        if one not in "\r\n":
            self.styled[row][column] = (self._style, one)

    @property
    def ansi(self) -> str:
        """All of it, each character with its look."""
        lines = []
        for cells in self.styled:
            last = max(cells, default=-1)
            said = (cells.get(at, ("", " ")) for at in range(last + 1))
            lines.append("".join(f"{style}{one}\x1b[0m" if style else one for style, one in said))
        return "\n".join(lines).strip("\n")


def _drawn(raw: str) -> str:
    glass = ColouredGlass()
    glass.write(raw)
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(glass.ansi))
    return console.export_svg(title="", theme=DIMMED_MONOKAI, code_format=FORMAT, unique_id="t")


def terminal_svgs(data_dir: Path) -> dict[str, str]:
    """``terminal-holding`` and ``terminal``: an answer while a number is held, and when it is over, as SVG."""
    said = ("The form is filled in by Ann. ", "The number is 53", "6-22-81")
    with talking(data_dir, said, ("45, as far", " as we know.\n"), "What is in it?") as (terminal, model):
        terminal.until("holding ")
        held = terminal.raw
        model.go_on.set()
        assert terminal.left() == 0
        return {"terminal-holding": _drawn(held), "terminal": _drawn(terminal.raw)}
