"""A dialect on the wire, and the client's end of an answer.

Exists so that a call, its relay and the three dialects meet in one place. Protects the rules that a client that waits
hears something in its own dialect, and that one that has gone ends the upstream's answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from streaming import metrics
from streaming.conf import conf
from streaming.gateway.errors import status_of, worded
from streaming.gateway.gates import Gates
from streaming.gateway.relay import Failed, Over, Relay, Told
from streaming.gateway.speak import Speaker
from streaming.gateway.upstream import Dialect, UpstreamSaid
from streaming.gateway.walker import Json, Walker
from streaming.providers.base import Provider, ProviderRequest

Understood = Callable[[Json, Provider, str], ProviderRequest]


@dataclass(frozen=True, slots=True)
class Front:
    """A dialect. ``frame`` puts a chunk on the wire; ``heartbeat`` is sent while nothing else is, ``done`` at the end.

    ``streams`` is what a request that does not say gets.
    """

    dialect: Dialect
    walker: Callable[[Gates], Walker]
    understood: Understood
    speaker: Callable[[Json, str, str], Speaker]
    frame: Callable[[Json], bytes]
    content_type: str
    heartbeat: bytes
    done: bytes = b""
    streams: bool = False
    passed_headers: tuple[str, ...] = ()

    def alive(self) -> bytes:
        """A sign of life, counted."""
        metrics.GATEWAY_HEARTBEATS.labels(self.dialect).inc()
        return self.heartbeat


def sentence(words: object) -> str:
    """The words of a failure as a sentence."""
    said = str(words)
    return f"{said[:1].upper()}{said[1:]}."


class Reader:
    """The client's end of a relay."""

    def __init__(self, relay: Relay, task: asyncio.Task[None], front: Front) -> None:
        self._relay = relay
        self._task = task
        self._front = front
        self._closed = False
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Who waits for more learns that nothing comes; nobody reads this behind an end that was told."""
        if not self._relay.told.full():
            self._relay.told.put_nowait(self._relay.broke_off)

    async def _next(self) -> Told:
        """What comes next; the failure where nothing will. Raises ``TimeoutError`` where nothing has for long."""
        queue = self._relay.told
        if queue.empty() and self._task.done():
            return self._relay.broke_off
        async with asyncio.timeout(conf().gateway_heartbeat_s):
            return await queue.get()

    async def first(self, *, may_wait_on: bool) -> Told | None:
        """What comes first: a chunk, or the failure.

        ``may_wait_on``: None when neither comes for longer than clients like to wait: all of the answer is held, or the
        upstream has not begun. What goes wrong from then on is told within the stream.
        """
        while True:
            try:
                return await self._next()
            except TimeoutError:
                if may_wait_on:
                    return None

    async def frames(self, told: Told | None) -> AsyncGenerator[bytes, None]:
        """The answer on the wire. A client that has gone ends it, and with it the upstream's."""
        queue, front = self._relay.told, self._front
        try:
            while told is None:
                yield front.alive()
                told = await self.first(may_wait_on=True)
            while True:
                if isinstance(told, Over):
                    if front.done:
                        yield front.done
                    return
                if isinstance(told, Failed):
                    yield front.frame(self._broken(told))
                    return
                parts = [front.frame(told)]
                while not queue.empty() and len(parts) < 64:
                    following = queue.get_nowait()
                    if not isinstance(following, dict):
                        yield b"".join(parts)
                        told = following
                        break
                    parts.append(front.frame(following))
                else:
                    yield b"".join(parts)
                    while True:
                        try:
                            told = await self._next()
                            break
                        except TimeoutError:
                            yield front.alive()
        finally:
            await self.close()

    async def close(self) -> None:
        """Nobody reads any more."""
        if not self._relay.answered and not self._closed:
            self._closed = True
            self._relay.abandon()
            self._task.cancel()

    def _broken(self, failed: Failed) -> Json:
        if isinstance(failed.error, UpstreamSaid):
            return failed.said if isinstance(failed.said, dict) else {}
        return worded(self._front.dialect, status_of(failed.error), failed.error.code, sentence(failed.said))
