"""The project's ASGI application with one provider more, whose tokens say when they were sent.

Served by the benchmarks' own web processes, so that a reader in another process knows how late each token is: both
read the same clock of the machine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping

from project.asgi import application as application  # sets Django up, so it comes first
from streaming.core.events import ProviderEvent, Stopped, TextDelta
from streaming.providers.base import Provider, ProviderRequest
from tests.bench.stamps import stamp

AT_ONCE = 5
"""Tokens that nobody waits for: more than a rule holds back."""


class Stamped(Provider):
    """Answers the prompt "TOKENS RATE": so many tokens, so many a second; 0: as fast as they are taken.

    The first ones come at once, so that every reader soon has words on its screen.
    """

    name = "stamped"
    label = "Stamped"

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> Stamped:
        """Always there."""
        return cls()

    @property
    def default_model(self) -> str:
        """Its only one."""
        return "stamped-1"

    async def stream(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        """The tokens, each when its time has come, late or not."""
        tokens, rate = request.messages[-1].text.split()
        pause = 1 / float(rate) if float(rate) else 0.0
        began = time.monotonic()
        for n in range(int(tokens)):
            due = began + max(0, n - AT_ONCE) * pause
            await asyncio.sleep(max(0.0, due - time.monotonic()) if pause else 0)
            yield TextDelta(stamp(time.monotonic()))
        yield Stopped("stop")
