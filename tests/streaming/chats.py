"""Whole sessions with a provider of the test's own: begun as every caller begins one, and read to their end."""

from __future__ import annotations

from dataclasses import dataclass

from guardrails.policy import Policy
from streaming.chat import Asked, Own, start_chat
from streaming.conf import Conf
from streaming.frames import StartFrame
from streaming.log import MemoryLog, SessionLog
from streaming.models import AuditSession, Message
from streaming.providers.base import Provider
from streaming.sessions import Visitor
from tests.streaming.pumping import QUICK, grown

Event = dict[str, object]
WAIT_S = 120.0
"""For one session on a machine that does much else."""


@dataclass(frozen=True, slots=True)
class Chatted:
    """A session that is over: what its readers were told, and what is stored of it."""

    events: list[Event]
    row: AuditSession
    message: Message

    def of(self, kind: str) -> list[Event]:
        """The events of one type."""
        return [event for event in self.events if event["type"] == kind]

    @property
    def done(self) -> Event:
        """The one event that says that the answer is over."""
        (done,) = self.of("done")
        return done

    @property
    def codes(self) -> list[object]:
        """The codes of its error events, in order."""
        return [event["code"] for event in self.of("error")]

    @property
    def shape(self) -> list[tuple[str, frozenset[str]]]:
        """Types and fields in order; runs of chunks count as one, and holds and errors not at all."""
        out: list[tuple[str, frozenset[str]]] = []
        for event in self.events:
            one = (str(event["type"]), frozenset(event))
            if event["type"] not in ("hold", "error") and (not out or out[-1] != one):
                out.append(one)
        return out


async def no_checks(_: str) -> None:
    """Nobody takes deferred checks."""


async def chat(
    provider: Provider | None,
    policy: Policy,
    *,
    frame: StartFrame | None = None,
    flagged: bool = False,
    settings: Conf = QUICK,
    log: SessionLog | None = None,
) -> Chatted:
    """A session from its start frame to its end. ``flagged``: the rollout flag decides whether it streams.

    ``provider`` None: the one that the frame names, with whoever stands behind it.
    """
    log = log or MemoryLog()
    own = Own(provider=provider, policy=policy, queue_checks=no_checks, flagged=flagged)
    frame = frame or StartFrame(type="start", prompt="hello")
    started = await start_chat(frame, Asked(Visitor(session_key="s"), "", own=own), log, settings)

    async def over() -> bool:
        return any(e["type"] == "state" and e.get("outcome") for e in await log.read(started.session_id, 0, 10_000))

    await grown(log, started.session_id, over, WAIT_S)
    return Chatted(
        await log.read(started.session_id, 0, 10_000),
        await AuditSession.objects.aget(pk=started.session_id),
        await Message.objects.aget(pk=started.answer_id),
    )
