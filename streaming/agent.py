"""Tools in the stream: calls gathered from their pieces, checked, run, and their results handed back.

Exists so that the pump only starts and stops what happens here. Protects three rules. A call runs only when its
arguments are complete, have passed the guardrails for tool arguments, and are valid against the tool's schema; the tool
gets what the guardrails left of them. A result, an error and a progress message pass the guardrails for tool results
before a reader or the model sees them. And whatever a tool does (raise, hang, return ten megabytes, ignore being
stopped), the answer goes on: it becomes the call's result. A name that no tool has is the model's text like any other:
the rules for tool arguments look at it before it is shown. What is kept back until a guardrail has answered is a hold
like any other, and a call that the answer's end overtakes says so: none is left without an end.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import structlog
from pydantic import BaseModel, ValidationError

from guardrails.findings import AppliesTo, Finding
from guardrails.performance import Checkpoint
from guardrails.policy import Policy
from streaming.calls import MAX_NAME_CHARS, NAME_WITHHELD, Call, parsed, too_long
from streaming.checks import CheckedText, Later, Look, check_text, looked_at, settled
from streaming.core.effects import Effect
from streaming.core.events import ServerEvent, ToolCall, ToolProgress, ToolResult
from streaming.core.gate import Gate, Hold, gate_text
from streaming.core.json_text import JsonChannel
from streaming.core.text import mend
from streaming.slices import read
from streaming.tools.base import Context, Tool, ToolError

logger = structlog.get_logger(__name__)

MAX_ROUNDS = 10
"""Times that tools run and their results go back to the model within one answer; what it asks for then is not run."""
MAX_RESULT_CHARS = 100_000
NOT_RUN = "The call was not made: the answer ended before its arguments had passed the guardrails."
TOO_LATE = f"The call was not made: the model had asked for tools {MAX_ROUNDS} times before in this answer."
NOT_OVER = "There is no result: the answer ended before the tool did."
WITHHELD = "The result was withheld: the answer ended before it had passed the guardrails."
PROGRESS_EVERY_S = 0.05
STOP_S = 0.02
"""Seconds that a tool gets to clean up when it is stopped; one that takes longer is left to itself."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a call has to tell: events, and what the guardrails found on the way. ``over``: the call has ended.

    ``held``: a text of it is kept back from now on; the next word of the call ends that. ``later``: what guardrails
    that do not decide are still to be asked; neither tool nor model waits for them.
    """

    call: Call
    events: tuple[ServerEvent, ...] = ()
    findings: tuple[Finding, ...] = ()
    blocked: Finding | None = None
    withheld: int = 0
    over: bool = False
    held: tuple[str, Hold] | None = None
    later: tuple[Later, ...] = ()


Tell = Callable[[Said], object]


async def make_call(
    call: Call,
    offered: Mapping[str, Tool],
    policy: Policy,
    tell: Tell,
    *,
    monitor: bool,
    clock: Callable[[], float] = time.monotonic,
    look: Look | None = None,
) -> None:
    """One call from its arguments to its result. Tells everything; never raises but for cancellation."""
    kind = AppliesTo.TOOL_ARGUMENTS
    written = JsonChannel()
    arguments = await read(written, readable(call.arguments))
    if call.wanted in offered:
        call.name, call.offered = call.wanted, True
    elif call.wanted:  # only rules look at a name, so nobody is waited for
        named = await check_text(
            policy.only(Checkpoint.IMMEDIATE), call.wanted, applies_to=kind, monitor=monitor, channel="tool_arguments"
        )
        if look is not None:
            look(looked_at(named, call.wanted, kind, "tool_arguments"))
        call.name = shown_as(call.wanted, named.visible)
        tell(_said(call, named, (), over=named.blocked is not None))
        if named.blocked is not None:
            return
    checked = await check_text(
        policy, arguments, applies_to=kind, monitor=monitor, channel="tool_arguments", later=True,
        held=lambda hold: tell(Said(call, held=("tool_arguments", hold))), written=written,
    )  # fmt: skip
    if look is not None:
        look(looked_at(checked, arguments, kind, "tool_arguments"))
    call.run = checked.visible
    shown = (ToolCall(call.id, call.name, checked.visible),) if checked.blocked is None else ()
    tell(_said(call, checked, shown, over=checked.blocked is not None))
    if checked.blocked is not None or call.ran_by_provider:
        return
    ran = _Running(call, policy, tell, monitor=monitor, clock=clock, look=look)
    returned: JsonChannel | None = None
    try:
        (result, is_json), failed = await ran.result(offered), False
        if is_json:  # our own JSON: what a text in it is spelled with is no part of the text
            returned = JsonChannel()
            result = await read(returned, result)
    except ToolError as error:
        result, failed = _why(error), True
    kind = AppliesTo.TOOL_RESULT
    checked = await check_text(
        policy, result, applies_to=kind, monitor=monitor, channel="tool_result", later=True,
        held=lambda hold: tell(Said(call, held=("tool_result", hold))), written=returned,
    )  # fmt: skip
    if look is not None:
        look(looked_at(checked, result, kind, "tool_result"))
    call.result, call.failed = checked.visible, failed
    event = ToolResult(call.id, error=call.result) if failed else ToolResult(call.id, result=call.result)
    tell(_said(call, checked, (event,) if checked.blocked is None else (), over=True))


def name_shown(wanted: str, policy: Policy, *, monitor: bool) -> str:
    """What may be shown of the name in a call that nobody has looked at before the answer ended."""
    rules = policy.only(Checkpoint.IMMEDIATE)
    return shown_as(wanted, gate_text(rules, wanted, applies_to=AppliesTo.TOOL_ARGUMENTS, monitor=monitor).visible)


def readable(arguments: str) -> str:
    """Arguments of which guardrails read anything: those that are too long are not read."""
    return "{}" if too_long(arguments) else arguments


def shown_as(wanted: str, visible: str) -> str:
    """What is shown of a name of which the guardrails left ``visible``."""
    return wanted if visible == wanted and len(wanted) <= MAX_NAME_CHARS else NAME_WITHHELD


def _said(call: Call, checked: CheckedText, events: tuple[ServerEvent, ...], *, over: bool) -> Said:
    withheld = checked.counters.chars_in - checked.counters.released if checked.blocked is not None else 0
    said, later = (*events, *checked.statuses), tuple(checked.later)
    return Said(call, said, tuple(checked.findings), checked.blocked, withheld, over, later=later)


class _Running:
    """One run of a tool."""

    def __init__(
        self,
        call: Call,
        policy: Policy,
        tell: Tell,
        *,
        monitor: bool,
        clock: Callable[[], float],
        look: Look | None = None,
    ) -> None:
        self._call = call
        self._policy = policy
        self._tell = tell
        self._monitor = monitor
        self._clock = clock
        self._look = look
        self._told_at, self._told_whole = -PROGRESS_EVERY_S, False
        self._asking: asyncio.Task[None] | None = None  # guardrails, about a message of progress
        self._newest: tuple[float, str] | None = None  # what came meanwhile; older ones are out of date
        self._over = False

    async def result(self, offered: Mapping[str, Tool]) -> tuple[str, bool]:
        """The result as text, and whether that is JSON which was made of it here.

        Raises ``ToolError`` for everything that goes wrong.
        """
        found = offered.get(self._call.wanted)
        if found is None:
            names = ", ".join(offered) or "none"
            raise ToolError(f"there is no tool named “{self._call.name}” here; offered: {names}")
        if why := too_long(self._call.arguments):  # nothing of them was looked at
            raise ToolError(why)
        given = parsed(self._call.run)
        try:
            # As JSON: strict there still takes 2 for a float and a date as text; strict for Python objects does not.
            parameters = found.parameters.model_validate_json(json.dumps(given), strict=True)
        except ValidationError as error:
            wrong = error.errors(include_input=False, include_url=False)[0]
            where = ".".join(str(part) for part in wrong["loc"]) or "the arguments"
            raise ToolError(f"{where}: {wrong['msg']}") from None
        task = asyncio.ensure_future(_ran(found, parameters, Context(self._progress)))
        try:
            try:
                done, _ = await asyncio.wait({task}, timeout=found.time_limit_s)
            finally:
                if not task.done():
                    await _stop(task, found.name)
                self._over = True
            if self._asking is not None:  # what was said on the way comes before the result
                await self._asking
        finally:
            if self._asking is not None:
                self._asking.cancel()
        if not done:
            raise ToolError(f"no result within {found.time_limit_s:g} s")
        return _as_text(task, found.name)

    async def _progress(self, progress: float, message: str) -> None:
        now = self._clock()
        whole = progress >= 1
        if now - self._told_at < PROGRESS_EVERY_S and not (whole and not self._told_whole):
            return
        if self._over:  # a tool that was left to itself
            return
        self._told_at, self._told_whole = now, whole
        self._newest = progress, mend(message) if len(message) <= MAX_RESULT_CHARS else ""
        if self._asking is None or self._asking.done():
            self._asking = None
            await self._say_newest()

    async def _say_newest(self) -> None:
        """Say how far the tool is. The tool waits for no guardrail; its words do, the newest of them."""
        while self._newest is not None:
            (progress, words), self._newest = self._newest, None
            gate = Gate(self._policy, AppliesTo.TOOL_RESULT, "tool_result", monitor=self._monitor)
            effects = [*gate.feed(words), *gate.finish()]
            if self._asking is None and gate.waiting:
                self._asking = asyncio.create_task(self._say_all(progress, words, gate, effects))
                return
            await self._say(progress, words, gate, effects)

    async def _say_all(self, progress: float, words: str, gate: Gate, effects: list[Effect]) -> None:
        await self._say(progress, words, gate, effects)
        await self._say_newest()

    async def _say(self, progress: float, words: str, gate: Gate, effects: list[Effect]) -> None:
        checked = await settled(gate, effects, clock=self._clock, later=True)
        if self._look is not None:
            self._look(looked_at(checked, words, AppliesTo.TOOL_RESULT, "tool_result"))
        told = (ToolProgress(self._call.id, checked.visible, progress),) if checked.blocked is None else ()
        self._tell(_said(self._call, checked, told, over=False))


async def _ran(tool: Tool, parameters: BaseModel, context: Context) -> object:
    """What it raises before it has anything to wait for is its failure like all else.

    So is its wish to end the process, which parsers of command lines have and the event loop would fulfil.
    """
    try:
        return await tool.run(parameters, context)
    except (Exception, asyncio.CancelledError, GeneratorExit, KeyboardInterrupt):
        raise
    except BaseException as error:
        logger.exception("tool_failed", tool=tool.name)
        raise ToolError(f"the tool failed ({type(error).__name__})") from None


async def _stop(task: asyncio.Future[object], name: str) -> None:
    task.cancel()
    _, pending = await asyncio.wait({task}, timeout=STOP_S)
    if pending:
        logger.error("tool_does_not_stop", tool=name)
        task.add_done_callback(_looked_at)


def _looked_at(task: asyncio.Future[object]) -> None:
    if not task.cancelled():
        task.exception()


def _as_text(task: asyncio.Future[object], name: str) -> tuple[str, bool]:
    try:
        value = task.result()
        is_json = not isinstance(value, str)
        text = json.dumps(value, ensure_ascii=False) if is_json else str(value)
    except ToolError:
        raise
    except asyncio.CancelledError:
        raise ToolError("the tool stopped itself") from None
    except Exception as error:
        logger.exception("tool_failed", tool=name)
        raise ToolError(f"the tool failed ({type(error).__name__})") from None
    if len(text) > MAX_RESULT_CHARS:
        raise ToolError(_too_much("result", text))
    return mend(text), is_json


def _why(error: ToolError) -> str:
    """What a tool says of its failure; bounded like a result, and not by a cut, which could hide what a value is."""
    try:
        text = str(error)
    except Exception:
        return "the tool failed, and what it says of that cannot be read"
    return mend(text) if len(text) <= MAX_RESULT_CHARS else _too_much("error", text)


def taken(result: str, error: str) -> tuple[str, bool]:
    """What a tool that ran elsewhere returned, bounded like what ours return; and whether that is a failure."""
    text = result or error
    if len(text) > MAX_RESULT_CHARS:
        return _too_much("error" if error else "result", text), True
    return text, bool(error)


def _too_much(what: str, text: str) -> str:
    return f"the {what} has {len(text):,} characters; at most {MAX_RESULT_CHARS:,} are taken"


class Agent:
    """The calls of a round, under way. ``tell`` is handed everything that they say; ``ended`` once all have ended."""

    __slots__ = ("_clock", "_look", "_monitor", "_policy", "_tell", "rounds", "tasks")

    def __init__(
        self, policy: Policy, tell: Tell, *, monitor: bool, clock: Callable[[], float], look: Look | None = None
    ) -> None:
        self._policy = policy
        self._tell = tell
        self._monitor = monitor
        self._clock = clock
        self._look = look
        self.tasks: dict[asyncio.Task[None], None] = {}
        self.rounds = 0

    def start(self, calls: Sequence[Call], offered: Mapping[str, Tool], ended: Callable[[], object]) -> None:
        """Run the calls of a round beside each other."""
        self.rounds += 1

        def over(task: asyncio.Task[None]) -> None:
            self.tasks.pop(task, None)
            if not task.cancelled() and (error := task.exception()) is not None:
                logger.error("tool_call_died", error=type(error).__name__)
            if not self.tasks:
                ended()

        for call in calls:
            work = make_call(
                call, offered, self._policy, self._tell, monitor=self._monitor, clock=self._clock, look=self._look
            )
            task = asyncio.get_running_loop().create_task(work)
            self.tasks[task] = None
        for task in tuple(self.tasks):
            task.add_done_callback(over)
