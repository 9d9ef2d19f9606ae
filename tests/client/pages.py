"""A small HTTP server for browser tests: the library as it is served, a blank page, and answers that a test writes."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MOUNTS = {"/static/": ROOT / "static", "/chat/": ROOT / "examples" / "browser-extension" / "chat"}
TYPES = {".js": "text/javascript", ".json": "application/json", ".html": "text/html", ".css": "text/css"}

Json = dict[str, object]
Reply = tuple[int, Json, dict[str, str]]
"""Status, body, headers."""


@dataclass
class Call:
    """A request for something that is no file."""

    method: str
    path: str
    body: Json
    headers: dict[str, str]


@dataclass
class Pages:
    """The server: ``answer`` answers what is no file; None closes the connection without a word."""

    url: str = ""
    answer: Callable[[Call], Reply | None] = lambda call: (404, {"error": {"code": "not_found", "message": "?"}}, {})
    calls: list[Call] = field(default_factory=list)
    """Calls of the API, in order."""
    replies: list[tuple[Call, int]] = field(default_factory=list)
    """Calls that were answered, each with its status, in order."""
    loaded: list[str] = field(default_factory=list)
    """Paths of the files that were asked for, in order."""

    def asked(self, path: str) -> list[Call]:
        """The calls of one path, query left out."""
        return [call for call in self.calls if call.path.partition("?")[0] == path]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    pages: Pages

    def do_GET(self) -> None:
        """A file, the blank page, or what the test says."""
        path = self.path.partition("?")[0]
        if path == "/blank":
            self._send(200, b"<!doctype html><title>blank</title><main></main>", {"Content-Type": "text/html"})
        elif mount := next((mount for mount in MOUNTS if path.startswith(mount)), ""):
            self.pages.loaded.append(path)
            file = (MOUNTS[mount] / path.removeprefix(mount)).resolve()
            if MOUNTS[mount] in file.parents and file.is_file():
                self._send(200, file.read_bytes(), {"Content-Type": TYPES.get(file.suffix, "text/plain")})
            else:
                self._send(404, b"", {})
        elif path == "/favicon.ico":
            self._send(404, b"", {})
        else:
            self._call({})

    def do_POST(self) -> None:
        """What the test says."""
        self._call(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _call(self, body: Json) -> None:
        call = Call(self.command, self.path, body, dict(self.headers.items()))
        self.pages.calls.append(call)
        reply = self.pages.answer(call)
        if reply is None:
            self.close_connection = True
            self.connection.close()
            return
        status, said, headers = reply
        self.pages.replies.append((call, status))
        data = b"" if status == 304 else json.dumps(said).encode()
        self._send(status, data, {"Content-Type": "application/json", **headers})

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        with contextlib.suppress(OSError):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing on the test's output."""


@contextlib.contextmanager
def pages_server() -> Iterator[Pages]:
    """The server, for as long as the block lasts."""
    pages = Pages()
    handler = type("Handler", (_Handler,), {"pages": pages})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        pages.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield pages
        finally:
            server.shutdown()
            thread.join()
