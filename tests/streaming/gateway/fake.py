"""An upstream that the test plays: what it answers depends on the model that it is asked for."""

from __future__ import annotations

import json
import select
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SSE, NDJSON, JSON = "text/event-stream", "application/x-ndjson", "application/json"


@dataclass
class Answer:
    """Pieces are written one after the other; ``gate`` is waited for before the last one, or before the head."""

    pieces: list[bytes]
    content_type: str = SSE
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    gate: threading.Event | None = None
    gated_head: bool = False


@dataclass
class Fake:
    """``answers``: by model, or made of the request; ``asked``: path, headers and body of every request.

    ``gone``: a client went early, at ``gone_at`` (seconds of the monotonic clock).
    """

    url: str = ""
    answers: dict[str, Answer | Callable[[dict[str, object]], Answer]] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    gone: threading.Event = field(default_factory=threading.Event)
    gone_at: float = 0.0
    writing: threading.Event = field(default_factory=threading.Event)

    def last(self) -> dict[str, object]:
        found: dict[str, object] = json.loads(self.asked[-1][2])
        return found


@contextmanager
def upstream() -> Iterator[Fake]:
    fake = Fake()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            return

        def do_GET(self) -> None:
            self._answer("GET " + self.path, b"")

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            self._answer(str(json.loads(raw).get("model")), raw)

        def _answer(self, name: str, raw: bytes) -> None:
            fake.asked.append((self.path, dict(self.headers.items()), raw))
            answer = fake.answers.get(name) or Answer([b'{"error": {"message": "no such model"}}'], JSON, 404)
            if not isinstance(answer, Answer):
                answer = answer(json.loads(raw))
            with suppress(ConnectionError):
                self._write(answer)
                return
            fake.gone_at = time.monotonic()
            fake.gone.set()
            self.close_connection = True

        def _wait(self, gate: threading.Event) -> None:
            fake.writing.set()
            while not gate.is_set():
                if select.select([self.connection], [], [], 0.01)[0]:  # whoever waits sends nothing more
                    raise ConnectionResetError

        def _write(self, answer: Answer) -> None:
            if answer.gate is not None and answer.gated_head:
                self._wait(answer.gate)
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.content_type)
            for key, value in answer.headers.items():
                self.send_header(key, value)
            whole = answer.content_type == JSON
            if whole:
                self.send_header("Content-Length", str(sum(map(len, answer.pieces))))
            else:
                self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for number, piece in enumerate(answer.pieces):
                if answer.gate is not None and number == len(answer.pieces) - 1:
                    self.wfile.flush()
                    self._wait(answer.gate)
                self.wfile.write(piece if whole else b"%x\r\n%s\r\n" % (len(piece), piece))
                self.wfile.flush()
            if not whole:
                self.wfile.write(b"0\r\n\r\n")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    fake.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def sse(*chunks: object) -> list[bytes]:
    """Chat-completion chunks with the terminator."""
    return [b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks] + [b"data: [DONE]\n\n"]
