"""The one async loop: provider -> gates -> log, with the audit record kept along the way.

The pump belongs to the session, not to a socket: it runs as a task of this process until the answer is over, whoever
reads. Everything that can happen comes through one inbox (provider events, verdicts, interrupts, ticks), so that
there is one order of things and no lock. Protects the rules that a session that began also ends (whatever fails, the
database says how, with the partial text), that held text is never released by an interrupt or an error, and that the
provider's response is closed at once when nobody wants it any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from array import array
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass, field, replace

import structlog

from guardrails.findings import AppliesTo, Outcome
from guardrails.kinds.base import Turn
from streaming import endings, metrics, trials
from streaming.agent import MAX_ROUNDS, TOO_LATE, Agent, Said
from streaming.answer import Answer
from streaming.asking import Asking
from streaming.beside import Beside
from streaming.bookends import Result, Run, closing, ending, for_shadow, opening
from streaming.calls import Call
from streaming.checks import CheckedText, Looked
from streaming.conf import Conf
from streaming.core.events import (
    FindingEvent,
    ProviderEvent,
    ProviderNotice,
    ProviderToolResult,
    ServerEvent,
    TextDelta,
    ThinkingDelta,
)
from streaming.endless import Measure
from streaming.inbox import (
    Arrived,
    Broken,
    CallsEnded,
    Item,
    Judged,
    JudgedLater,
    ProviderEnded,
    RoundEnded,
    Stop,
    Tick,
)
from streaming.log import LogUnavailable, SessionLog
from streaming.outlet import Outlet
from streaming.overheard import Overheard
from streaming.providers.base import Deadline, ProviderError, ProviderRequest
from streaming.resilience import Calls, answer_s
from streaming.sessions import DeferredText, State
from streaming.shadow.record import acted
from streaming.shadow.running import Compared, Shadow
from streaming.slices import SLICE
from streaming.tools.base import all_tools
from streaming.wake import Line

logger = structlog.get_logger(__name__)

READ_AHEAD = 64
"""Provider events that may lie in the inbox; then the provider waits."""
SAID = (TextDelta, ThinkingDelta)
FEW = 8
"""Items that are taken at once where they may be large."""
PASSED = CheckedText()
"""What is kept of a prompt that was not blocked, once its guardrails' words have been told."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the pump is lent: where events go, what time it is, who takes deferred checks, whether workers live."""

    log: SessionLog
    settings: Conf
    queue_checks: Callable[[str], Awaitable[None]]
    workers_alive: Callable[[], Awaitable[bool]]
    clock: Callable[[], float] = time.monotonic


@dataclass(slots=True)
class _Marks:
    """When things last happened, on the pump's clock, in seconds. ``kept``: what the database was told then."""

    started: float
    wrote: float = 0.0
    kept: tuple[int, ...] = ()
    kept_at: float = 0.0
    unattended_since: float | None = None
    said_ms: int | None = None  # since the start: when the provider had nothing more to say, or was left
    feeds_ms: array[float] = field(default_factory=lambda: array("d"))


class Pump:
    """One session's loop; ``await run()`` once. Never raises but for cancellation, and even then it records the end."""

    def __init__(self, run: Run, around: Surroundings) -> None:
        self._run = run
        self._around = around
        self._marks = _Marks(around.clock())
        self._shadow = self._shadowed()
        self._beside = Beside(run.policy, run.monitor)
        look = self._look if self._shadow is not None or self._beside.texts else None
        ms = self._ms
        self._answer = Answer(run.policy, run.started.answer_id, monitor=run.monitor, now_ms=ms, look=look)
        self._inbox = Line[Item]()
        self._parked: list[Item] = []
        self._slots = asyncio.Semaphore(READ_AHEAD)
        self._agent = Agent(run.policy, self._inbox.put_nowait, monitor=run.monitor, clock=around.clock, look=look)
        self._request = replace(run.request, rest_s=self._rest_s)
        self._calls: list[Call] = []
        self._next = Line[ProviderRequest | None]()
        self._owed = 0
        self._asking = Asking(run.policy, self._answer, self._turns, self._inbox, around.clock)
        self._outlet = Outlet(around.log, run.started.session_id, around.clock, ms, self._look_again)
        self._idle = False
        self._in_passing = 0
        self._called = False
        # A guardrail that is asked at the end of a sentence is asked as soon as the sentence is there; and of several
        # answers each is to begin at once.
        self._patient = run.request.choices == 1 and not run.policy.batched(AppliesTo.RESPONSE)
        self._resting = False
        self._taken: list[ProviderEvent] = []
        self._writing: asyncio.Task[bool] | None = None
        self._lost = self._unwritten = False
        self._result: Result | None = None
        self._large = False
        """Something was said in a large piece: the loop takes few items at once, and pauses between them."""

    def _look(self, looked: Looked) -> None:
        self._beside.look(looked)
        if self._shadow is not None:
            self._shadow.look(looked)

    def _shadowed(self) -> Shadow | None:
        if (which := self._run.shadow) is None:
            return None
        session_id = self._run.started.session_id
        return Shadow(which, session_id=session_id, conversation=self._turns(), clock=self._around.clock)

    async def run(self) -> None:
        """From the first event to the last."""
        try:
            result = await self._guarded()
            overheard = self._let_go()
        except asyncio.CancelledError:
            await self._surely(self._end_now())
            raise
        if overheard is None:
            await self._surely(self._end(result, ()))
        else:
            await self._end_and_overhear(result, overheard)

    def _let_go(self) -> Overheard | None:
        """Whoever stops an answer waits for nobody: what guardrails have yet to say comes behind its end."""
        events, out = self._asking.let_go()
        self._outlet.coming += events
        return Overheard(self._run.started.session_id, out) if out else None

    async def _end_now(self) -> None:
        """This process ends: a check that is still out has failed, and its row says so.

        An answer that was over stays what it was.
        """
        if (result := self._result) is None:
            result = Result(Outcome.ERROR, "server_stopped", "The server was stopped while the answer streamed.")
            self._cut_off()
        overheard = self._let_go()
        self._asking.give_up()
        await self._end(result, overheard.deferred if overheard is not None else ())
        if overheard is not None:
            try:
                await overheard.give_up(self._around.log)
            except Exception:  # the sweep ends what is left
                logger.exception("overheard_not_stored", session=self._run.started.session_id)

    async def _end_and_overhear(self, result: Result, overheard: Overheard) -> None:
        log = self._around.log
        try:
            try:
                await self._surely(self._end(result, overheard.deferred))
                await overheard.settle(self._asking, log)
            except asyncio.CancelledError:
                self._asking.give_up()
                await self._surely(overheard.give_up(log))
                raise
        except Exception:  # the sweep ends what is left
            self._asking.give_up()
            logger.exception("overheard_not_stored", session=self._run.started.session_id)

    @staticmethod
    async def _surely(work: Coroutine[None, None, None]) -> None:
        """Let ``work`` finish although this task is (or is being) cancelled; the cancellation comes after it."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            await task
            raise

    async def _guarded(self) -> Result:
        """Until nothing is waited for any more, this session can be stopped."""
        try:
            async with self._around.log.run(self._run.started.session_id) as stop:
                stop.then(self._interrupted)
                try:
                    result = await self._stream()
                    if result.outcome is not None:
                        self._cut_off()
                except Exception as error:
                    result = self._broken(error)
                    with contextlib.suppress(Exception):  # what is broken may be a gate
                        self._cut_off()
                finally:
                    self._said_all()
                self._result = result
                if self._result.outcome is not Outcome.INTERRUPTED:
                    await self._hear_out()
        except Exception as error:  # the log's
            self._result = self._result or self._broken(error)
        return self._result

    def _cut_off(self) -> None:
        """Before its time the answer is over: what was shown of it is asked about, and found up to there."""
        self._outlet.coming += self._asking.ask_beside()
        self._outlet.coming += self._answer.cut_off()

    def _broken(self, error: Exception) -> Result:
        if isinstance(error, LogUnavailable):
            logger.warning("session_log_lost", session=self._run.started.session_id, error=str(error))
            return Result(Outcome.ERROR, error.code, f"{str(error).capitalize()}.", log_down=True)
        logger.error("pump_failed", session=self._run.started.session_id, exc_info=error)
        return Result(Outcome.ERROR, "internal", "Something went wrong on the server.", recoverable=False)

    # -- the loop -----------------------------------------------------------------------------------------------

    async def _stream(self) -> Result:
        self._outlet.coming += opening(self._run, self._answer)
        self._outlet.coming += self._asking.ask_later(self._run.prompt.later)
        await self._outlet.tell()
        self._beside.given(self._run.looked, self._run.request.messages)
        if self._shadow is not None:
            self._shadow.given(self._run.looked, self._run.request.messages)
        if self._run.prompt.blocked is not None:
            return Result(Outcome.BLOCKED)
        # Told, and given. What is asked of them later is that nothing was blocked, and what the provider was asked.
        self._run = replace(self._run, prompt=PASSED, looked=(), request=self._request)
        self._tick_later()
        feeding = asyncio.create_task(self._feed(), name="provider")
        try:
            return await self._turn()
        finally:
            working = (feeding, *self._asking.waited_for, *self._agent.tasks)
            for task in working:
                task.cancel()
            # Waited for, so that the provider's response is closed before anybody hears that the answer is over.
            await asyncio.gather(*working, return_exceptions=True)
            self._outlet.close()
            self._ticking.cancel()

    async def _turn(self) -> Result:
        """Take what has arrived, tell the readers, until the answer is over."""
        ended: ProviderEnded | None = None
        while True:
            self._idle = True
            await self._inbox.filled()
            self._idle, self._in_passing, self._called = False, 0, False
            batch = self._inbox.get_all() if not self._large else self._inbox.get_all(FEW)
            if stop := next((item for item in batch if isinstance(item, Stop)), None):
                self._found_beside(batch)
                return Result(stop.outcome)
            events = self._outlet.coming  # what is in there is told, even if something below fails
            for item in self._in_turn(batch):
                if isinstance(item, Arrived):
                    if self._answer.blocked is None:
                        self._taken.append(item.event)
                    self._owed += 1
                    self._outlet.came(item.event)
                    if isinstance(item.event, ProviderToolResult):
                        for told in self._answer.returning(item.event):
                            events += told
                            await asyncio.sleep(0)
                    else:
                        events += self._timed(item.event)
                    if self._large:
                        await asyncio.sleep(0)
                elif isinstance(item, RoundEnded):
                    self._round_ended()
                elif isinstance(item, CallsEnded):
                    self._calls_ended()
                elif isinstance(item, Broken):
                    raise item.error
                elif isinstance(item, Said):
                    later = item.later if self._answer.blocked is None else ()
                    events += self._answer.said(item)
                    events += self._asking.ask_later(later)
                elif isinstance(item, JudgedLater):
                    events += self._asking.judged_later(item)
                elif isinstance(item, Judged):
                    events += self._asking.judged(item)
                elif isinstance(item, ProviderEnded):
                    ended = item
                    if item.error is None:
                        events += self._answer.finish()
            blocked = self._answer.blocked is not None
            if blocked:
                # Findings that began before the block stand; they are settled by the end of the text.
                events += self._answer.finish()
                events += self._asking.ask_beside()
            else:
                events += self._asking.ask()
                self._pay_slots()
            events += self._holds()
            await self._outlet.tell()
            await self._periodic()
            self._accompany()
            batch.clear()  # the next one may be hours away
            if blocked:
                return Result()
            if ended is not None and ended.error is not None:
                words = self._answer.fit(str(ended.error))
                return Result(Outcome.ERROR, ended.error.code, words, not ended.error.permanent)
            if ended is not None and not self._asking.busy and self._inbox.empty():
                return Result()

    def _found_beside(self, batch: list[Item]) -> None:
        """What guardrails have found in what came with a stop, or are to be asked of it, belongs to the session."""
        for item in batch:
            if isinstance(item, JudgedLater):
                self._inbox.put_nowait(item)
            elif isinstance(item, Said) and self._answer.blocked is None:
                self._outlet.coming += [FindingEvent(self._answer.number(one)) for one in item.findings]
                self._outlet.coming += self._asking.ask_later(item.later)

    def _in_turn(self, batch: list[Item]) -> Iterator[Item]:
        """The batch in its order; what the provider said waits while too many texts wait for verdicts."""
        for item in batch:
            if isinstance(item, Arrived | RoundEnded | ProviderEnded):
                self._parked.append(item)
                yield from self._fitting()
            else:
                yield item
        yield from self._fitting()

    def _fitting(self) -> Iterator[Item]:
        while self._parked and (not self._asking.full or self._failed()):
            yield self._parked.pop(0)

    def _failed(self) -> bool:
        """After a failure nothing is waited for: what came before it is told first."""
        last = self._parked[-1]
        return isinstance(last, ProviderEnded) and last.error is not None

    def _round_ended(self) -> None:
        """Run what the model asked for; without calls the answer is over."""
        self._calls = self._answer.tools.round()
        if self._agent.rounds >= MAX_ROUNDS and self._request.tools:
            self._refuse()
        if not self._calls:
            self._next.put_nowait(None)
            return
        offered = {spec.name for spec in self._request.tools}
        tools = {name: tool for name, tool in all_tools().items() if name in offered}
        self._agent.start(self._calls, tools, lambda: self._inbox.put_nowait(CallsEnded()))

    def _refuse(self) -> None:
        """Nobody would hear what came of these calls: none is run. What the provider ran itself is shown."""
        refused = [call for call in self._calls if not call.ran_by_provider]
        self._calls = [call for call in self._calls if call.ran_by_provider]
        for call in refused:
            call.refuse(TOO_LATE)
        if refused:
            words = f"The model asked for tools more than {MAX_ROUNDS} times in a row; the answer ends here."
            self._inbox.put_nowait(Arrived(ProviderNotice("too_many_rounds", words)))

    def _calls_ended(self) -> None:
        """Hand the results back, if anybody waits for them."""
        mine = [call for call in self._calls if not call.ran_by_provider]
        if not mine or not self._request.tools:
            self._next.put_nowait(None)
        else:
            messages = (*self._request.messages, *self._answer.next_messages(mine))
            self._request = replace(self._request, messages=messages)
            self._next.put_nowait(self._request)

    def _timed(self, event: ProviderEvent) -> list[ServerEvent]:
        before = self._around.clock()
        events = self._answer.take(event)
        if len(self._marks.feeds_ms) < 5_000:
            self._marks.feeds_ms.append((self._around.clock() - before) * 1000)
        return events

    def _take_in_passing(self, event: ProviderEvent) -> bool:
        """Take text while the loop has nothing to do: most text only joins what is pending, and wakes nobody.

        False: this is not the time, it goes through the inbox like everything else.
        """
        if not isinstance(event, SAID) or self._inbox.qsize() > self._called:
            return False
        if not self._idle or self._parked or self._asking.busy or self._outlet.unread.full or self._answer.questions:
            return False
        if self._in_passing >= READ_AHEAD:  # a provider that never pauses leaves room for the others
            return False
        self._in_passing += 1
        try:
            self._outlet.coming += self._timed(event)
            self._outlet.coming += self._holds()
        except Exception as error:  # ours, not the provider's
            self._inbox.put_nowait(Broken(error))
            return True
        self._taken.append(event)
        if self._outlet.offer(event) or self._answer.questions or self._answer.blocked is not None:
            if not self._called:
                self._called = True
                self._inbox.put_nowait(Tick())
        elif not self._called:
            self._accompany()
        return True

    def _rest_s(self) -> float:
        """For how many seconds the provider may be left alone: while more text would only join what is pending.

        Only in the middle of the answer's text, whose first character goes out at once (docs/adr/0203).
        """
        if (
            not (self._patient and self._resting)
            or self._asking.busy
            or self._parked
            or self._answer.blocked is not None
        ):
            return 0.0
        return self._outlet.rest_s()

    def _accompany(self) -> None:
        """Show the shadow what was taken; when the readers have been told, or nothing is to be told yet."""
        if self._shadow is not None:
            for event in self._taken:
                self._shadow.take(event, self._answer)
        self._taken.clear()

    def _pay_slots(self) -> None:
        if not self._asking.full:
            for _ in range(self._owed):
                self._slots.release()
            self._owed = 0

    async def _hear_out(self) -> None:
        """However the answer ended, what is still asked belongs to the session."""

        async def tell(events: list[ServerEvent]) -> None:
            self._outlet.coming += events
            with contextlib.suppress(LogUnavailable):  # the database will tell
                await self._outlet.tell_all()
                await self._periodic()

        try:
            await self._asking.hear_out(tell, self._around.settings.write_through_s)
        except Exception:
            logger.exception("pump_failed", session=self._run.started.session_id)

    def _turns(self) -> tuple[Turn, ...]:
        return self._run.turns

    def _holds(self) -> list[ServerEvent]:
        events, later_ms = self._answer.holds()
        if later_ms:
            self._outlet.wake_in(later_ms / 1000)
        return events

    # -- what runs beside the loop ------------------------------------------------------------------------------

    async def _feed(self) -> None:
        """Provider -> inbox, no faster than the loop takes it; round after round."""
        # One deadline for all rounds: it is the answer that has a limit, not what its tools lead to.
        self._request = replace(self._request, deadline=Deadline.after(answer_s(self._run.upstreams.providers)))
        self._run = replace(self._run, request=self._request)
        request: ProviderRequest | None = self._request
        measure = Measure()
        handed: Calls = []
        events: AsyncGenerator[ProviderEvent, None] | None
        try:
            while request is not None:
                self._resting = False
                events = self._run.upstreams.ask(request, handed)
                try:
                    while events is not None:
                        async for event in events:
                            measure.add(event)
                            self._resting = isinstance(event, TextDelta)
                            if isinstance(event, SAID) and len(event.text) > SLICE:
                                await self._feed_slowly(event)
                                continue
                            if self._take_in_passing(event):
                                continue
                            await self._slots.acquire()
                            await self._outlet.unread.put(event)
                            self._inbox.put_nowait(Arrived(event))
                        events = handed.pop() if handed else None  # what the first token came from goes on alone
                finally:
                    for call in (events, *handed):
                        if call is not None:
                            await call.aclose()
                    handed.clear()
                self._inbox.put_nowait(RoundEnded())
                request = await self._next.get()
            self._said_all()
        except ProviderError as error:
            self._inbox.put_nowait(ProviderEnded(error))
        except Exception:
            logger.exception("provider_failed", provider=self._run.provider.name)
            self._inbox.put_nowait(ProviderEnded(ProviderError("the provider's adapter failed")))
        else:
            self._inbox.put_nowait(ProviderEnded())

    async def _put(self, event: ProviderEvent) -> None:
        await self._slots.acquire()
        await self._outlet.unread.put(event)
        self._inbox.put_nowait(Arrived(event))

    async def _feed_slowly(self, event: TextDelta | ThinkingDelta) -> None:
        """Much text in one piece: between two slices of it everybody else has a turn."""
        text, self._large = event.text, True
        for at in range(0, len(text), SLICE):
            last = at + SLICE >= len(text)
            piece = replace(event, text=text[at : at + SLICE])
            await self._put(piece if last or isinstance(piece, TextDelta) else replace(piece, signature=""))

    def _said_all(self) -> None:
        if self._marks.said_ms is None:
            self._marks.said_ms = self._ms()

    def _interrupted(self) -> None:
        self._inbox.put_nowait(Stop(Outcome.INTERRUPTED))

    def _look_again(self) -> None:
        self._inbox.put_nowait(Tick())

    def _tick(self) -> None:
        self._look_again()
        self._tick_later()

    def _tick_later(self) -> None:
        self._ticking = asyncio.get_running_loop().call_later(self._around.settings.write_through_s, self._tick)

    async def _periodic(self) -> None:
        """Write through, and see whether anybody still reads and nobody wants it stopped."""
        now, settings = self._around.clock(), self._around.settings
        if now - self._marks.wrote < settings.write_through_s:
            return
        self._marks.wrote = now
        await self._outlet.tell_all()  # what is written is never ahead of what was told
        if self._writing is not None:
            await endings.say_that_it_lives(self._around.log, self._run.started.session_id)
        if self._lost:
            self._inbox.put_nowait(Stop(Outcome.ERROR))
        elif self._to_write(now):
            chars_in, released, _, _ = self._answer.counts()
            self._writing = asyncio.create_task(
                endings.keep_partial(
                    self._around.log,
                    session_id=self._run.started.session_id,
                    content=self._answer.content,
                    released=released,
                    chars_in=chars_in,
                    last_seq=self._outlet.seq,
                )
            )
            self._writing.add_done_callback(self._written)
        session_id = self._run.started.session_id
        if await self._around.log.interrupted(session_id):
            self._inbox.put_nowait(Stop(Outcome.INTERRUPTED))
        if await self._around.log.attended(session_id):
            self._marks.unattended_since = None
        elif self._marks.unattended_since is None:
            self._marks.unattended_since = now
        elif now - self._marks.unattended_since >= settings.abandon_s:
            self._inbox.put_nowait(Stop(Outcome.ABANDONED))

    def _to_write(self, now: float) -> bool:
        """Whether the database is to hear of something new, or that the session lives: a silent one says so three times
        before it is taken for dead. One write at a time; one that failed is made again.
        """
        marks = self._marks
        if self._writing is not None:
            return False
        told = (*self._answer.counts(), self._outlet.seq)
        if told == marks.kept and not self._unwritten and now - marks.kept_at < self._around.settings.stale_s / 3:
            return False
        marks.kept, marks.kept_at = told, now
        return True

    def _written(self, task: asyncio.Task[bool]) -> None:
        """What came of it; the task is not kept. ``_lost``: another process has ended this session meanwhile, which it
        took for dead.
        """
        self._writing = None
        self._unwritten = task.cancelled() or task.exception() is not None
        self._lost = not self._unwritten and not task.result()

    # -- first and last events ----------------------------------------------------------------------------------

    async def _end(self, result: Result, owed: tuple[DeferredText, ...]) -> None:
        """Store the end in one transaction, then tell the readers, then hand over the deferred checks.

        ``owed``: those that this process has in hand itself.
        """
        if self._writing is not None:
            with contextlib.suppress(Exception):
                await self._writing
        stored = ending(self._run, self._answer, result, self._outlet.seq, self._marks.feeds_ms, self._asking.overtaken)
        # A worker is asked about the first choice's text, while this process has a question about another's in hand.
        places = {(one.guardrail, one.applies_to) for one in stored.deferred}
        owed = tuple(replace(one, part=1) if (one.guardrail, one.applies_to) in places else one for one in owed)
        feeds_ms = self._marks.feeds_ms
        if self._run.prompt.blocked is None:
            self._beside.add(AppliesTo.THINKING, *self._answer.thought)
            owed = (*self._beside.deferred(), *owed)
        stored = replace(stored, deferred=(*stored.deferred, *owed))
        took_ms = self._ms() if self._marks.said_ms is None else self._marks.said_ms
        metrics.answered(self._run, self._answer, result, stored.outcome, took_ms=took_ms, feeds_ms=feeds_ms)
        if self._shadow is not None:
            self._accompany()  # the loop may have ended between taking and telling
            thinking, shown = self._answer.thought
            self._shadow.thought(thinking[: self._answer.stopped_at(("thinking", 0))], shown)
            beside = Compared(
                self._run.policy,
                acted(self._run.policy, self._answer.findings, monitor=self._run.monitor),
                for_shadow(self._run, self._answer),
                tuple(stored.deferred),
                self._answer.shown(("text", 0))[1],
            )
            grace_s = 0.0 if stored.outcome is Outcome.INTERRUPTED else None
            stored = replace(stored, shadow=await self._shadow.record(self._answer, beside, grace_s=grace_s))
            metrics.shadowed(self._run.policy.name, stored.shadow)
        try:
            state = await endings.store(stored, session_id=self._run.started.session_id, log=self._around.log)
        except Exception:
            # The sweep will find the session by its missing heartbeat; readers are told now.
            logger.exception("ending_not_stored", session=self._run.started.session_id)
            state = None
            result = Result(Outcome.ERROR, "storage", "The answer's end could not be stored.")
        if state is None and result.error_code != "storage":
            return
        workers = True
        if state is State.MONITORING:
            workers = await self._around.workers_alive()
        if not result.log_down:
            try:
                last = closing(self._run, self._answer, result, stored, state, workers=workers)
                await self._outlet.make_good(self._answer.lines)
                self._outlet.coming += last
                await self._outlet.tell_all()
            except LogUnavailable:
                logger.warning("session_log_lost_at_end", session=self._run.started.session_id)
        if state is State.MONITORING or (stored.shadow is not None and stored.shadow.late):
            await self._around.queue_checks(self._run.started.session_id)
        await trials.after_answer(self._run.policy, self._answer.raw, feeds_ms, self._around.clock)

    # -- small things -------------------------------------------------------------------------------------------

    def _ms(self) -> int:
        return round((self._around.clock() - self._marks.started) * 1000)
