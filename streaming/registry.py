"""The pumps of this process: who keeps them alive, and who stops them when the server goes.

Exists because asyncio holds tasks weakly, and because a pump must outlive the socket that started it. Protects the
rule that a stopped server records the end of every answer it was streaming: ``shutdown`` cancels all pumps and waits
for their records.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
from collections.abc import Awaitable, Callable, Coroutine

import structlog

logger = structlog.get_logger(__name__)

SHUTDOWN_LIMIT_S = 5.0
NAMED = "pump-"
_tasks: dict[str, asyncio.Task[None]] = {}
_closers: list[Callable[[], Awaitable[None]]] = []
_hooked = False


def spawn(session_id: str, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
    """Run a session's pump as a task of the running loop and keep it until it ends."""
    _hook_server_stop()
    context = own_context()
    task = asyncio.get_running_loop().create_task(work, name=NAMED + session_id, context=context)
    _tasks[session_id] = task
    task.add_done_callback(_ended, context=context)  # without one it would copy the caller's
    return task


def own_context() -> contextvars.Context:
    """A context without the request's: its database thread is closed with the request, what is begun here lives on."""
    context = contextvars.Context()
    context.run(structlog.contextvars.bind_contextvars, **structlog.contextvars.get_contextvars())
    return context


def _ended(task: asyncio.Task[None]) -> None:
    session_id = task.get_name().removeprefix(NAMED)
    _tasks.pop(session_id, None)
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("pump_died", session=session_id, error=type(error).__name__)


def running() -> list[str]:
    """Sessions whose pump runs here."""
    return list(_tasks)


def at_shutdown(close: Callable[[], Awaitable[None]]) -> None:
    """Also do this when the server goes, once no pump runs any more."""
    _closers.append(close)


async def shutdown(limit_s: float = SHUTDOWN_LIMIT_S) -> None:
    """Cancel every pump of this loop and wait until their ends are recorded, at most ``limit_s`` seconds."""
    loop = asyncio.get_running_loop()
    mine = [task for task in _tasks.values() if task.get_loop() is loop]
    for task in mine:
        task.cancel()
    if mine:
        await asyncio.wait(mine, timeout=limit_s)
    for close in _closers:
        await close()


def _hook_server_stop() -> None:
    """Daphne has no ASGI lifespan; its reactor lets us finish before it goes. Other servers rely on the sweep."""
    global _hooked
    reactor = sys.modules.get("twisted.internet.reactor")
    if _hooked or reactor is None or not getattr(reactor, "running", False):
        return
    from twisted.internet.defer import Deferred  # only there when Daphne serves us

    def finish() -> Deferred[None]:
        return Deferred.fromFuture(asyncio.ensure_future(shutdown()))

    reactor.addSystemEventTrigger("before", "shutdown", finish)
    _hooked = True
