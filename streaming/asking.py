"""Guardrails that are asked while an answer runs: each in a task of its own, its verdict through the pump's inbox.

Exists so that the pump is only a loop. Protects two rules: what the answer waits for and what only the session's end
waits for are never mixed up, and whatever guardrails find in texts that did not wait for them belongs to the session,
however the answer ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import replace

from guardrails.kinds.base import CheckRequest, Turn
from guardrails.policy import Guardrail, Policy
from streaming import totals
from streaming.answer import Answer
from streaming.answer_lanes import Question
from streaming.checks import MAX_UNANSWERED, Later, run_check, status_after
from streaming.core.events import FindingEvent, GuardrailStatus, ServerEvent
from streaming.inbox import Item, Judged, JudgedLater, Tick
from streaming.wake import Line


class Asking:
    """The questions of one answer. ``turns``: the conversation before it, for guardrails that want it. ``clock``:
    seconds.
    """

    __slots__ = ("_answer", "_clock", "_hits", "_inbox", "_later", "_policy", "_slots", "_turns", "_waited_for")

    def __init__(
        self, policy: Policy, answer: Answer, turns: Callable[[], tuple[Turn, ...]], inbox: Line[Item],
        clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self._policy, self._answer, self._turns, self._inbox, self._clock = policy, answer, turns, inbox, clock
        self._waited_for: dict[asyncio.Task[None], Question] = {}
        self._later: dict[asyncio.Task[None], Later] = {}
        self._slots: asyncio.Semaphore | None = None
        self._hits: tuple[tuple[str, str], ...] = ()  # guardrail, state; most answers have none

    @property
    def busy(self) -> bool:
        """Whether the answer waits for anybody."""
        return bool(self._waited_for)

    @property
    def waited_for(self) -> tuple[asyncio.Task[None], ...]:
        """Guardrails that the answer waits for."""
        return tuple(self._waited_for)

    def ask(self) -> list[ServerEvent]:
        """Send the answer's questions to their guardrails, the oldest first; those beyond ``MAX_UNANSWERED`` wait."""
        events: list[ServerEvent] = []
        if not (coming := self._answer.questions):
            return events
        room = max(0, MAX_UNANSWERED - len({id(question) for question in self._waited_for.values()}))
        now, self._answer.questions[:] = coming[:room], coming[room:]
        for question in now:
            for name in question.check.guardrails:
                guardrail = self._policy.guardrail(name)
                task = asyncio.create_task(self._judge(question, guardrail))
                self._waited_for[task] = question
                task.add_done_callback(self._over)
                events.append(GuardrailStatus(name, guardrail.checkpoint.value, "checking"))
        return events

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
        found = (FindingEvent(self._answer.number(one)) for one in item.later.findings(item.checked))
        return [self._of_the_answer(status), *found]

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
        """Tell the verdicts that nobody waited for, until there are no more; at least every so many seconds.

        All that is shown has been told by then, and nobody is asked for more; each of them has its time limit.
        """
        while True:
            judged = self._heard()
            if not judged and not self._later:
                return
            await tell([event for one in judged for event in self.judged_later(one)])
            if self._later:
                await asyncio.wait(self._later, timeout=every_s)

    def let_go(self) -> tuple[list[ServerEvent], list[Later]]:
        """The answer ends without waiting: what is known by now, and what is still out (``overheard``)."""
        judged = self._heard()
        known = {id(one.later) for one in judged}
        out = [later for later in self._later.values() if id(later) not in known]
        return [event for one in judged for event in self.judged_later(one)], out

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

    def _heard(self) -> list[JudgedLater]:
        judged: list[JudgedLater] = []
        while not self._inbox.empty():
            if isinstance(item := self._inbox.get_nowait(), JudgedLater):
                judged.append(item)
        return judged

    def give_up(self) -> None:
        """Nobody waits any more, not even the session's end."""
        for task in self._later:
            task.cancel()

    async def _judge(self, question: Question, guardrail: Guardrail) -> None:
        turns = self._turns() if guardrail.impl.wants_conversation else ()
        request = CheckRequest(question.check.text, question.applies_to, turns, guardrail.time_limit_s)
        checked = await run_check(guardrail, request, self._clock)
        self._inbox.put_nowait(Judged(question, guardrail, checked))

    async def _judge_later(self, later: Later) -> None:
        if self._slots is None:  # most answers have nothing to ask that nobody waits for
            self._slots = asyncio.Semaphore(MAX_UNANSWERED)
        async with self._slots:
            checked = await run_check(later.guardrail, later.request, self._clock)
        self._inbox.put_nowait(JudgedLater(later, checked))

    def _over(self, task: asyncio.Task[None]) -> None:
        self._waited_for.pop(task, None)
        self._inbox.put_nowait(Tick())

    def _over_later(self, task: asyncio.Task[None]) -> None:
        self._later.pop(task, None)
