"""Real servers for the browser tests: ``manage.py demo`` in a data directory of its own, and a wire that can be cut."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from tests.prepared import fill

ROOT = Path(__file__).resolve().parents[2]
T = TypeVar("T")
INHERITED = ("PATH", "HOME", "LANG", "VIRTUAL_ENV", "TMPDIR")


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(what: str, ask: Callable[[], T], limit_s: float = 30.0, every_s: float = 0.05) -> T:
    """Poll ``ask`` until it answers something true; fails by name when ``limit_s`` has passed."""
    end = time.monotonic() + limit_s
    while True:
        if answer := ask():
            return answer
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {limit_s:g} s")
        threading.Event().wait(every_s)


@dataclass
class Demo:
    """A running ``manage.py demo``: its address, its processes, its files."""

    port: int
    data_dir: Path
    process: subprocess.Popen[bytes]
    info: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Base address without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """Everything that the servers have said so far."""
        return (self.data_dir / "demo.log").read_text(errors="replace")

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of a request; (0, reason) when there is no connection."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=5) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def rows(self, query: str) -> list[tuple[object, ...]]:
        """Rows of the demo's database, read by another process than the demo's."""
        uri = f"file:{self.data_dir / 'sluicegate.sqlite3'}?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=10)) as connection:
            return connection.execute(query).fetchall()

    def children(self, word: str) -> list[int]:
        """Process ids below the demo whose command line contains ``word``; only ever those that it started."""
        parents: dict[int, list[int]] = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = stat.read_text().rpartition(")")[2].split()
                parents.setdefault(int(fields[1]), []).append(int(stat.parent.name))
        below, found = [self.process.pid], []
        while below:
            for pid in parents.get(below.pop(), []):
                below.append(pid)
                with contextlib.suppress(OSError):
                    if word in Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode():
                        found.append(pid)
        return found

    def kill(self, word: str) -> list[int]:
        """SIGKILL to the demo's own processes whose command line contains ``word``."""
        pids = self.children(word)
        assert pids, f"the demo runs nothing named {word!r}"
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return pids


@contextlib.contextmanager
def demo(data_dir: Path, **environment: str) -> Iterator[Demo]:
    """Start the demo, wait until it is ready, stop it and everything below it at the end."""
    fill(data_dir)
    port = free_port()
    env = {name: os.environ[name] for name in INHERITED if name in os.environ}
    env |= {"SLUICEGATE_DATA_DIR": str(data_dir), "PYTHONUNBUFFERED": "1", **environment}
    with (data_dir / "demo.log").open("wb") as log:
        command = [sys.executable, str(ROOT / "manage.py"), "demo", "--port", str(port)]
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    running = Demo(port, data_dir, process)
    try:
        wait_for("the demo is ready", lambda: _ready(running), limit_s=240)
        running.info = json.loads((data_dir / "demo.json").read_text())
        yield running
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ready(running: Demo) -> bool:
    if running.process.poll() is not None:
        raise AssertionError(f"the demo ended with {running.process.returncode}:\n{running.log[-4000:]}")
    return (running.data_dir / "demo.json").exists() and running.get("/ready")[0] == 200


class Wire:
    """A TCP relay in front of a server that can be cut (connections reset) and stay cut (new ones refused).

    With ``bytes_per_s`` it is a slow line: all that the server sends goes through at this rate, a few bytes at a time.
    """

    def __init__(self, target: int, bytes_per_s: float = 0.0) -> None:
        self._target = target
        self._bytes_per_s = bytes_per_s
        self._line = threading.Lock()
        self.carried = 0
        self._down = threading.Event()
        self._pairs: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.accepted = 0
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        """Address of this end."""
        return f"http://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Reset every connection; new ones are reset at once until ``mend``."""
        self._down.set()
        with self._lock:
            for end in list(self._pairs):
                _reset(end)
            self._pairs.clear()

    def mend(self) -> None:
        """New connections work again."""
        self._down.clear()

    def close(self) -> None:
        """Stop listening."""
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self._down.is_set():
                _reset(near)
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self._target), timeout=5)
            except OSError:
                _reset(near)
                continue
            far.settimeout(None)
            self.accepted += 1
            with self._lock:
                self._pairs |= {near, far}
            for source, sink in ((near, far), (far, near)):
                slow = self._bytes_per_s > 0 and source is far
                threading.Thread(target=self._relay, args=(source, sink, slow), daemon=True).start()

    def _relay(self, source: socket.socket, sink: socket.socket, slow: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(700 if slow else 65_536):
                if slow:
                    with self._line:  # one line for all connections together
                        self.carried += len(data)
                        threading.Event().wait(len(data) / self._bytes_per_s)
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            with self._lock:
                self._pairs.discard(end)
            end.close()


def _reset(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        # Linger of zero seconds: the peer sees a reset, as from a network that is gone, not an orderly end.
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        end.shutdown(socket.SHUT_RDWR)
        end.close()


class _Misbehaving(http.server.BaseHTTPRequestHandler):
    """Speaks chat completions for as long as the last prompt lets it."""

    def do_POST(self) -> None:
        """One answer, of the kind that the prompt names."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        wish = body["messages"][-1]["content"]
        if "nothing" in wish:
            return
        self.send_response(503 if "busy" in wish else 200)
        self.send_header("Content-Type", "text/html" if "garbage" in wish else "text/event-stream")
        self.end_headers()
        if "garbage" in wish:
            self.wfile.write(b"<html><body>It works!</body></html>")
        elif "half" in wish:
            for text in ("One half", " of an answer, and no more"):
                chunk = {"choices": [{"index": 0, "delta": {"content": text}}]}
                self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing on the test's output."""


@contextlib.contextmanager
def misbehaving_endpoint() -> Iterator[str]:
    """Base URL of a model endpoint that answers with nothing, garbage, half an answer or an error, as asked."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Misbehaving) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join()
