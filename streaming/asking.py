"""Guardrails that are asked while an answer runs: each in a task of its own, its verdict through the pump's inbox.

Exists so that the pump is only a loop. Protects two rules: what the answer waits for and what only the session's end
waits for are never mixed up, and whatever guardrails find in texts that did not wait for them belongs to the session,
however the answer ended. A guardrail that does not decide is never waited for: of the answer's own text a worker is
asked where it has fallen too far behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import replace

from guardrails.findings import Verdict
from guardrails.kinds.base import CheckRequest, Turn
from guardrails.policy import Guardrail, Policy
from streaming import totals
from streaming.answer import Answer
from streaming.answer_lanes import Question
from streaming.checks import MAX_UNANSWERED, Later, run_check, status_after
from streaming.core.events import GuardrailStatus, ServerEvent
from streaming.inbox import Item, Judged, JudgedLater, Stop, Tick
from streaming.wake import Line

MAX_BEHIND = 50
"""Texts that guardrails which do not decide may still have to be asked about while an answer streams."""
FAR_BEHIND = 1_000
"""With so many of them the provider waits: of what only a guardrail here can be asked about (a tool's result)."""


class Asking:
    """The questions of one answer. ``turns``: the conversation before it, for guardrails that want it. ``clock``:
    seconds.
    """

    __slots__ = (
        "_answer", "_clock", "_hits", "_inbox", "_later", "_policy", "_slots", "_turns", "_waited_for", "overtaken",
        "stopped",
    )  # fmt: skip

    def __init__(
        self, policy: Policy, answer: Answer, turns: Callable[[], tuple[Turn, ...]], inbox: Line[Item],
        clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self._policy, self._answer, self._turns, self._inbox, self._clock = policy, answer, turns, inbox, clock
        self._waited_for: dict[asyncio.Task[None], Question] = {}
        self._later: dict[asyncio.Task[None], Later] = {}
        self._slots: asyncio.Semaphore | None = None
        self._hits: tuple[tuple[str, str], ...] = ()  # guardrail, state; most answers have none
        self.overtaken: tuple[Guardrail, ...] = ()
        """Those that were not asked about all of the answer's text: a worker is, about all of it."""
        self.stopped = False
        """Somebody has stopped the answer, or its session, while it was heard out."""

    @property
    def busy(self) -> bool:
        """Whether the answer waits for anybody."""
        return bool(self._waited_for)

    @property
    def full(self) -> bool:
        """Whether the provider has to wait until guardrails have answered."""
        return len(self._later) >= FAR_BEHIND or self._answer.unanswered >= MAX_UNANSWERED

    @property
    def waited_for(self) -> tuple[asyncio.Task[None], ...]:
        """Guardrails that the answer waits for."""
        return tuple(self._waited_for)

    def ask(self) -> list[ServerEvent]:
        """Send the answer's questions to their guardrails, the oldest first; those beyond ``MAX_UNANSWERED`` wait."""
        if not (coming := self._answer.questions):
            return []
        room = max(0, MAX_UNANSWERED - len({id(question) for question in self._waited_for.values()}))
        events = self.ask_beside()
        now, coming[:] = coming[:room], coming[room:]
        for question in now:
            for name in question.check.guardrails:
                guardrail = self._policy.guardrail(name)
                task = asyncio.create_task(self._judge(question, guardrail))
                self._waited_for[task] = question
                task.add_done_callback(self._over)
                events.append(GuardrailStatus(name, guardrail.checkpoint.value, "checking"))
        return events

    def ask_beside(self) -> list[ServerEvent]:
        """Ask those that do not decide, whom nobody waits for; what is left are questions to those that do."""
        events: list[ServerEvent] = []
        left = [self._aside(question, events) for question in self._answer.questions]
        self._answer.questions[:] = [question for question in left if question.check.guardrails]
        return events

    def _aside(self, question: Question, events: list[ServerEvent]) -> Question:
        """Ask those that do not decide; the question to the others."""
        deciding: list[str] = []
        for name in question.check.guardrails:
            guardrail = self._policy.guardrail(name)
            if guardrail.decides and not self._answer.monitor:
                deciding.append(name)
            elif question.key == ("text", 0) and (guardrail in self.overtaken or len(self._later) >= MAX_BEHIND):
                if guardrail not in self.overtaken:
                    self.overtaken = (*self.overtaken, guardrail)
                # Nobody waits for this any more; a worker finds what there is.
                events += self._answer.verdict(question, name, Verdict(hit=False))
            elif later := self._answer.later(question, guardrail, self._turns_for(guardrail)):
                events += self.ask_later([later])
        if len(deciding) == len(question.check.guardrails):
            return question
        return replace(question, check=replace(question.check, guardrails=tuple(deciding)))

    def judged(self, item: Judged) -> Iterator[ServerEvent]:
        """What a verdict that the answer waited for leads to: the guardrail's status, even if the rest fails."""
        status = status_after(item.guardrail, item.checked)
        totals.add(self._answer.totals, statuses=[status])
        yield self._of_the_answer(status)
        yield from self._answer.verdict(item.question, item.guardrail.name, item.checked.verdict)

    def ask_later(self, questions: Iterable[Later]) -> list[ServerEvent]:
        """Ask guardrails that nobody waits for, but the end of the session."""
        events: dict[str, ServerEvent] = {}
        for later in questions:
            task = asyncio.create_task(self._judge_later(later))
            self._later[task] = later
            task.add_done_callback(self._over_later)
            name, checkpoint = later.guardrail.name, later.guardrail.checkpoint.value
            events[name] = GuardrailStatus(name, checkpoint, "checking")
        return list(events.values())

    def judged_later(self, item: JudgedLater) -> list[ServerEvent]:
        """What a verdict that nobody waited for leads to."""
        status = status_after(item.later.guardrail, item.checked)
        totals.add(self._answer.totals, statuses=[status])
        return [self._of_the_answer(status), *self._answer.heard(item.later, item.checked)]

    def _of_the_answer(self, status: GuardrailStatus) -> GuardrailStatus:
        """The line as it stands for the answer: what passed in the next sentence does not undo a hit in the last."""
        name, state = status.guardrail, status.state
        if state in ("hit", "would_block"):
            self._hits = (*(pair for pair in self._hits if pair[0] != name), (name, state))
        elif state == "passed":
            status = replace(status, state=dict(self._hits).get(name, state))
        self._answer.lines[name] = status
        return status

    async def hear_out(self, tell: Callable[[list[ServerEvent]], Awaitable[None]], every_s: float) -> None:
        """Tell the verdicts that nobody waited for, until there are no more or somebody has ``stopped`` that; at least
        every so many seconds.

        All that is shown has been told by then, and nobody is asked for more; each of them has its time limit.
        """
        events = self._forget_moot()
        first: Item = Tick()
        while True:
            judged = self._heard(first)
            if not judged and not self._later and not events:
                return
            await tell(events + [event for one in judged for event in self.judged_later(one)])
            events = []
            if self.stopped:
                return
            try:
                async with asyncio.timeout(every_s):
                    first = await self._inbox.get()
            except TimeoutError:
                first = Tick()

    def _forget_moot(self) -> list[ServerEvent]:
        """What a worker will be asked, or the answer's end has made moot, is not waited for. The panel's lines without
        it.
        """
        moot: dict[str, ServerEvent] = {}
        for task, later in self._later.items():
            overtaken = later.guardrail in self.overtaken and self._answer.is_text(later.gate)
            if overtaken or later.check.id not in later.gate.awaited:
                task.cancel()
                name, checkpoint = later.guardrail.name, later.guardrail.checkpoint.value
                moot[name] = self._answer.lines.get(name) or GuardrailStatus(name, checkpoint, "idle")
        return list(moot.values())

    def let_go(self) -> tuple[list[ServerEvent], list[Later]]:
        """The answer ends without waiting: what is known by now, and what is still out (``overheard``)."""
        events = [event for one in self._heard() for event in self.judged_later(one)]
        moot = self._forget_moot()
        out = [later for task, later in self._later.items() if not (task.done() or task.cancelling())]
        return [*events, *moot], out

    async def overheard(self, limit_s: float) -> list[JudgedLater]:
        """What has been said since: waits for one verdict at least, so many seconds at most.

        Nothing: the time is over, or nobody is left who could say anything. A check that has ended is not waited for
        although it may still be listed: that would be over at once, and bring nothing.
        """
        now = asyncio.get_running_loop().time
        until = now() + limit_s
        while not (judged := self._heard()):
            out = [task for task in self._later if not task.done()]
            if not out or (left_s := until - now()) <= 0:
                break
            await asyncio.wait(out, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        return judged

    def _heard(self, item: Item | None = None) -> list[JudgedLater]:
        judged: list[JudgedLater] = []
        while True:
            if isinstance(item, JudgedLater):
                judged.append(item)
            elif isinstance(item, Stop):
                self.stopped = True
            if self._inbox.empty():
                return judged
            item = self._inbox.get_nowait()

    def give_up(self) -> None:
        """Nobody waits any more, not even the session's end."""
        for task in self._later:
            task.cancel()

    async def _judge(self, question: Question, guardrail: Guardrail) -> None:
        turns = self._turns_for(guardrail)
        request = CheckRequest(question.check.text, question.applies_to, turns, guardrail.time_limit_s)
        checked = await run_check(guardrail, request, self._clock)
        self._inbox.put_nowait(Judged(question, guardrail, checked))

    async def _judge_later(self, later: Later) -> None:
        if self._slots is None:  # most answers have nothing to ask that nobody waits for
            self._slots = asyncio.Semaphore(MAX_UNANSWERED)
        async with self._slots:
            checked = await run_check(later.guardrail, later.request, self._clock)
        self._inbox.put_nowait(JudgedLater(later, checked))

    def _turns_for(self, guardrail: Guardrail) -> tuple[Turn, ...]:
        return self._turns() if guardrail.impl.wants_conversation else ()

    def _over(self, task: asyncio.Task[None]) -> None:
        self._waited_for.pop(task, None)
        self._inbox.put_nowait(Tick())

    def _over_later(self, task: asyncio.Task[None]) -> None:
        self._later.pop(task, None)
        self._inbox.put_nowait(Tick())
