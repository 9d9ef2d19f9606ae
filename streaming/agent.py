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
from dataclasses import dataclass, field

import structlog
from pydantic import ValidationError

from guardrails.findings import AppliesTo, Finding
from guardrails.performance import Checkpoint
from guardrails.policy import Policy
from streaming.checks import CheckedText, Later, Look, check_text, looked_at, settled
from streaming.core.effects import Effect
from streaming.core.events import ServerEvent, ToolCall, ToolCallDelta, ToolProgress, ToolResult
from streaming.core.gate import Gate, Hold, gate_text
from streaming.core.json_text import JsonChannel
from streaming.tools.base import Context, Tool, ToolError

logger = structlog.get_logger(__name__)

MAX_CALLS = 64
"""More calls than this in one answer are a runaway model; the rest is dropped, and told."""
MAX_ROUNDS = 10
"""Times that tools run and their results go back to the model within one answer; what it asks for then is not run."""
MAX_NAME_CHARS = 200
"""A call's id is cut there. A name that is longer is nobody's, and not shown: a cut could hide what a value is."""
NAME_WITHHELD = "name_withheld"
"""Stands for a name that may not be shown; of the form that every provider takes back."""
MAX_ARGUMENT_CHARS = 256_000
MAX_DEPTH = 32
MAX_RESULT_CHARS = 100_000
NOT_RUN = "The call was not made: the answer ended before its arguments had passed the guardrails."
TOO_LATE = f"The call was not made: the model had asked for tools {MAX_ROUNDS} times before in this answer."
NOT_OVER = "There is no result: the answer ended before the tool did."
WITHHELD = "The result was withheld: the answer ended before it had passed the guardrails."
PROGRESS_EVERY_S = 0.05
STOP_S = 0.02
"""Seconds that a tool gets to clean up when it is stopped; one that takes longer is left to itself."""


@dataclass(slots=True)
class Call:
    """One tool call: ``wanted``, ``arguments`` as the model wrote them, ``name``, ``run`` as the guardrails left them.

    ``held``: what waits for guardrails now, with its channel. ``told``: a reader knows of the call.
    """

    id: str = ""
    wanted: str = ""
    name: str = ""
    pieces: list[str] = field(default_factory=list)
    ran_by_provider: bool = False
    run: str = ""
    result: str = ""
    failed: bool = False
    over: bool = False
    told: bool = False
    held: tuple[str, Hold] | None = None

    @property
    def arguments(self) -> str:
        """JSON text; a call without any means an empty object."""
        return "".join(self.pieces) or "{}"

    @property
    def sendable(self) -> str:
        """What passed the guardrails, as a model can be shown it: an object, whatever was written."""
        try:
            _parsed(self.run)
        except ToolError:
            return "{}"
        return self.run

    def refuse(self, why: str) -> None:
        """It is not made."""
        self.result, self.failed, self.over = why, True, True

    def record(self) -> dict[str, object]:
        """The call as it is stored beside the message: what a reader was shown of it."""
        shown: dict[str, object] = {"id": self.id, "name": self.name, "arguments": self.run}
        return {**shown, "error" if self.failed else "result": self.result}


class ToolCalls:
    """``take`` pieces while a round streams; ``round`` hands over what it asked for and begins the next."""

    def __init__(self) -> None:
        self._open: dict[tuple[int, int], Call] = {}
        self.made: list[Call] = []

    def take(self, piece: ToolCallDelta) -> bool:
        """Add a piece to its call; False: it is of one call too many."""
        key = (piece.choice, piece.index)
        if key not in self._open and len(self.made) + len(self._open) >= MAX_CALLS:
            return False
        call = self._open.setdefault(key, Call())
        call.id = call.id or piece.id[:MAX_NAME_CHARS]
        call.wanted = call.wanted or piece.name[: MAX_NAME_CHARS + 1]  # one more tells that it was too long
        call.pieces.append(piece.arguments)
        call.ran_by_provider = call.ran_by_provider or piece.ran_by_provider
        return True

    def came_of(self, id_: str, result: str, *, failed: bool) -> None:
        """What a call that the provider made has come to; of one that nobody knows nothing is kept."""
        for call in (*self.made, *self._open.values()):
            if call.id == id_:
                call.result, call.failed, call.over = result, failed, True

    def end(self) -> None:
        """The answer is over: calls that were not complete are on record if something has come of them."""
        began = len(self.made)
        self.made[began:] = [call for call in self.round() if call.over]

    def round(self) -> list[Call]:
        """The calls of the round that is over, in order, each with an id of its own."""
        calls = list(self._open.values())
        self._open.clear()
        taken = {call.id for call in self.made}
        for call in calls:
            number = len(self.made)
            while not call.id or call.id in taken:
                number += 1
                call.id = f"call_{number}"
            taken.add(call.id)
            self.made.append(call)
        return calls


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
    written, kind = JsonChannel(), AppliesTo.TOOL_ARGUMENTS
    arguments = written.decode("{}" if _too_long(call.arguments) else call.arguments) + written.decode_rest()
    if call.wanted in offered:
        call.name = call.wanted
    elif call.wanted:  # only rules look at a name, so nobody is waited for
        named = await check_text(
            policy.only(Checkpoint.IMMEDIATE), call.wanted, applies_to=kind, monitor=monitor, channel="tool_arguments"
        )
        if look is not None:
            look(looked_at(named, call.wanted, kind, "tool_arguments"))
        call.name = _shown_as(call.wanted, named.visible)
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
    tell(_said(call, checked, shown, over=checked.blocked is not None or call.ran_by_provider))
    if checked.blocked is not None or call.ran_by_provider:
        return
    ran = _Running(call, policy, tell, monitor=monitor, clock=clock, look=look)
    try:
        result, failed = await ran.result(offered), False
    except ToolError as error:
        result, failed = str(error), True
    kind = AppliesTo.TOOL_RESULT
    checked = await check_text(
        policy, result, applies_to=kind, monitor=monitor, channel="tool_result", later=True,
        held=lambda hold: tell(Said(call, held=("tool_result", hold))),
    )  # fmt: skip
    if look is not None:
        look(looked_at(checked, result, kind, "tool_result"))
    call.result, call.failed = checked.visible, failed
    event = ToolResult(call.id, error=call.result) if failed else ToolResult(call.id, result=call.result)
    tell(_said(call, checked, (event,) if checked.blocked is None else (), over=True))


def name_shown(wanted: str, policy: Policy, *, monitor: bool) -> str:
    """What may be shown of the name in a call that nobody has looked at before the answer ended."""
    rules = policy.only(Checkpoint.IMMEDIATE)
    return _shown_as(wanted, gate_text(rules, wanted, applies_to=AppliesTo.TOOL_ARGUMENTS, monitor=monitor).visible)


def _shown_as(wanted: str, visible: str) -> str:
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
        self._told_at = -PROGRESS_EVERY_S
        self._asking: asyncio.Task[None] | None = None  # guardrails, about a message of progress
        self._newest: tuple[float, str] | None = None  # what came meanwhile; older ones are out of date
        self._over = False

    async def result(self, offered: Mapping[str, Tool]) -> str:
        """The result as text. Raises ``ToolError`` for everything that goes wrong."""
        found = offered.get(self._call.wanted)
        if found is None:
            names = ", ".join(offered) or "none"
            raise ToolError(f"there is no tool named “{self._call.name}” here; offered: {names}")
        if why := _too_long(self._call.arguments):  # nothing of them was looked at
            raise ToolError(why)
        given = _parsed(self._call.run)
        try:
            # As JSON: strict there still takes 2 for a float and a date as text; strict for Python objects does not.
            parameters = found.parameters.model_validate_json(json.dumps(given), strict=True)
        except ValidationError as error:
            wrong = error.errors(include_input=False, include_url=False)[0]
            where = ".".join(str(part) for part in wrong["loc"]) or "the arguments"
            raise ToolError(f"{where}: {wrong['msg']}") from None
        task = asyncio.ensure_future(found.run(parameters, Context(self._progress)))
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
        if progress < 1 and now - self._told_at < PROGRESS_EVERY_S:
            return
        if self._over:  # a tool that was left to itself
            return
        self._told_at = now
        self._newest = progress, _storable(message) if len(message) <= MAX_RESULT_CHARS else ""
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


async def _stop(task: asyncio.Future[object], name: str) -> None:
    task.cancel()
    _, pending = await asyncio.wait({task}, timeout=STOP_S)
    if pending:
        logger.error("tool_does_not_stop", tool=name)
        task.add_done_callback(_looked_at)


def _looked_at(task: asyncio.Future[object]) -> None:
    if not task.cancelled():
        task.exception()


def _as_text(task: asyncio.Future[object], name: str) -> str:
    try:
        value = task.result()
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except ToolError:
        raise
    except asyncio.CancelledError:
        raise ToolError("the tool stopped itself") from None
    except Exception as error:
        logger.exception("tool_failed", tool=name)
        raise ToolError(f"the tool failed ({type(error).__name__})") from None
    if len(text) > MAX_RESULT_CHARS:
        raise ToolError(f"the result has {len(text):,} characters; at most {MAX_RESULT_CHARS:,} are taken")
    return _storable(text)


def _storable(text: str) -> str:
    """Without what no store takes: NUL and halves of surrogate pairs."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def _too_long(arguments: str) -> str:
    """Why such arguments are neither looked at nor shown; empty: they are."""
    if len(arguments) <= MAX_ARGUMENT_CHARS:
        return ""
    return f"the arguments have {len(arguments):,} characters; at most {MAX_ARGUMENT_CHARS:,} are taken"


def _parsed(arguments: str) -> dict[str, object]:
    """The arguments as an object. Raises ``ToolError``."""
    if why := _too_long(arguments):
        raise ToolError(why)
    try:
        found = json.loads(arguments, parse_constant=_no_constant)
    except RecursionError:
        raise ToolError(f"the arguments are nested deeper than {MAX_DEPTH} levels") from None
    except ValueError:
        raise ToolError("the arguments are not JSON") from None
    if not isinstance(found, dict):
        raise ToolError("the arguments are not a JSON object")
    if _deeper_than(found, MAX_DEPTH):
        raise ToolError(f"the arguments are nested deeper than {MAX_DEPTH} levels")
    return found


def _no_constant(word: str) -> object:
    raise ValueError(f"{word} is no JSON")


def _deeper_than(value: object, most: int) -> bool:
    level: list[object] = [value]
    for _ in range(most):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return any(isinstance(item, dict | list) for item in level)


class Agent:
    """The calls of a round, under way. ``tell`` is handed everything that they say; ``ended`` once all have ended."""

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
