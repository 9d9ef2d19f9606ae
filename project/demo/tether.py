"""Runs a command that dies when the process that started it dies, even from SIGKILL.

Run by path (``python tether.py PARENT_PID COMMAND ARGUMENT…``), before anything of the project is imported: it ties
itself to its parent and becomes the command. Protects the rule that a demo leaves no process behind. Linux only; on
other systems it just becomes the command.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2); survives exec


def main(arguments: list[str]) -> int:
    """Become the command ``arguments[1:]``; returns only if that is not possible (127) or the parent is gone (1)."""
    parent, command = int(arguments[0]), arguments[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the tie was made
        return 1
    try:
        os.execvp(command[0], command)  # noqa: S606 - the supervisor's own argument vector, no shell
    except OSError as error:
        sys.stderr.write(f"cannot run {command[0]}: {error.strerror}\n")
    return 127


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
