"""One child process in a process group of its own, its output read line by line.

The group is what makes an end complete: whatever a child has started itself goes with it. The child is told to stop
alone (a Celery worker stops its pool itself, mid-task children would be lost otherwise); the group is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

_TETHER = str(Path(__file__).with_name("tether.py"))
_READ_BYTES = 65_536

Say = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class Service:
    """What to run.

    ``essential``: its end ends everything. ``ready`` answers whether it serves yet. ``grace_s``: seconds between being
    told to stop and being killed.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    essential: bool = False
    ready: Callable[[], Awaitable[bool]] | None = None
    grace_s: float = 8.0


def why(code: int) -> str:
    """A return code in words: "status 1", "SIGKILL"."""
    return signal.Signals(-code).name if code < 0 else f"status {code}"


class Child:
    """A running service. ``start`` makes it; exactly one task awaits ``ended``."""

    def __init__(self, service: Service, process: asyncio.subprocess.Process, output: asyncio.Task[None]) -> None:
        self.service = service
        self._process = process
        self._output = output
        self._gone = False

    @classmethod
    async def start(cls, service: Service, say: Say) -> Child:
        """Start it; each line that it writes goes to ``say(name, line)``. Raises ``OSError`` if it cannot be run."""
        # a pipe of our own: asyncio's would make the wait for the process a wait for everybody who inherited the pipe
        read_end, write_end = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", _TETHER, str(os.getpid()), *service.argv),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=write_end,
                stderr=write_end,
                env=dict(service.env),
                start_new_session=True,
            )
        except BaseException:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        return cls(service, process, asyncio.create_task(_forward(read_end, service.name, say)))

    @property
    def pid(self) -> int:
        """The process id, which is also its group's."""
        return self._process.pid

    async def ended(self) -> int:
        """Wait for its end and remove what is left of its group; the return code, negative for a signal."""
        code = await self._process.wait()
        self.kill()
        self._gone = True  # from here on the number may be another process's
        await self._output
        return code

    def ask_to_stop(self) -> None:
        """SIGTERM to the process alone."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()

    def kill(self) -> None:
        """SIGKILL to the whole group; nothing once it has ended."""
        if self._gone:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: EPERM for a group of zombies
            os.killpg(self.pid, signal.SIGKILL)


async def _forward(read_end: int, name: str, say: Say) -> None:
    """Every line to ``say``, until nobody can write any more."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_end, "rb", buffering=0)
    )
    rest = b""
    try:
        while data := await reader.read(_READ_BYTES):
            *lines, rest = (rest + data).split(b"\n")
            if len(rest) > _READ_BYTES:  # a line without end must not grow for ever
                lines, rest = [*lines, rest], b""
            for line in lines:
                say(name, line.decode("utf-8", "replace").rstrip("\r"))
        if rest:
            say(name, rest.decode("utf-8", "replace"))
    finally:
        transport.close()
