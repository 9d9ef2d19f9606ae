"""Guarded streams for Python programs: the same events, as calls of yours.

    class Print(StreamCallbacks):
        def on_text(self, text: str) -> None:
            print(text, end="")

    handle = await start_stream({"prompt": "Say hello"}, Print(), visitor=Visitor(client="mine"), log=MemoryLog())
    outcome = await handle.wait()

Protects two rules: a callback sees only what a reader may see, because it reads the session's log like any reader; and
one that raises is logged and breaks nothing.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Mapping
from contextlib import aclosing

import structlog

from streaming.chat import Asked, start_chat
from streaming.conf import Conf, conf
from streaming.correlation import correlation_of
from streaming.frames import StartFrame, frame_of
from streaming.log import SessionLog
from streaming.reader import follow
from streaming.sessions import Started, Visitor

logger = structlog.get_logger(__name__)

Input = object
"""A tool's arguments: the object that the model wrote, or its text where that is no JSON."""


class StreamCallbacks:
    """Override what you need; every method may be a coroutine."""

    def on_text(self, text: str) -> object:
        """Released answer text, a redaction's placeholder included."""

    def on_thinking(self, text: str) -> object:
        """Released thinking."""

    def on_tool_use(self, name: str, input: Input) -> object:
        """A tool is about to run with these arguments."""

    def on_tool_progress(self, name: str, input: Input, message: str, progress: float) -> object:
        """How far a tool is, 0..1."""

    def on_tool_result(self, name: str, input: Input, result: str) -> object:
        """What a tool returned."""

    def on_tool_error(self, name: str, input: Input, error: str) -> object:
        """Why a tool did not."""

    def on_error(self, error: str, recoverable: bool) -> object:
        """Something failed or is being retried; ``recoverable``: trying again can help."""

    def on_state_change(self, old: str, new: str) -> object:
        """ACTIVE, MONITORING, COMPLETE; ``old`` is empty at first."""


class StreamHandle:
    """A running stream. ``correlation_id``: the id of all that is logged and stored about it."""

    def __init__(self, started: Started, log: SessionLog, task: asyncio.Task[str]) -> None:
        self.session_id, self.correlation_id = started.session_id, started.correlation_id
        self._log = log
        self._task = task

    async def interrupt(self) -> None:
        """Stop it at once, also while a token or a tool is waited for. Raises ``LogUnavailable``."""
        await self._log.interrupt(self.session_id)

    async def wait(self) -> str:
        """The outcome, once the session is COMPLETE."""
        return await self._task


async def start_stream(
    start: Mapping[str, object],
    callbacks: StreamCallbacks,
    *,
    visitor: Visitor,
    log: SessionLog,
    policy: str = "basic",
    monitor: bool = False,
    settings: Conf | None = None,
    correlation_id: str = "",
) -> StreamHandle:
    """Begin an answer; ``start`` has the fields of a start frame. Raises ``FrameError`` with the field's name.

    ``monitor``: every guardrail of the policy runs in MONITOR, and findings say what it would have done.
    ``correlation_id``: the one of what you do it for; without one, or with one that is not well formed, a new one.
    """
    settings = settings or conf()
    frame = frame_of(json.loads(json.dumps({**start, "type": "start"})), settings)
    assert isinstance(frame, StartFrame)
    asked = Asked(visitor, policy, monitor, correlation_id=correlation_of(correlation_id))
    started = await start_chat(frame, asked, log, settings)
    task = asyncio.get_running_loop().create_task(
        _read(started.session_id, started.correlation_id, callbacks, log, settings)
    )
    return StreamHandle(started, log, task)


async def _read(
    session_id: str, correlation_id: str, callbacks: StreamCallbacks, log: SessionLog, settings: Conf
) -> str:
    told = _Told(callbacks)
    structlog.contextvars.bind_contextvars(correlation_id=correlation_id)  # of this task alone
    async with aclosing(follow(log, session_id, 0, settings, correlation_id=correlation_id)) as batches:
        async for batch in batches:
            for event in batch:
                await told.tell(event)
    return told.outcome


class _Told:
    """From events to calls: what a call needs to know of the events before it."""

    def __init__(self, callbacks: StreamCallbacks) -> None:
        self._callbacks = callbacks
        self._tools: dict[str, tuple[str, Input]] = {}
        self._state = ""
        self.outcome = ""

    async def tell(self, event: Mapping[str, object]) -> None:
        """Call what belongs to the event."""
        on = self._callbacks
        name, given = self._tools.get(str(event.get("id")), ("", None))
        match event["type"]:
            case "message_stream" if event["chunk"]:
                thinking = event["channel"] == "thinking"
                await self._call(on.on_thinking if thinking else on.on_text, event["chunk"])
            case "redaction":
                await self._call(on.on_thinking if event["channel"] == "thinking" else on.on_text, event["label"])
            case "tool_call":
                made = self._tools[str(event["id"])] = (str(event["name"]), _input(str(event["arguments"])))
                await self._call(on.on_tool_use, *made)
            case "tool_progress":
                await self._call(on.on_tool_progress, name, given, event["message"], event["progress"])
            case "tool_result" if "error" in event:
                await self._call(on.on_tool_error, name, given, event["error"])
            case "tool_result":
                await self._call(on.on_tool_result, name, given, event["result"])
            case "error":
                await self._call(on.on_error, event["message"], event["recoverable"])
            case "state":
                old, self._state = self._state, str(event["state"])
                self.outcome = str(event.get("outcome") or self.outcome)
                await self._call(on.on_state_change, old, self._state)

    async def _call(self, method: object, *args: object) -> None:
        assert callable(method)
        try:
            if inspect.isawaitable(found := method(*args)):
                await found
        except Exception:
            logger.exception("callback_failed", callback=getattr(method, "__name__", ""))


def _input(arguments: str) -> Input:
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
