"""A conversation in this process: no broker, no worker, no web server; the same sessions as everywhere else.

Exists so that guardrails can be tried from a terminal with nothing running. Sessions, findings and messages are stored
as ever; events go through a log in memory; deferred checks are made here as soon as the answer is over, because there
is nobody else to make them. Protects two rules: an interrupt stops the answer and keeps what was shown, and a check
that is not waited for stays open in the database, where a worker finds it once its lease has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import aclosing
from dataclasses import dataclass, field
from uuid import uuid4

from channels.db import database_sync_to_async

from guardrails.policy import Policy
from streaming import registry, selectors
from streaming.chat import Asked, Own, start_chat
from streaming.conf import Conf, conf
from streaming.core.events import StateChange
from streaming.deferred import run_deferred
from streaming.frames import StartFrame
from streaming.log import MemoryLog
from streaming.providers.base import Provider
from streaming.reader import follow
from streaming.sessions import State, Visitor
from streaming.shadow.worker import open_shadow_checks, run_shadow_check
from streaming.terminal.views import View

DEFAULT_POLICY = "basic"


class Quit(Exception):
    """The user wants out, now."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What was asked for on the command line; ``policy`` or ``provider`` objects stand in for what is set up here."""

    provider: str = "scripted"
    model: str = ""
    policy_name: str = ""
    tools: bool = False
    provider_object: Provider | None = None
    policy: Policy | None = None


@dataclass(slots=True)
class Talk:
    """One conversation. ``ask`` again and again; ``interrupt`` from a signal handler of the same loop."""

    wishes: Wishes
    view: View
    settings: Conf = field(default_factory=conf)
    _visitor: Visitor = field(default_factory=lambda: Visitor(session_key=f"terminal-{uuid4().hex}"))
    _log: MemoryLog = field(default_factory=MemoryLog)
    _conversation_id: str = ""
    _session_id: str = ""
    _state: str = ""
    _outcome: str = ""
    _asked_to_stop: bool = False
    _answering: asyncio.Task[None] | None = None
    _checking: asyncio.Task[None] | None = None
    _stopping: asyncio.Task[None] | None = None

    async def ask(self, prompt: str) -> str:
        """One answer, shown as it comes; returns its outcome. Raises ``StartRefused``, and ``Quit``."""
        self._session_id = self._state = self._outcome = ""
        self._asked_to_stop = False
        self._log = MemoryLog()
        self._answering = asyncio.create_task(self._answer(prompt))
        try:
            await asyncio.wait({self._answering})
            with contextlib.suppress(asyncio.CancelledError):
                self._answering.result()
        finally:
            self._answering.cancel()
            await self._leave()
        if self._answering.cancelled() and self._state != State.MONITORING:
            raise Quit
        return self._outcome

    def interrupt(self) -> None:
        """First: stop the answer, or the wait for its deferred checks. Again: stop everything."""
        assert self._answering is not None
        if self._asked_to_stop or not self._session_id or self._state == State.MONITORING:
            self._answering.cancel()
        else:
            self._asked_to_stop = True
            self._stopping = asyncio.create_task(self._log.interrupt(self._session_id))

    async def _answer(self, prompt: str) -> None:
        wishes = self.wishes
        # Whoever sits at a terminal wants to see it stream, wherever the roll-out of the service stands.
        own = Own(wishes.provider_object, wishes.policy, self._queue_checks, flagged=False)
        fields: dict[str, object] = {"type": "start", "prompt": prompt, "provider": wishes.provider}
        fields |= {"model": wishes.model, "policy": wishes.policy_name, "conversation_id": self._conversation_id}
        frame = StartFrame.model_validate({**fields, "tools": wishes.tools})
        started = await start_chat(frame, Asked(self._visitor, DEFAULT_POLICY, own=own), self._log, self.settings)
        self._session_id, self._conversation_id = started.session_id, started.conversation_id
        self.view.begin()
        try:
            async with aclosing(
                follow(self._log, started.session_id, 0, self.settings, correlation_id=started.correlation_id)
            ) as batches:
                async for batch in batches:
                    for event in batch:
                        if event["type"] == StateChange.type:
                            self._state, self._outcome = str(event["state"]), str(event.get("outcome") or "")
                    self.view.show(batch)
        finally:
            self.view.end()

    async def _queue_checks(self, session_id: str) -> None:
        self._checking = asyncio.create_task(self._check(session_id))

    async def _check(self, session_id: str) -> None:
        ids = await database_sync_to_async(
            lambda: list(selectors.open_checks(session_id).values_list("pk", flat=True))
        )()
        beside = await database_sync_to_async(
            lambda: list(open_shadow_checks(session_id).values_list("pk", flat=True))
        )()
        await asyncio.gather(*(run_deferred(check_id, self._log) for check_id in ids))
        for check_id in beside:  # few of them may run at once
            await run_shadow_check(check_id)

    async def _leave(self) -> None:
        """Nothing of this answer runs on: its pump has recorded the end, and no check is under way."""
        await registry.shutdown()
        if self._checking is not None:
            self._checking.cancel()
            await asyncio.wait({self._checking})
            self._checking = None
