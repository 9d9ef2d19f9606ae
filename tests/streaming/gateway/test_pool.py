"""Which connection a request gets: what httpcore does, without a look at each connection for each connection."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import httpcore
import pytest
from httpcore._async.connection_pool import AsyncPoolRequest

from streaming.gateway.http2 import TellingPool

HERE, THERE = (httpcore.URL(f"http://{host}.example/") for host in ("here", "there"))


@dataclass(eq=False)
class Fake(httpcore.AsyncConnectionInterface):
    """A connection in a state. ``looked``: how often it was asked for it."""

    state: str = "idle"
    url: httpcore.URL = field(default_factory=lambda: HERE)
    looked: Counter[str] = field(default_factory=Counter)

    def _is(self, *states: str) -> bool:
        self.looked[states[0]] += 1
        return self.state in states

    def is_closed(self) -> bool:
        return self._is("closed")

    def has_expired(self) -> bool:
        return self._is("expired")

    def is_idle(self) -> bool:
        return self._is("idle", "expired")

    def is_available(self) -> bool:
        return self._is("idle", "shared")

    def can_handle_request(self, origin: httpcore.Origin) -> bool:
        return origin == self.url.origin


def made(states: str, *, most: int = 20, kept: int = 20, pool: type[httpcore.AsyncConnectionPool] = TellingPool
         ) -> tuple[httpcore.AsyncConnectionPool, list[Fake]]:  # fmt: skip
    """A pool of connections in these states."""
    found = pool(max_connections=most, max_keepalive_connections=kept)
    connections = [Fake(state) for state in states.split()]
    found._connections.extend(connections)
    return found, connections


def asked(pool: httpcore.AsyncConnectionPool, url: httpcore.URL = HERE) -> AsyncPoolRequest:
    request = AsyncPoolRequest(httpcore.Request("POST", url))
    pool._requests.append(request)
    return request


@pytest.mark.parametrize(
    "states", ["", "idle", "active idle active", "active shared", "closed expired active", "idle idle"]
)
@pytest.mark.parametrize("url", [HERE, THERE], ids=["here", "there"])
@pytest.mark.parametrize("room", [0, 1, 20])
async def test_a_request_gets_what_httpcore_would_give_it(states: str, url: httpcore.URL, room: int) -> None:
    """With room, without room, with another host's connections, with none."""
    outcomes, most = [], max(1, len(states.split())) + room
    for kind in (TellingPool, httpcore.AsyncConnectionPool):
        pool, connections = made(states, most=most, pool=kind)
        request = asked(pool, url)
        closing = pool._assign_requests_to_connections()
        got = request.connection
        outcomes.append(
            (
                [connections.index(one) for one in closing if isinstance(one, Fake)],
                [connections.index(one) if isinstance(one, Fake) else "new" for one in pool._connections],
                connections.index(got) if isinstance(got, Fake) else got is None,
            )
        )
    assert outcomes[0] == outcomes[1]


async def test_idle_connections_are_kept_beside_many_that_are_at_work() -> None:
    """As many as are to be kept, the youngest; it is not their number that counts who work."""
    pool, connections = made("active " * 10 + "idle " * 4, kept=3)
    assert pool._assign_requests_to_connections() == [connections[10]]
    assert pool._connections == connections[:10] + connections[11:]


async def test_two_requests_at_once_get_two_connections() -> None:
    """One that is idle is given away once."""
    pool, connections = made("idle idle")
    first, second = asked(pool), asked(pool)
    pool._assign_requests_to_connections()
    assert {first.connection, second.connection} == set(connections)


async def test_each_connection_is_looked_at_a_few_times_however_many_there_are() -> None:
    """At the beginning and at the end of each request."""
    pool, connections = made("idle " * 50 + "active " * 150, most=1_000, kept=100)
    asked(pool)
    pool._assign_requests_to_connections()
    assert max(sum(one.looked.values()) for one in connections) <= 5
