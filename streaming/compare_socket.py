"""``/ws/compare/``: the page that shows one answer three ways.

The gated lane is driven by the same fragments as the live page; the other two by a few of their own, which stand in no
log and are never sent again: they hold what a guardrail would have hidden, and go to the visitor who asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress

import structlog
from django.template.loader import render_to_string

from guardrails.cohorts import Subject
from guardrails.findings import HIDING
from streaming.access import Access
from streaming.answer import block_reason
from streaming.chat import Own, StartRefused, load_running
from streaming.compare import Figures, Race, Teed, offered
from streaming.consumers import ChatConsumer
from streaming.core.events import ErrorEvent
from streaming.fragments import visible
from streaming.frames import StartFrame
from streaming.log import LogUnavailable
from streaming.presentation import pieces
from streaming.providers.base import get_provider

logger = structlog.get_logger(__name__)
_TEMPLATE = "streaming/compare.html"


class CompareConsumer(ChatConsumer):
    """The page's socket. One comparison at a time."""

    async def connect(self) -> None:
        """As every socket."""
        self.race: Race | None = None
        self.teed: Teed | None = None
        self.coming: tuple[Race, Teed] | None = None  # of a comparison that may yet be refused
        self.beside: asyncio.Task[None] | None = None
        self.gated = Figures()
        self.latest = ""
        await super().connect()

    async def disconnect(self, code: int) -> None:
        """The lanes go with the socket; the gated session ends as any other does."""
        await self._stop()
        await super().disconnect(code)

    async def start(self, frame: StartFrame, access: Access) -> None:
        """Refuse what cannot be compared, and begin. Raises ``StartRefused``."""
        if self.active:
            raise StartRefused("busy", "A comparison is under way here; wait for its end.")
        if not offered(frame.scenario):
            raise StartRefused(
                "unknown_scenario", "What is compared is a scenario of the scripted model, or a text of your own.",
                "scenario",
            )  # fmt: skip
        if frame.conversation_id or frame.messages is not None:
            raise StartRefused("not_a_conversation", "A comparison stands alone.", "conversation_id")
        running = await load_running(frame.policy or access.policy, Subject("", access.visitor.user_id))
        race = Race(running.policy)
        self.coming = race, Teed(get_provider("scripted"), race.tell)
        try:
            await super().start(frame, access)
        finally:
            self.coming = None
        self.latest = self.active
        self.beside = asyncio.get_running_loop().create_task(self._lanes(race))

    def occupied(self) -> bool:
        """One that was cut off with the socket before this one gives way."""
        return bool(self.active)

    def own(self, frame: StartFrame) -> Own:
        """The scripted provider, read along; it streams whatever the rollout flag says."""
        assert self.coming is not None
        race, teed = self.coming
        return Own(provider=teed, policy=race.policy, flagged=False)

    async def begun(self) -> None:
        """End what was there before, and clear the page for what comes."""
        assert self.coming is not None
        await self._let_go()
        await self._stop()
        (self.race, self.teed), self.gated, self.latest = self.coming, Figures(), ""
        await self.send(text_data=render_to_string(f"{_TEMPLATE}#cleared", {"policy": self.race.policy}))

    async def interrupt(self, session_id: str, access: Access) -> None:
        """Stop all three."""
        await super().interrupt(session_id, access)
        if self.teed is not None:
            self.teed.stop()

    async def _let_go(self) -> None:
        """End the gated lanes of comparisons that were cut off with the sockets before this one."""
        self.resumed = ""
        for session_id in [name for name, place in self.readers.items() if place.running]:
            self.readers.pop(session_id).stop()
            with suppress(LogUnavailable):  # nobody reads it any more, and that ends it too
                await self.log().interrupt(session_id)

    async def pass_on(self, event: dict[str, object], conversation_id: str) -> None:
        """The event, and what it means for the gated lane's figures."""
        await super().pass_on(event, conversation_id)
        if self.race is None or event["session_id"] != self.latest:
            return
        new = after(self.gated, event, self.race.ms())
        if new != self.gated:
            self.gated = new
            await self._figures("gated", new)

    async def _lanes(self, race: Race) -> None:
        async def show(text: str, waiting: int) -> None:
            await self.send(
                text_data=f'<div hx-swap-oob="beforeend:#raw-text">{visible(text)}</div>'
                f'<span id="buffered-waiting" hx-swap-oob="true">{waiting}</span>'
            )

        try:
            result = await race.run(show)
            checked = result.checked
            content = {
                "raw": result.pieces,
                "message": {"pieces": pieces(checked.visible, checked.redactions)},
                "blocked": checked.blocked,
                "reason": block_reason(checked.blocked, "answer") if checked.blocked else "",
                "withheld": checked.counters.withheld,
            }
            await self.send(text_data=render_to_string(f"{_TEMPLATE}#over", content))
            await self._figures("raw", result.raw)
            await self._figures("buffered", result.buffered)
        except asyncio.CancelledError:
            raise
        except Exception:
            logger.exception("comparison_failed")
            await self.send(text_data=render_to_string(f"{_TEMPLATE}#failed"))
            await self.say(ErrorEvent("internal", "Something went wrong on the server.", recoverable=True))

    async def _figures(self, lane: str, figures: Figures) -> None:
        await self.send(text_data=render_to_string(f"{_TEMPLATE}#figures", {"lane": lane, "of": figures, "oob": True}))

    async def _stop(self) -> None:
        teed, self.teed = self.teed, None
        if teed is not None:
            teed.stop()
        task, self.beside = self.beside, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def after(figures: Figures, event: Mapping[str, object], ms: float) -> Figures:
    """The gated lane's figures after one more event, seen ``ms`` milliseconds after the beginning."""
    match event.get("type"):
        case "message_stream" | "redaction" if figures.first_ms is None and event.get("channel") == "text":
            return Figures(ms, None)
        case "finding" if event.get("action") in HIDING and not event.get("would_have") and event.get("exposed"):
            seen = int(str(event["exposed"]))
            return Figures(figures.first_ms, figures.done_ms, figures.values + 1, figures.characters + seen, ms)
        case "done":
            return Figures(figures.first_ms, ms, figures.values, figures.characters, figures.leaked_ms)
        case _:
            return figures
