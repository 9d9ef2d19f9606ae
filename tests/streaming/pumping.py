"""What the pump's tests share: a provider under the test's control, a run on real rows, and the events read back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from channels.db import database_sync_to_async

from guardrails.findings import AppliesTo
from guardrails.policy import Policy, compile_policy
from guardrails.selectors import ShadowPolicy
from streaming import sessions
from streaming.bookends import Run, policy_ref, prompt_metadata
from streaming.checks import check_text, looked_at
from streaming.conf import Conf
from streaming.core.events import ProviderEvent, TextDelta
from streaming.log import MemoryLog, SessionLog
from streaming.providers.base import ChatMessage, Provider, ProviderRequest
from streaming.providers.schedule import Schedule
from streaming.pump import Pump, Surroundings
from streaming.resilience import Upstreams
from streaming.sessions import NewSession, Visitor

SSN = "536-22-8145"
DOCUMENT: dict[str, object] = {
    "policy": "trial",
    "guardrails": [
        {"name": "pii", "kind": "pii", "action": "redact", "config": {"entities": {"ssn": True, "email": True}}},
        {"name": "heron", "kind": "regex", "action": "block",
         "config": {"rules": [{"id": "h", "pattern": "blue heron", "ignore_case": True}]}},
        {"name": "harm", "kind": "ai_judge", "applies_to": ["response"], "config": {"rubric": "harm"}},
    ],
}  # fmt: skip
QUICK = Conf(write_through_s=0.01, log_poll_s=0.05, idle_check_s=0.1)


def policy_of(*extra: Mapping[str, object], without: str = "") -> Policy:
    """The trial policy, with guardrails added or one left out."""
    own = DOCUMENT["guardrails"]
    assert isinstance(own, list)
    kept = [entry for entry in own if entry["name"] != without]
    return compile_policy({**DOCUMENT, "guardrails": [*kept, *extra]}, version=3, digest="sha256:trial")


class Rest:
    """A provider that asks how long it may rest, and goes on at once."""


Step = str | ProviderEvent | Exception | asyncio.Event | Rest | float


@dataclass
class Controlled(Provider):
    """Streams ``script``: text, events, an exception to raise, an ``asyncio.Event`` to wait for, or seconds to pass.

    ``rests``: what it was told at each ``Rest``, in seconds. ``woken``: how often it slept because of a number.
    """

    script: Sequence[Step] = ()
    asked: list[ProviderRequest] = field(default_factory=list)
    rests: list[float] = field(default_factory=list)
    woken: int = 0
    closed: bool = False

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> None:
        """Never offered."""

    @property
    def default_model(self) -> str:
        """A name to find again."""
        return "controlled-1"

    async def _sleep(self, seconds: float) -> None:
        self.woken += 1
        await asyncio.sleep(seconds)

    async def stream(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        """The script, step by step."""
        self.asked.append(request)
        schedule = Schedule(request.rest_s, self._sleep)
        try:
            for step in self.script:
                if isinstance(step, Rest):
                    self.rests.append(request.rest_s())
                elif isinstance(step, float):
                    await schedule.after(step)
                elif isinstance(step, asyncio.Event):
                    await step.wait()
                elif isinstance(step, Exception):
                    raise step
                else:
                    yield TextDelta(step) if isinstance(step, str) else step
        finally:
            self.closed = True


class Time:
    """A clock that goes only when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Trial:
    """One session under test."""

    provider: Controlled
    log: MemoryLog
    session_id: str
    answer_id: str
    conversation_id: str
    pump: Pump
    queued: list[str]

    async def events(self) -> list[dict[str, object]]:
        """Everything in the log so far."""
        return await self.log.read(self.session_id, 0, 100_000)

    async def of(self, kind: str) -> list[dict[str, object]]:
        """The events of one type."""
        return [event for event in await self.events() if event["type"] == kind]

    async def shown(self) -> str:
        """What a reader has put together from chunks and chips of the answer."""
        text = ""
        for event in await self.events():
            if event.get("message_id") != self.answer_id or event.get("channel") != "text":
                continue
            if event["type"] == "message_stream":
                text += str(event["chunk"])
            elif event["type"] == "redaction":
                assert event["at"] == len(text)
                text += str(event["label"])
        return text

    async def until(self, kind: str, count: int = 1) -> None:
        """Wait until the log has so many events of this type."""

        async def so() -> bool:
            return len(await self.of(kind)) >= count

        await grown(self.log, self.session_id, so)

    async def until_shown(self, text: str) -> None:
        """Wait until a reader has put together exactly this."""

        async def so() -> bool:
            return await self.shown() == text

        await grown(self.log, self.session_id, so)


async def grown(log: SessionLog, session_id: str, so: Callable[[], Awaitable[bool]], limit_s: float = 10) -> None:
    """Wait until it is ``so``, looking each time that the session's log has grown."""
    async with asyncio.timeout(limit_s), log.attend(session_id) as wake:
        wake.clear()  # before each look: what comes while we look wakes us
        while not await so():
            await wake.wait()
            wake.clear()


async def trial(
    script: Sequence[Step],
    *,
    prompt: str = "hello",
    policy: Policy | None = None,
    log: MemoryLog | None = None,
    settings: Conf = QUICK,
    clock: Time | None = None,
    history: tuple[ChatMessage, ...] = (),
    workers: bool = True,
    shadow: ShadowPolicy | None = None,
    monitor: bool = False,
) -> Trial:
    """A session whose rows exist and whose pump has not begun."""
    policy = policy or policy_of()
    provider, log, queued = Controlled(script), log or MemoryLog(), []
    checked = await check_text(
        policy, prompt, applies_to=AppliesTo.PROMPT, channel="prompt", monitor=monitor, later=True
    )
    new = NewSession(
        visitor=Visitor(session_key="browser"),
        prompt=checked.visible,
        policy=policy_ref(policy),
        provider="controlled",
        model="controlled-1",
        prompt_metadata=prompt_metadata(checked),
        blocked=checked.blocked is not None,
        monitor=monitor,
        shadow=shadow.version if shadow else 0,
    )
    started = await database_sync_to_async(sessions.start_session)(new)
    request = replace(ProviderRequest(()), messages=(*history, ChatMessage("user", checked.visible)))

    async def queue(session_id: str) -> None:
        queued.append(session_id)

    async def alive() -> bool:
        return workers

    around = Surroundings(log, settings, queue, alive, *([clock] if clock else []))
    looked = (looked_at(checked, prompt, AppliesTo.PROMPT, "prompt"),)
    run = Run(started, policy, monitor, prompt, checked, Upstreams((provider,)), request, shadow=shadow, looked=looked)
    pump = Pump(run, around)
    return Trial(provider, log, started.session_id, started.answer_id, started.conversation_id, pump, queued)
