"""A body that is too long is refused while it comes: on a real server nothing of it reaches the disk."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing, suppress
from http.client import HTTPResponse
from pathlib import Path

import pytest
from django.conf import settings

from project.bodies import Bounded, Message, most
from tests.streaming.real_server import clean_environment, running

MB = 1_048_576
HEAD = "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{more}\r\n"
GATEWAYS = {"/v1/chat/completions": "invalid_request_error", "/v1/messages": "request_too_large", "/api/chat": None}
PATHS = ["/v1/check", "/v1/stream/update", *GATEWAYS]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A Daphne as the demo starts it. What is asked here never comes as far as the database."""
    folder = tmp_path_factory.mktemp("bodies")
    env = clean_environment() | {"DJANGO_SETTINGS_MODULE": "project.settings", "SLUICEGATE_DATA_DIR": str(folder)}
    with running(folder, env) as (port, _):
        yield port


@pytest.fixture
def line(server: int) -> Iterator[socket.socket]:
    with closing(socket.create_connection(("127.0.0.1", server), timeout=60)) as made:
        yield made


def kept_by(port: int) -> int:
    """Bytes in files that the server has open and nobody else can see, as temporary files are."""
    (process,) = [
        folder
        for folder in Path("/proc").iterdir()
        if folder.name.isdigit() and f"daphne\0-b\x00127.0.0.1\0-p\0{port}\0".encode() in _command(folder)
    ]
    total = 0
    for link in (process / "fd").iterdir():
        with suppress(FileNotFoundError):
            seen = os.stat(link)
            if stat.S_ISREG(seen.st_mode) and seen.st_nlink == 0:
                total += seen.st_size
    return total


def _command(folder: Path) -> bytes:
    try:
        return (folder / "cmdline").read_bytes()
    except OSError:
        return b""


def answer(line: socket.socket) -> tuple[int, dict[str, dict[str, str]], str]:
    """Status, body and ``Connection`` of the server's next answer."""
    with closing(HTTPResponse(line)) as response:
        response.begin()
        return response.status, json.loads(response.read()), response.headers.get("Connection", "")


def head(path: str, **more: object) -> bytes:
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in more.items())
    return HEAD.format(path=path, more=lines).encode()


def test_it_works(line: socket.socket) -> None:
    """Fifty gigabytes are announced, and refused before one byte of them is sent."""
    line.sendall(head("/v1/check", Content_Length=50_000_000_000, Expect="100-continue"))
    first = line.recv(13, socket.MSG_PEEK | socket.MSG_WAITALL)
    assert first == b"HTTP/1.1 413 ", "and no “100 Continue” before it"
    status, said, connection = answer(line)
    assert said["error"] == {"code": "too_large", "message": "The body is larger than 1 MB."}
    assert (status, connection, line.recv(1)) == (413, "close", b"")


@pytest.mark.parametrize("path", PATHS)
def test_a_client_that_sends_all_the_same_reads_the_refusal(line: socket.socket, path: str) -> None:
    """It looks for an answer only when all is sent; the connection has to stand until then."""
    line.sendall(head(path, Content_Length=2 * MB) + b"x" * (2 * MB))
    status, said, _ = answer(line)
    assert status == 413
    if path in GATEWAYS:
        error: object = said["error"]
        kind = error.get("type") if isinstance(error, dict) else None
        assert kind == GATEWAYS[path], "in the words of the dialect that is spoken there"


def test_a_body_without_an_end_keeps_nothing_on_the_disk(server: int) -> None:
    """Also of a page; who goes on sending has to wait, and is cut off."""

    def sent_to(path: str) -> int:
        with closing(socket.create_connection(("127.0.0.1", server), timeout=60)) as line:
            line.sendall(head(path, Transfer_Encoding="chunked"))
            sent = 0
            with suppress(OSError):  # a reset or a broken pipe, whichever comes first
                while sent < 1_000 * MB:
                    line.sendall(b"10000\r\n" + b"x" * 65_536 + b"\r\n")
                    sent += 65_536
            return sent

    largest = 0
    with ThreadPoolExecutor() as senders:
        calls = [senders.submit(sent_to, path) for path in ("/v1/check", "/api/chat", "/admin/login/")]
        while wait(calls, 0.05).not_done:
            largest = max(largest, kept_by(server))
    assert max(call.result() for call in calls) < 100 * MB
    assert largest <= len(calls) * MB


def test_the_longest_body_that_may_be_sent_is_taken_and_the_connection_stays(line: socket.socket) -> None:
    """Without a key it is refused for that, twice on one connection; one byte more is too long."""
    for _ in range(2):
        line.sendall(head("/v1/check", Content_Length=MB) + b"x" * MB)
        assert answer(line)[0] == 401
    whole = b"%x\r\n" % (MB + 1) + b"x" * (MB + 1) + b"\r\n0\r\n\r\n"
    line.sendall(head("/v1/check", Transfer_Encoding="chunked") + whole)
    assert answer(line)[0] == 413


async def test_other_servers_hand_on_no_more_than_the_limit() -> None:
    """Those that call the application before the body is there: it gets none of one that is too long."""
    came: list[int] = []
    lengths: list[bytes] = []

    async def application(scope: Message, receive: object, send: object) -> None:
        while True:
            message = await receive()  # type: ignore[operator]
            if message["type"] == "http.disconnect":
                return
            came.append(len(message["body"]))
            if not message["more_body"]:
                lengths[:] = [value for name, value in scope["headers"] if name == b"content-length"]

    async def body(headers: list[tuple[bytes, bytes]], pieces: int) -> int:
        waiting: asyncio.Queue[Message] = asyncio.Queue()
        for _ in range(pieces):
            waiting.put_nowait({"type": "http.request", "body": b"x" * 262_144, "more_body": True})
        waiting.put_nowait({"type": "http.request", "body": b"", "more_body": False})
        waiting.put_nowait({"type": "http.disconnect"})
        came.clear()
        await Bounded(application)({"type": "http", "headers": headers}, waiting.get, waiting.put)
        assert waiting.empty(), "the rest is read, and thrown away"
        return sum(came)

    assert most() == settings.DATA_UPLOAD_MAX_MEMORY_SIZE == MB
    assert (await body([], 4), lengths) == (MB, [])
    assert (await body([], 40), lengths) == (MB, [b"1048577"])
    assert (await body([(b"content-length", b"50000000000")], 40), lengths) == (0, [b"1048577"])
