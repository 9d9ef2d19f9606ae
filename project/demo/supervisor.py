"""Keeps a few services running and ends them together.

The rules it protects: services start in stages, a stage when the one before is ready; the end of an essential service,
or a wish to stop, ends all of them, last stage first; any other service that ends is reported and started again after
``restart_delay_s``; nothing outlives the supervisor.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from project.demo.child import Child, Say, Service, why

Sleep = Callable[[float], Awaitable[None]]
_POLL_S = 0.1


class StartError(Exception):
    """A service could not be run, ended, or did not answer in time, before it had ever been ready."""


class Supervisor:
    """Runs services until one that is essential ends or ``stop`` is called."""

    def __init__(
        self, say: Say, *, restart_delay_s: float = 5.0, ready_limit_s: float = 60.0, sleep: Sleep = asyncio.sleep
    ) -> None:
        self._say = say
        self._restart_delay_s = restart_delay_s
        self._ready_limit_s = ready_limit_s
        self._sleep = sleep
        self._over = asyncio.Event()
        self._hurry = asyncio.Event()
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._failure: StartError | None = None
        self._status = 0
        self.children: dict[str, Child] = {}

    def stop(self) -> None:
        """Ask for an orderly end; the second time, for an immediate one."""
        if self._over.is_set():
            self._hurry.set()
        self._over.set()

    async def run(self, stages: Sequence[Sequence[Service]], *, on_ready: Callable[[], None]) -> int:
        """Start the stages, call ``on_ready`` when all of them are up, return the exit status (0 after ``stop``).

        Raises ``StartError`` when a service never comes up; by then everything has been stopped again.
        """
        try:
            for stage in stages:
                await self._unless_over(asyncio.gather(*[self._launch(service) for service in stage]))
                if self._over.is_set():
                    break
            else:
                on_ready()
            await self._over.wait()
        finally:
            self._over.set()
            for stage in reversed(stages):
                await self._end(stage)
        if self._failure:
            raise self._failure
        return self._status

    async def _unless_over(self, wanted: Awaitable[object]) -> None:
        """Wait for ``wanted``, but not longer than until everything is to end."""
        waits = {asyncio.ensure_future(wanted), asyncio.ensure_future(self._over.wait())}
        _, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in pending:
            wait.cancel()

    def _launch(self, service: Service) -> Awaitable[object]:
        """Begin to keep a service; the answer is there when it serves."""
        started = asyncio.Event()
        self._keepers[service.name] = asyncio.create_task(self._keep(service, started))
        return started.wait()

    async def _keep(self, service: Service, started: asyncio.Event) -> None:
        """Run a service again and again; ``started`` is set when it first serves."""
        try:
            while not self._over.is_set():
                code = await self._one_life(service, started)
                if self._over.is_set():
                    return
                if service.essential:
                    self._say("demo", f"the {service.name} process ended ({why(code)}); stopping everything")
                    self._status = 1
                    self._over.set()
                    return
                again = f"starting it again in {self._restart_delay_s:g} s"
                self._say("demo", f"the {service.name} process ended ({why(code)}); {again}")
                await self._unless_over(self._sleep(self._restart_delay_s))
        except (StartError, OSError) as error:
            self._failure = StartError(str(error))
            self._over.set()

    async def _one_life(self, service: Service, started: asyncio.Event) -> int:
        """From start to end; the return code. Leaves no process, however it is left."""
        child = self.children[service.name] = await Child.start(service, self._say)
        end = asyncio.create_task(child.ended())
        if self._over.is_set():  # while it was being started
            child.ask_to_stop()
        try:
            if not started.is_set():
                await self._until_ready(service, end)
                started.set()
            return await asyncio.shield(end)
        finally:
            if not end.done():
                child.kill()
                await end

    async def _until_ready(self, service: Service, end: asyncio.Task[int]) -> None:
        """Return when it serves or everything is to end; raise ``StartError`` if it ended or takes too long."""
        if service.ready is None:
            return
        try:
            async with asyncio.timeout(self._ready_limit_s):
                while not self._over.is_set() and not await service.ready():
                    if end.done():
                        raise StartError(f"{service.name} did not start ({why(end.result())}); its lines above say why")
                    await self._sleep(_POLL_S)
        except TimeoutError:
            raise StartError(f"{service.name} did not answer within {self._ready_limit_s:g} s") from None

    async def _end(self, stage: Sequence[Service]) -> None:
        """Stop one stage: asked first, killed after the longest grace in it, or at once when hurried."""
        services = [service for service in stage if service.name in self._keepers]
        if not services:
            return
        for service in services:
            if child := self.children.get(service.name):
                child.ask_to_stop()
        gone = asyncio.ensure_future(asyncio.wait([self._keepers[service.name] for service in services]))
        hurried = asyncio.ensure_future(self._hurry.wait())
        grace_s = max(service.grace_s for service in services)
        await asyncio.wait({gone, hurried}, timeout=grace_s, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        for service in services:
            if not self._keepers[service.name].done():
                self._say("demo", f"{service.name} does not stop; killing it")
                self.children[service.name].kill()
        await gone
