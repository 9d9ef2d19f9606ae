"""A network that fails by script: before and after the server has acted, twice, late, out of order.

Seeded, so that a failure of a test can be had again. Requests do reach the real server, as the script says.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from random import Random

import httpx


class BadNetwork(httpx.AsyncBaseTransport):
    """Between a client and a server. ``share`` of the requests fail, each in a way that ``ways`` names."""

    def __init__(self, seed: int, share: float, ways: tuple[str, ...] = ()) -> None:
        self._random, self._share = Random(seed), share
        self._real = httpx.AsyncHTTPTransport()
        self._names = ways or WAYS
        self._late: list[tuple[int, httpx.Request]] = []
        self._beside: set[asyncio.Task[httpx.Response]] = set()
        self.failures: Counter[str] = Counter()
        self.delivered = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Deliver, or fail."""
        await request.aread()
        due = [late for left, late in self._late if left <= 1]
        self._late = [(left - 1, late) for left, late in self._late if left > 1]
        for late in due:
            await self._deliver(late)
        if self._random.random() >= self._share:
            return await self._deliver(request)
        way = self._random.choice(self._names)
        self.failures[way] += 1
        match way:
            case "dropped before":
                raise httpx.ConnectError("no way to the server", request=request)
            case "dropped after":
                await self._deliver(request)
                raise httpx.ReadError("the connection was reset", request=request)
            case "cut in the answer":
                await self._deliver(request)
                raise httpx.RemoteProtocolError("the answer is incomplete", request=request)
            case "twice":
                await self._deliver(request)
                return await self._deliver(request)
            case "both at once":  # the time limit passes, and the first try is still on its way beside the second
                self._beside.add(asyncio.create_task(self._deliver(request)))
                raise httpx.ReadTimeout("no answer in time", request=request)
            case "late":  # overtaken by later requests
                self._late.append((self._random.randint(1, 3), request))
                raise httpx.ReadTimeout("no answer in time", request=request)
            case "gateway before":
                return httpx.Response(503, headers={"Retry-After": "0"}, text="<h1>Busy</h1>", request=request)
            case "gateway after":
                await self._deliver(request)
                return httpx.Response(502, text="<h1>Bad gateway</h1>", request=request)
            case _:
                raise ValueError(way)

    async def aclose(self) -> None:
        """Deliver what is still under way, then close."""
        for _, late in self._late:
            await self._deliver(late)
        await asyncio.gather(*self._beside)
        await self._real.aclose()

    async def _deliver(self, request: httpx.Request) -> httpx.Response:
        self.delivered += 1
        again = httpx.Request(request.method, request.url, headers=request.headers, content=request.content)
        response = await self._real.handle_async_request(again)
        await response.aread()
        return response


WAYS = (
    "dropped before", "dropped after", "cut in the answer", "twice", "both at once", "late", "gateway before",
    "gateway after",
)  # fmt: skip
