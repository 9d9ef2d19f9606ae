"""The loop of one answer: upstream -> walker and gates -> client, with its record.

Exists apart from the call that asked, because it must come to its end when the client has gone. Protects the rules that
a client that goes away ends the upstream's answer at once, that held text is never sent after a block, a failure or a
time-out, and that nothing is waited for that does not decide.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass

import structlog

from guardrails.findings import Outcome
from guardrails.kinds.base import CheckRequest
from guardrails.policy import Guardrail
from streaming.answer import block_reason
from streaming.checks import Later, run_check, status_after
from streaming.gateway.gates import Gates, Question
from streaming.gateway.measure import Endless
from streaming.gateway.prompt import conversation
from streaming.gateway.record import ALIVE_EVERY_S, Record
from streaming.gateway.upstream import DONE, UpstreamSaid
from streaming.gateway.walker import Json, Walker, WrongDialect
from streaming.overheard import ENDED, STOPPED
from streaming.providers.base import ProviderError, ProviderProtocolError, StreamCutOff
from streaming.providers.failures import shortened
from streaming.wake import Line

logger = structlog.get_logger(__name__)

READ_AHEAD = 64
"""Chunks that may lie here unread; then the upstream waits."""
UNREAD = 256
"""Chunks that may wait for the client; then everything does."""
READER_S = 60.0
"""Seconds that a client may take none of them; then it is as good as gone."""


@dataclass(frozen=True, slots=True)
class Came:
    """A chunk of the upstream, or its end; ``error`` says why it broke."""

    chunk: Json | None
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class Judged:
    """A guardrail's answer has been taken in."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The answer ended in a failure; nothing follows. ``said``: what the client may be told of it, looked at: the
    upstream's own document, or our words."""

    error: ProviderError
    said: object


@dataclass(frozen=True, slots=True)
class Over:
    """The answer is over."""


Told = Json | Failed | Over


def _broke_off(said: str) -> Failed:
    return Failed(StreamCutOff(said), said)


class _Unread(Exception):
    """The client takes nothing of what lies there."""


async def _nobody() -> None:
    """Where no place was taken."""


class Relay:
    """``run`` it as a task; read ``told`` until ``Over`` or ``Failed``. ``abandon`` says that nobody reads any more.

    ``freed`` is awaited before the client can know that the answer is over: what it asks next finds the place free.
    """

    def __init__(
        self,
        source: AsyncGenerator[Json, None],
        walker: Walker,
        gates: Gates,
        record: Record,
        *,
        streaming: bool,
        freed: Callable[[], Coroutine[None, None, None]] = _nobody,
    ) -> None:
        self._source = source
        self._walker = walker
        self._gates = gates
        self._record = record
        self._streaming = streaming
        self._inbox = Line[Came | Judged]()
        self._slots = asyncio.Semaphore(READ_AHEAD)
        self._parked: deque[Json] = deque()
        self._asking: dict[asyncio.Task[None], Later] = {}
        self._document: Json | None = None
        self._whole: list[Json] = []
        self._freed: Callable[[], Coroutine[None, None, None]] | None = freed
        self.told: asyncio.Queue[Told] = asyncio.Queue(UNREAD)
        self.answered = False
        """The client can have all of it."""
        self.broke_off = _broke_off("the answer broke off")
        """What a client is told who reads on behind an answer that ended without a word."""
        self._abandoned = False

    def abandon(self) -> None:
        """Nobody reads any more; cancel the task next."""
        self._abandoned = True

    async def run(self) -> None:
        """From the first chunk to the last, and the record of it."""
        self._tick()
        try:
            await self._ran()
        finally:
            self._ticking.cancel()

    def _tick(self) -> None:
        """The row lives for as long as this does, however long upstream, guardrails or client say nothing."""
        self._ticking = asyncio.get_running_loop().call_later(ALIVE_EVERY_S, self._tick)
        self._record.alive(self._gates)

    async def _ran(self) -> None:
        outcome: Outcome | None = None
        code = error = ""
        try:
            failure = await self._relayed()
            await self.free()
            if failure is not None:
                told = self._failed(failure)
                said = told.said if isinstance(told.said, str) else shortened(str(failure))
                outcome, code, error = Outcome.ERROR, failure.code, said
                await self._tell(told)
            else:
                for document in self._whole:
                    await self._tell(document)
                await self._tell(Over())
            self.answered = True
            await self._hear_out()
        except (asyncio.CancelledError, _Unread) as ended:
            if self.answered:  # only what does not decide was out: the answer stays what it was
                await self._surely(outcome, code, error, STOPPED)
                raise
            if isinstance(ended, _Unread):
                said = f"nothing of the answer was read for {READER_S:g} seconds"
                self.broke_off = _broke_off(said)
                await self._surely(Outcome.ABANDONED, "", "")
                return
            if self._abandoned:
                await self._surely(Outcome.ABANDONED, "", "")
            else:
                said = "The server was stopped while the answer streamed."
                self.broke_off = _broke_off(said.rstrip("."))
                await self._surely(Outcome.ERROR, "server_stopped", said, STOPPED)
            raise
        except Exception:
            logger.exception("relay_failed", session=self._record.started.session_id)
            outcome, code, error = Outcome.ERROR, "internal", "Something went wrong on the server."
            try:
                await self.free()
                with suppress(_Unread):  # nobody reads: that it failed is on record all the same
                    await self._tell(Failed(ProviderProtocolError(error), error.rstrip(".")))
            except asyncio.CancelledError:
                await self._surely(outcome, code, error)
                raise
            self.answered = True
        finally:
            for task in self._asking:
                task.cancel()
        await self._surely(outcome, code, error)

    def _failed(self, error: ProviderError) -> Failed:
        """Looked at here, so that what is found in it is in the record.

        By rules alone: nobody is asked any more, and a failure of which nothing is told helps nobody.
        """
        if isinstance(error, UpstreamSaid):
            return Failed(error, self._walker.plain(error.document, failed=True))
        said = shortened(self._gates.plain(str(error), asked=True))
        return Failed(error, said if said.strip(" .") else f"The provider failed ({error.code}).")

    async def free(self) -> None:
        """Give the place back, once. What fails there fails nothing else: a place that is not given back runs out."""
        freed, self._freed = self._freed, None
        if freed is None:
            return
        try:
            await asyncio.shield(asyncio.ensure_future(freed()))
        except Exception:
            logger.exception("place_not_given_back", session=self._record.started.session_id)

    async def _surely(self, outcome: Outcome | None, code: str, error: str, why: str = ENDED) -> None:
        """Write the end although this task may be (or be being) cancelled; the cancellation comes after it.

        ``why`` verdicts did not come that are still out: nobody waits for them any more.
        """
        self._gates.let_go()
        self._record.stop_reason = self._walker.stop_reason
        out = self._still_out()
        for task in self._asking:
            task.cancel()
        work = self._record.end(
            self._gates, self._walker.usage, outcome=outcome, code=code, error=error, out=out, why=why
        )
        # Beside each other: whoever has gone asks again, and finds the place free however long the record takes.
        both = asyncio.gather(work, self.free())
        try:
            await asyncio.shield(both)
        except asyncio.CancelledError:
            await both
            raise

    # -- the loop -----------------------------------------------------------------------------------------------

    async def _relayed(self) -> ProviderError | None:
        for later in self._record.prompted.later:
            self._later(later)
        reading = asyncio.create_task(self._read())
        try:
            return await self._turn()
        finally:
            reading.cancel()
            # Waited for, so that the upstream's response is closed before anybody hears that the answer is over; not
            # gathered: a second cancellation of this task must not cut off how that one closes its connection.
            await asyncio.wait({reading})

    async def _read(self) -> None:
        try:
            async with aclosing(self._source) as source:
                async for chunk in source:
                    await self._slots.acquire()
                    self._inbox.put_nowait(Came(chunk))
        except ProviderError as error:
            self._inbox.put_nowait(Came(None, error))
        except Exception as error:
            logger.exception("upstream_failed", session=self._record.started.session_id)
            self._inbox.put_nowait(Came(None, error))
        else:
            self._inbox.put_nowait(Came(None))

    async def _turn(self) -> ProviderError | None:
        ended: Came | None = None
        while True:
            item = await self._inbox.get()
            if isinstance(item, Came):
                if item.chunk is None:
                    ended = item
                else:
                    self._parked.append(item.chunk)
            try:
                await self._go_on(ended)
            except StreamCutOff as error:
                return error
            except Endless as error:
                return ProviderProtocolError(str(error))
            except WrongDialect as error:
                return ProviderProtocolError(f"the endpoint does not speak the dialect it was asked in: {error}")
            if self._gates.blocked is not None:
                await self._say_stopped()
                return None
            if ended is not None and not self._parked and not self._walker.busy:
                if ended.error is None:
                    return None
                if isinstance(ended.error, ProviderError):
                    return ended.error
                raise ended.error

    async def _go_on(self, ended: Came | None) -> None:
        walker, went = self._walker, False
        while self._gates.blocked is None:
            if self._parked and not walker.busy:
                chunk = self._parked.popleft()
                self._slots.release()
                self._record.chunks += 1
                if chunk is DONE:
                    walker.finish()
                elif self._streaming:
                    walker.take(chunk)
                else:
                    self._document = chunk
                    walker.whole(chunk)
            elif ended is not None and ended.error is None and not self._parked and not walker.finished:
                if self._streaming and not walker.complete:
                    raise StreamCutOff("the provider's stream ended before the answer did")
                walker.finish()
                walker.finished = True
            else:
                break
            await self._pass_on()
            went = True
        if not went or self._gates.blocked is not None:
            await self._pass_on()

    async def _pass_on(self) -> None:
        self._ask()
        self._record.moved(self._gates)
        if self._streaming or self._gates.blocked is None:
            await self._send(self._walker.drain())

    async def _say_stopped(self) -> None:
        finding = self._gates.blocked
        assert finding is not None
        reason = block_reason(finding, "answer")
        await self.free()
        if self._streaming:
            await self._send(self._walker.drain())
            await self._send(self._walker.stopped(reason))
        else:
            await self._send([self._walker.stopped_whole(self._document, reason)])

    async def _send(self, chunks: Sequence[Json]) -> None:
        if not self._streaming:  # it is one piece: told when the upstream is let go
            self._whole += chunks
            return
        if chunks and self._walker.said_all and not self._walker.busy:
            await self.free()
        for chunk in chunks:
            await self._tell(chunk)

    async def _tell(self, told: Told) -> None:
        if not self.told.full():
            self.told.put_nowait(told)
            return
        try:
            async with asyncio.timeout(READER_S):
                await self.told.put(told)
        except TimeoutError:
            raise _Unread from None

    # -- guardrails that are asked --------------------------------------------------------------------------

    def _ask(self) -> None:
        for question in self._gates.questions:
            for name in question.check.guardrails:
                guardrail = self._gates.policy.guardrail(name)
                self._start(self._judge(question, guardrail), Later(question.channel.gate, question.check, guardrail))
        self._gates.questions.clear()

    def _later(self, later: Later) -> None:
        async def ask() -> None:
            checked = await run_check(later.guardrail, later.request)
            self._record.statuses.append(status_after(later.guardrail, checked))
            self._record.late += later.findings(checked)

        self._start(ask(), later)

    def _start(self, work: Coroutine[None, None, None], later: Later) -> None:
        task = asyncio.ensure_future(work)
        self._asking[task] = later
        task.add_done_callback(lambda task: self._asking.pop(task, None))

    def _still_out(self) -> list[Later]:
        """What guardrails that do not decide have yet to say, of texts that no block has made moot."""
        return [
            later
            for task, later in self._asking.items()
            if not (task.done() or later.guardrail.decides) and later.check.id in later.gate.awaited
        ]

    async def _judge(self, question: Question, guardrail: Guardrail) -> None:
        channel = question.channel
        turns = conversation(self._record.prompted) if guardrail.impl.wants_conversation else ()
        request = CheckRequest(question.check.text, channel.gate.applies_to, turns, guardrail.time_limit_s)
        checked = await run_check(guardrail, request)
        self._record.statuses.append(status_after(guardrail, checked))
        self._gates.verdict(question, guardrail.name, checked.verdict)
        self._inbox.put_nowait(Judged())

    async def _hear_out(self) -> None:
        """Guardrails that do not decide are heard to their end; the client has its answer already."""
        while self._asking:
            await asyncio.wait(tuple(self._asking))
            self._ask()
