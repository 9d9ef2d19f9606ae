"""What the tests' clients do: calls that are sent again, event streams, sockets."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx
from httpx_sse import connect_sse
from websockets.sync.client import ClientConnection, connect

from tests.stack.servers import until

LIMIT_S = 60.0
Json = dict[str, object]


class Refused(Exception):
    """A call that was answered with an error."""

    def __init__(self, status: int, error: Json) -> None:
        super().__init__(f"{status}: {error}")
        self.status, self.error = status, error


@dataclass
class Client:
    """One key. A connection a call, so that any process may get the next one."""

    url: str
    key: str

    @property
    def headers(self) -> dict[str, str]:
        """What each call carries."""
        return {"Authorization": f"Bearer {self.key}"}

    def post(self, path: str, body: Json, at: str = "", **headers: str) -> Json:
        """The answer of one try. Raises ``Refused`` and ``httpx.TransportError``."""
        with httpx.Client(trust_env=False, timeout=LIMIT_S) as http:
            response = http.post((at or self.url) + path, json=body, headers={**self.headers, **headers})
        return _answer(response)

    def post_until_answered(self, path: str, body: Json, at: str = "", **headers: str) -> Json:
        """The same call again, to whoever takes it, for as long as nobody answers."""

        def one_try(to: str) -> Json | None:
            with contextlib.suppress(httpx.TransportError):
                return self.post(path, body, to, **headers)
            return None

        return one_try(at) or until(f"{path} is answered", lambda: one_try(self.url))

    def get(self, path: str, at: str = "") -> Json:
        """The answer of one try."""
        with httpx.Client(trust_env=False, timeout=LIMIT_S) as http:
            return _answer(http.get((at or self.url) + path, headers=self.headers))

    def events(self, path: str, at: str = "", last: object = "") -> Iterator[Json]:
        """A session's events until the stream ends."""
        headers = {**self.headers, **({"Last-Event-ID": str(last)} if last else {})}
        with (
            httpx.Client(trust_env=False, timeout=LIMIT_S) as http,
            connect_sse(http, "GET", (at or self.url) + path, headers=headers) as source,
        ):
            assert source.response.status_code == 200, source.response.read()
            for event in source.iter_sse():
                yield json.loads(event.data)

    @contextlib.contextmanager
    def socket(self, at: str = "") -> Iterator[ClientConnection]:
        """An open ``/ws/stream/``."""
        address = (at or self.url).replace("http://", "ws://") + "/ws/stream/"
        with connect(address, additional_headers=self.headers, proxy=None, open_timeout=LIMIT_S) as made:
            yield made


@dataclass
class Shown:
    """What a reader of a session's events has on the screen."""

    text: str = ""
    events: list[Json] = field(default_factory=list)

    def take(self, event: Json) -> None:
        """Apply one event."""
        self.events.append(event)
        if event["type"] == "message_stream" and event.get("channel") == "text":
            self.text += str(event["chunk"])
        elif event["type"] == "redaction":
            self.text += str(event["label"])

    @property
    def last(self) -> object:
        """The seq of the last event; empty before the first."""
        return self.events[-1]["seq"] if self.events else ""

    def of(self, kind: str) -> list[Json]:
        """The events of one type."""
        return [event for event in self.events if event["type"] == kind]

    @property
    def complete(self) -> bool:
        """Nothing more will come."""
        return any(event["state"] == "COMPLETE" for event in self.of("state"))


def received(made: ClientConnection) -> Json:
    """The next event of a socket."""
    found: Json = json.loads(made.recv(timeout=LIMIT_S))
    assert found["type"] != "error", found
    return found


def _answer(response: httpx.Response) -> Json:
    said: Json = response.json()
    if response.is_error:
        error = said["error"]
        assert isinstance(error, dict)
        raise Refused(response.status_code, error)
    return said
