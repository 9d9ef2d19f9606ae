"""`manage.py chat` on a real terminal (a pseudo-terminal), seen as a person sees it: what is held while it is held, the
chip, the last line, and Ctrl-C. Protects the promise that the terminal shows the gate at work, which a test on pipes
cannot tell: there nothing is drawn.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 90.0
"""For any one thing to appear: a process starts, a database is made, the machine may do much else."""

ON_A_TERMINAL = (
    "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)
CONTROL = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|\x1b.")


class Glass:
    """What stands on a terminal after these characters: as much of it as redrawing needs."""

    def __init__(self) -> None:
        self.lines = [""]
        self._row = self._column = 0

    def write(self, text: str) -> None:
        """Characters as they come from the program. Cut nowhere within a control sequence."""
        at = 0
        while at < len(text):
            if control := CONTROL.match(text, at):
                self._move(control[1] or "", control[2] or "")
                at = control.end()
                continue
            self._put(text[at])
            at += 1

    def _move(self, number: str, what: str) -> None:
        if what == "A":
            self._row = max(0, self._row - int(number or 1))
        elif what == "K":
            self.lines[self._row] = ""

    def _put(self, one: str) -> None:
        if one == "\r":
            self._column = 0
        elif one == "\n":
            self._row += 1
            if self._row == len(self.lines):
                self.lines.append("")
        else:
            line = self.lines[self._row].ljust(self._column)
            self.lines[self._row] = line[: self._column] + one + line[self._column + 1 :]
            self._column += 1

    @property
    def text(self) -> str:
        """All lines."""
        return "\n".join(line.rstrip() for line in self.lines)


class Terminal:
    """``manage.py chat`` with a person in front of it."""

    def __init__(self, data_dir: Path, *arguments: str, columns: int = 100) -> None:
        self._near, far = pty.openpty()
        fcntl.ioctl(far, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        env = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        env |= {"SLUICEGATE_DATA_DIR": str(data_dir), "OPENAI_MODEL": "m-1", "TERM": "xterm-256color"}
        command = [sys.executable, "-c", ON_A_TERMINAL, str(ROOT / "manage.py"), "chat", *arguments]
        self.process = subprocess.Popen(command, cwd=ROOT, env=env, stdin=far, stdout=far, stderr=far)
        os.close(far)
        self.raw = ""
        self._bytes = b""

    @property
    def seen(self) -> str:
        """What stands there now."""
        glass = Glass()
        glass.write(self.raw)
        return glass.text

    def until(self, *words: str) -> str:
        """Read until all these words (regular expressions) stand on the terminal at once; what stands there then.

        A picture may arrive in pieces: whoever asks for its first line only may see no more than that.
        """
        end = time.monotonic() + LIMIT_S
        while missing := [one for one in words if not re.search(one, seen := self.seen, re.MULTILINE)]:
            assert time.monotonic() < end, f"{missing} did not appear:\n{seen}"
            self.read()
        return seen

    def read(self, wait_s: float = 1.0) -> bool:
        """Take what has come; False when the program has let go of the terminal."""
        if not select.select([self._near], [], [], wait_s)[0]:
            return True
        try:
            self._bytes += os.read(self._near, 65_536)
        except OSError:  # how Linux says that nobody holds the other end any more
            return False
        text = self._bytes.decode(errors="ignore")
        # A piece may end within a sequence: what follows the last escape waits until it is whole.
        tail = text.rfind("\x1b")
        self.raw = text if tail < 0 or CONTROL.match(text, tail) else text[:tail]
        return True

    def press(self, keys: str) -> None:
        """As from a keyboard."""
        os.write(self._near, keys.encode())

    def left(self) -> int:
        """Wait for the end; the exit status."""
        end = time.monotonic() + LIMIT_S
        while self.read():
            assert time.monotonic() < end, f"it goes on:\n{self.seen}"
        return self.process.wait(LIMIT_S)

    def close(self) -> None:
        """Whatever happened, nothing of it stays."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        os.close(self._near)


class Model(ThreadingHTTPServer):
    """An OpenAI-compatible endpoint that says one thing, stops in the middle, and goes on when the test lets it."""

    daemon_threads = True

    def __init__(self, before: tuple[str, ...], after: tuple[str, ...]) -> None:
        self.go_on, self.left_alone = threading.Event(), threading.Event()
        said = (before, after)
        model = self

        class Answers(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.end_headers()
                self._say(said[0])
                while not model.go_on.wait(0.05):
                    if select.select([self.connection], [], [], 0)[0] and not self.connection.recv(1):
                        model.left_alone.set()
                        return
                self._say(said[1], end="stop")
                self.wfile.write(b"data: [DONE]\n\n")

            def _say(self, pieces: tuple[str, ...], end: str | None = None) -> None:
                for number, piece in enumerate(pieces, 1):
                    why = end if number == len(pieces) else None
                    choice = {"index": 0, "delta": {"content": piece}, "finish_reason": why}
                    self.wfile.write(b"data: " + json.dumps({"model": "m-1", "choices": [choice]}).encode() + b"\n\n")
                    self.wfile.flush()

            def log_message(self, format: str, *args: object) -> None:
                """Nothing."""

        super().__init__(("127.0.0.1", 0), Answers)

    @property
    def url(self) -> str:
        """Base URL."""
        return f"http://127.0.0.1:{self.server_port}/v1"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One data directory: making its database takes longer than all the talking."""
    return tmp_path_factory.mktemp("data")


@contextlib.contextmanager
def talking(
    data: Path, before: tuple[str, ...], after: tuple[str, ...], *more: str
) -> Iterator[tuple[Terminal, Model]]:
    model = Model(before, after)
    thread = threading.Thread(target=model.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    terminal = Terminal(data, "--base-url", model.url, "--policy", "demo", *more)
    try:
        yield terminal, model
    finally:
        terminal.close()
        model.go_on.set()
        model.shutdown()
        thread.join()
        model.server_close()


def test_it_works() -> None:
    glass = Glass()
    glass.write("one\r\n\x1b[1mtwo\x1b[0m\r\x1b[2K\x1b[1A\x1b[2Kthree\x1b[?25l\r\nfour")
    assert glass.text == "three\nfour"


def test_a_person_sees_what_is_held_while_it_is_held_then_the_chip_and_the_last_line(data: Path) -> None:
    with talking(data, ("The number is 53", "6-22-81"), ("45, as far", " as we know.\n"), "What is it?") as (
        terminal,
        model,
    ):
        held = terminal.until(
            r"^The number is", r"holding \d+ \(pii: ssn\)", r"IMMEDIATE.*pii checking", "BATCHED", "DEFERRED"
        )
        assert re.findall(r"IMMEDIATE|BATCHED|DEFERRED", held) == ["IMMEDIATE", "BATCHED", "DEFERRED"]
        model.go_on.set()
        status = terminal.left()
        seen = terminal.seen
    assert status == 0
    assert "The number is [SSN], as far as we know." in seen
    assert re.search(r"\x1b\[[\d;]*m\[SSN\]\x1b\[0m", terminal.raw), "the chip stands out"
    assert re.search(r"pii.*ssn", seen)
    words = (
        r"redacted · 1 finding · first character after [\d.]+ s · complete after [\d.]+ s · openai m-1 · policy demo v1"
    )
    assert re.search(words, " ".join(seen.split())), seen
    assert "holding" not in seen, "the status goes when the answer is over"
    for piece in ("536", "22-81", "8145"):
        assert piece not in terminal.raw


def test_ctrl_c_interrupts_at_once_and_what_is_held_is_never_shown(data: Path) -> None:
    with talking(data, ("Once upon a time. ", "Write to ann@exam"), ("never said",), "Tell me.") as (
        terminal,
        model,
    ):
        terminal.until("holding ")
        terminal.press("\x03")
        assert model.left_alone.wait(LIMIT_S), "the provider's connection is closed"
        status = terminal.left()
        seen = terminal.seen
    assert "interrupted" in seen.lower()
    assert "Once upon a time." in seen
    assert "Traceback" not in terminal.raw
    assert "ann@" not in terminal.raw
    assert "never said" not in terminal.raw
    assert status == 0


def test_a_conversation_goes_on_after_an_interrupt_and_ends_with_ctrl_d(data: Path) -> None:
    with talking(data, ("First part. ",), ("Second part.",)) as (terminal, model):
        terminal.until(">")
        terminal.press("Begin\r")
        terminal.until(r"First part\.")
        terminal.press("\x03")
        terminal.until("nterrupted")
        model.go_on.set()
        terminal.press("Again\r")
        terminal.until(r"First part\. Second part\.")
        terminal.press("\x04")
        assert terminal.left() == 0
