"""One log for all processes: every line carries the name of who wrote it.

Colour only on a terminal and never with ``NO_COLOR``. A reader that goes away (``make demo | head``) silences the log
and stops nothing.
"""

from __future__ import annotations

import os
from typing import TextIO

_COLOURS = {"web": "36", "worker": "35", "valkey": "33", "demo": "1;32"}
_WIDTH = max(map(len, _COLOURS))


class Console:
    """Writes whole lines, prefixed, to one stream."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._colour = stream.isatty() and "NO_COLOR" not in os.environ
        self._silent = False

    def line(self, name: str, text: str) -> None:
        """One line of the process ``name``, without its line end."""
        prefix = f"{name:<{_WIDTH}}|"
        if self._colour:
            prefix = f"\x1b[{_COLOURS.get(name, '34')}m{prefix}\x1b[0m"
        self._write(f"{prefix} {text}\n")

    def _write(self, text: str) -> None:
        if self._silent:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except (BrokenPipeError, ValueError):  # ValueError: the stream has been closed
            self._silent = True
