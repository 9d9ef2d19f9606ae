"""One answer on its way through the gates: provider events in, reader events out.

Exists so that the pump is only a loop. Sans-IO like the gate: it knows no task, no store and no clock but the one it
is given. There is one gate per channel and choice, and one policy over all of them; when one of them blocks, the
whole answer stops. Protects the rule that nothing but a gate's effects ever becomes an event with text in it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from guardrails.findings import Action, AppliesTo, Finding, Mode, Outcome, Verdict
from guardrails.kinds.base import Turn
from guardrails.policy import Guardrail, Policy
from streaming import stops, totals
from streaming.agent import NOT_OVER, NOT_RUN, WITHHELD, Said, name_shown, readable, shown_as, taken
from streaming.answer_lanes import HOLD_EVERY_MS, NOTHING, Key, Lane, Question, Round, Telling
from streaming.calls import MAX_CALLS, MAX_NAME_CHARS, Call, ToolCalls
from streaming.checks import Checked, Later, Look, Looked, warned
from streaming.core import gate as gates
from streaming.core.events import (
    Blocked,
    ErrorEvent,
    FindingEvent,
    GuardrailStatus,
    Hold,
    MessageStream,
    ModelNamed,
    ProviderChosen,
    ProviderEvent,
    ProviderNotice,
    ProviderToolResult,
    Redaction,
    ServerEvent,
    Stopped,
    TextDelta,
    ThinkingDelta,
    ToolCall,
    ToolCallDelta,
    ToolResult,
    Usage,
    joined,
)
from streaming.core.gate import Gate
from streaming.core.json_text import JsonChannel
from streaming.core.text import mend
from streaming.foreign_words import fit, model_name
from streaming.pace import Timeline
from streaming.providers.base import ChatMessage, ProviderTimeout, ToolCallMade
from streaming.returned import Returned, name_lane
from streaming.slices import SLICE, reading, writing


class Answer:
    """The gates of one answer. ``take``, ``verdict`` and ``finish`` return events; ``questions`` are to be asked."""

    # More than instances can share the names of: without slots every answer would have a dictionary to itself.
    __slots__ = (
        "_crowded", "_cut", "_lanes", "_look", "_markup", "_named", "_now", "_overtaken", "_raw", "_returned",
        "_returns", "_round", "_thoughts", "_tool_texts", "_used", "arrivals", "blocked", "chosen", "findings",
        "first_ms", "lines", "message_id", "model", "monitor", "notices", "policy", "questions", "releases",
        "stop_reason", "stopped", "timed_out", "tools", "tools_failed", "tools_ok", "totals", "usage",
    )  # fmt: skip

    def __init__(
        self,
        policy: Policy,
        message_id: str,
        *,
        monitor: bool,
        now_ms: Callable[[], int],
        look: Look | None = None,
    ) -> None:
        self.policy = policy
        self.message_id = message_id
        self.monitor = monitor
        self._now = now_ms
        self._look = look
        self._lanes: dict[Key, Lane] = {}
        self._returned: dict[int, Returned] = {}  # those that a guardrail is still asked about
        self._returns = 0
        self.tools = ToolCalls()
        self._crowded = False  # a call too many has been told
        self._markup: tuple[str, ...] = ()  # what has been told of calls written as text
        self._tool_texts: tuple[Telling, ...] = ()  # arguments and results, once there are any
        self._overtaken: tuple[ServerEvent, ...] = ()
        self.findings: list[Finding] = []
        self.totals: totals.AllTotals = {}
        self.lines: dict[str, GuardrailStatus] = {}  # those that the record keeps, as last told
        self.questions: list[Question] = []
        self.blocked: Finding | None = None
        self.stopped: Blocked | None = None
        self.usage: dict[str, int] = {}
        self._used: dict[str, int] = {}  # in the rounds that are over
        self.model = self._named = ""
        self.chosen: ProviderChosen | None = None
        self.stop_reason = ""
        self._cut: tuple[str, ...] = ()
        self.notices: dict[tuple[str, str], int] = {}  # by provider and code
        self.timed_out: dict[str, int] = {}  # by provider: its last try was over time, and another was asked
        self.tools_ok = self.tools_failed = 0
        self.arrivals, self.releases = Timeline(), Timeline()
        self.first_ms: int | None = None  # when the first token came
        self._raw: list[str] = []
        self._thoughts: list[str] = []
        self._round = Round()

    # -- in -----------------------------------------------------------------------------------------------------

    def take(self, event: ProviderEvent) -> list[ServerEvent]:
        """What a provider event leads to. Once blocked, nothing any more."""
        if self.blocked is not None:
            return []
        if self.first_ms is None and isinstance(event, TextDelta | ThinkingDelta | ToolCallDelta):
            self.first_ms = self._now()
        match event:
            case TextDelta(text, choice):
                if choice == 0:
                    self._raw.append(text)
                return self._feed("text", choice, text)
            case ThinkingDelta(text, choice, signature):
                if choice == 0:
                    self._thoughts.append(text)
                    self._round.thought.append(text)
                    self._round.signature += signature
                return self._feed("thinking", choice, text) if text else []
            case ToolCallDelta():
                if not self.tools.take(event) and not self._crowded:
                    self._crowded = True
                    words = f"The model called tools more than {MAX_CALLS} times; further calls are not made."
                    return self.take(ProviderNotice("too_many_tool_calls", words))
            case ProviderToolResult():
                return [one for told in self.returning(event) for one in told]
            case Usage():
                # Within a round the counts are those so far; every round is paid for.
                self._round.usage |= event.as_dict()
                self.usage = _sum(self._used, self._round.usage)
            case ProviderChosen():
                earlier = ""
                if self.chosen is not None:
                    earlier = self.chosen.fallback
                    if event.after == ProviderTimeout.code:
                        late = self.chosen.provider
                        self.timed_out[late] = self.timed_out.get(late, 0) + 1
                # Every reason of the whole answer, of the rounds before this one too.
                self.chosen, self.stop_reason = replace(event, fallback=joined(earlier, event.fallback)), ""
            case ModelNamed(model):
                if model != self._named:  # as the endpoint says it
                    self._named, self.model = model, model_name(self.policy, mend(model), monitor=self.monitor)
            case Stopped(reason, choice):
                return self._ended(reason, choice)
            case ProviderNotice(code, message):
                key = (self.chosen.provider if self.chosen else "", code)
                self.notices[key] = self.notices.get(key, 0) + 1
                if code == "tool_markup":
                    if message in self._markup:
                        return []
                    self._markup = (*self._markup, message)
                return [ErrorEvent(code, self.fit(mend(message)), recoverable=True)]
        return []

    def returning(self, event: ProviderToolResult) -> Iterator[list[ServerEvent]]:
        """As ``take``, a little at a time: between two lists everybody else may have a turn."""
        return iter(()) if self.blocked is not None else self._tool_result(event.id, event.result, event.error)

    def fit(self, words: str) -> str:
        """What somebody says of a failure, as readers and the record may have it."""
        return fit(self.policy, words, monitor=self.monitor)

    def verdict(self, question: Question, guardrail: str, verdict: Verdict) -> list[ServerEvent]:
        """The answer to a question; one that a block has made moot changes nothing."""
        channel, number = question.key
        returned = self._returned.get(number) if channel in ("tool_arguments", "tool_result") else None
        lane = self._lane(question.key)
        if lane is None:
            return []
        # One blocks, all stop: a verdict that comes with the one that blocked releases nothing any more.
        effects = lane.gate.stop() if self.blocked is not None else []
        with contextlib.suppress(KeyError):
            effects = [*effects, *lane.gate.verdict(question.check.id, guardrail, verdict)]
        return self._events(lane, effects) if returned is None else self._return(returned, lane, effects)

    def finish(self) -> list[ServerEvent]:
        """The provider has ended: settle what is held."""
        out: list[ServerEvent] = []
        for lane in list(self._lanes.values()):
            if self.blocked is not None:  # one blocks, all stop: what another channel still holds is not released
                out += self._events(lane, lane.gate.stop())
            out += self._events(lane, lane.gate.finish())
        if self.blocked is not None:
            for returned in list(self._returned.values()):
                for lane in returned.lanes.values():
                    out += self._return(returned, lane, lane.gate.stop())
        return out

    def later(self, question: Question, guardrail: Guardrail, turns: tuple[Turn, ...]) -> Later | None:
        """The question to one that does not decide; None: a block has made it moot."""
        lane = self._lane(question.key)
        return None if lane is None else Later(lane.gate, question.check, guardrail, turns)

    def heard(self, later: Later, checked: Checked) -> list[ServerEvent]:
        """What a verdict that nobody waited for leads to, about this answer or about any other text of the session."""
        for lane in self._asking:
            if lane.gate is later.gate:
                warned(later.guardrail, checked)
                question = Question((lane.channel, lane.choice), later.check, lane.gate.applies_to)
                return self.verdict(question, later.guardrail.name, checked.verdict)
        return [self._found(finding) for finding in later.findings(checked)]

    def is_text(self, gate: Gate) -> bool:
        """Whether this is the gate of choice 0's text."""
        lane = self._lanes.get(("text", 0))
        return lane is not None and lane.gate is gate

    def cut_off(self) -> list[ServerEvent]:
        """The answer has ended before its time: what began in the text that was shown is found up to there."""
        return [event for lane in self._lanes.values() for event in self._events(lane, lane.gate.stop())]

    def said(self, said: Said) -> list[ServerEvent]:
        """What a tool call has to tell. Once blocked, nothing any more."""
        said.call.held = said.held
        if self.blocked is not None:
            return []
        said.call.told = said.call.told or bool(said.events)
        said.call.over = said.over
        out: list[ServerEvent] = [self._found(finding) for finding in said.findings]
        out += [self._counted(event) for event in said.events]
        if said.blocked is not None:
            out.append(self._stopped(said.blocked, said.withheld))
        return out

    def next_messages(self, calls: Sequence[Call]) -> tuple[ChatMessage, ...]:
        """What the model is told next: what it said in the round that is over, and what came of its calls.

        Its text as it was shown. Its thinking only if all of it was: with a part hidden its signature would not fit.
        """
        text, thinking = self.content[self._round.text :], self.visible("thinking")[self._round.thinking :]
        raw, signature = "".join(self._round.thought), self._round.signature
        self._used = self.usage
        self._round = Round(len(self.content), len(self.visible("thinking")))
        whole = thinking == raw
        made = tuple(ToolCallMade(call.sent_id, call.sent_name, call.sendable) for call in calls)
        return (
            ChatMessage("assistant", text, made, thinking=raw if whole else "", signature=signature if whole else ""),
            *(ChatMessage("tool", call.result, tool_call_id=call.sent_id, failed=call.failed) for call in calls),
        )

    # -- out ----------------------------------------------------------------------------------------------------

    @property
    def unanswered(self) -> int:
        """Texts that wait for verdicts that decide."""
        return sum(lane.gate.unanswered for lane in self._asking)

    @property
    def waiting(self) -> bool:
        """Does a deciding guardrail still have to answer?"""
        return any(lane.gate.waiting for lane in self._asking)

    @property
    def _asking(self) -> Iterator[Lane]:
        """Every lane that may have asked a guardrail."""
        yield from self._lanes.values()
        yield from (lane for returned in self._returned.values() for lane in returned.lanes.values())

    @property
    def content(self) -> str:
        """The visible text of choice 0."""
        return self.visible("text")

    @property
    def raw(self) -> str:
        """All that the provider sent as choice 0's text; for guardrails only."""
        return "".join(self._raw)

    @property
    def thought(self) -> tuple[str, int]:
        """The first choice's thinking as the provider said it, and how many characters of it were shown."""
        lane = self._lanes.get(("thinking", 0))
        return "".join(self._thoughts), lane.gate.counters.released if lane is not None else 0

    @property
    def redactions(self) -> list[tuple[int, str]]:
        """[visible offset, placeholder] of choice 0's text."""
        lane = self._lanes.get(("text", 0))
        return lane.redactions if lane else []

    def visible(self, channel: str, choice: int = 0) -> str:
        """The visible text of a channel."""
        lane = self._lanes.get((channel, choice))
        if lane is None:
            return ""
        lane.parts[:] = ["".join(lane.parts)]
        return lane.parts[0]

    def stopped_at(self, key: Key) -> int | None:
        """Where the match ends that stopped this channel, in its original text; None where none did."""
        lane = self._lanes.get(key)
        return None if lane is None or lane.gate.block is None else lane.gate.block.end

    def shown(self, key: Key) -> tuple[list[Finding], int]:
        """A channel's findings, and how many of its characters were shown."""
        lane = self._lanes.get(key)
        return ([], 0) if lane is None else (lane.found, lane.gate.counters.released)

    def counts(self) -> tuple[int, int, int, int]:
        """Characters in, released, withheld (what is held at the end included) and exposed, over all channels."""
        counters = [lane.gate.counters for lane in self._lanes.values()]
        chars_in = sum(c.chars_in for c in counters)
        released = sum(c.released for c in counters)
        return chars_in, released, chars_in - released, sum(c.exposed for c in counters)

    def outcome(self) -> Outcome:
        """How an answer that came to its end is called."""
        if self.blocked is not None:
            return Outcome.BLOCKED
        actions = {finding.action for finding in self.findings if finding.mode is Mode.BLOCK}
        if actions & {Action.REDACT, Action.MASK}:
            return Outcome.REDACTED
        return Outcome.WARNED if Action.WARN in actions else Outcome.ALLOWED

    def holds(self) -> tuple[list[ServerEvent], int]:
        """Hold events that are due now, and in how many ms the next one will be (0: none)."""
        now, events, later = self._now(), [], 0
        for lane, is_ in self._held():
            if is_ == lane.told:
                continue
            if (wait := lane.told_at + HOLD_EVERY_MS - now) > 0:
                later = min(later or wait, wait)
                continue
            lane.told, lane.told_at = is_, now
            events.append(Hold(self.message_id, lane.channel, *is_))
        return list[ServerEvent](events), later

    def _held(self) -> Iterator[tuple[Lane | Telling, tuple[int, str, str]]]:
        """Every channel with what is held of it now."""
        for lane in self._lanes.values():
            hold = lane.gate.hold
            yield lane, (hold.chars, hold.guardrail, hold.rule) if hold is not None and not self.blocked else NOTHING
        if self.tools.made or self._returned or (self._tool_texts and self._tool_texts[1].told[0]):
            self._tool_texts = self._tool_texts or (Telling("tool_arguments"), Telling("tool_result"))
            holds = [] if self.blocked else list(self._held_tool_texts())
            for telling in self._tool_texts:
                mine = [hold for channel, hold in holds if channel == telling.channel]
                chars = sum(hold.chars for hold in mine)
                yield telling, (chars, mine[0].guardrail, mine[0].rule) if chars else NOTHING

    def _held_tool_texts(self) -> Iterator[tuple[str, gates.Hold]]:
        """Arguments and results that are kept back, in one piece each."""
        yield from (call.held for call in self.tools.made if call.held is not None)
        for returned in self._returned.values():
            yield from returned.held()

    def let_go(self) -> None:
        """The answer is over: what is held of tool calls stays withheld, and each call that is overtaken says so."""
        for returned in self._returned.values():
            if not returned.told:
                returned.told = True
                returned.call.refuse(WITHHELD)
                if returned.call.told:
                    self._overtaken = (*self._overtaken, ToolResult(returned.call.id, error=WITHHELD))
        self.tools.end()
        for call in self.tools.made:
            call.name = call.name or name_shown(call.wanted, self.policy, monitor=self.monitor)
            if call.over:
                continue
            held = "" if call.held is None else call.held[0]
            begun = call.told or call.ran_by_provider
            call.result = WITHHELD if held == "tool_result" else NOT_OVER if begun else NOT_RUN
            call.failed = call.over = True
            if call.told:
                self._overtaken = (*self._overtaken, ToolResult(call.id, error=call.result))

    def closings(self) -> list[ServerEvent]:
        """The last events of the channels: nothing is held any more, every call and every run of chunks ends."""
        out: list[ServerEvent] = [] if self.blocked is not None else [*self._overtaken]
        out += [Hold(self.message_id, each.channel, 0, "", "") for each in self._tool_texts if each.told[0]]
        for lane in self._lanes.values():
            if lane.told[0]:
                out.append(Hold(self.message_id, lane.channel, 0, "", ""))
            if lane.streamed:
                out.append(MessageStream(self.message_id, lane.channel, lane.choice, "", is_final=True))
        return out

    def number(self, finding: Finding) -> Finding:
        """The finding with its number in the session; it is kept."""
        numbered = replace(finding, n=len(self.findings) + 1)
        self.findings.append(numbered)
        totals.add(self.totals, findings=[numbered])
        return numbered

    # -- inside -------------------------------------------------------------------------------------------------

    def _lane(self, key: Key) -> Lane | None:
        channel, number = key
        returned = self._returned.get(number) if channel in ("tool_arguments", "tool_result") else None
        return self._lanes.get(key) if returned is None else returned.lanes.get(channel)

    def _feed(self, channel: str, choice: int, text: str) -> list[ServerEvent]:
        lane = self._lanes.get((channel, choice))
        if lane is None:
            applies_to = AppliesTo.THINKING if channel == "thinking" else AppliesTo.RESPONSE
            gate = Gate(self.policy, applies_to, channel, monitor=self.monitor)
            lane = self._lanes[channel, choice] = Lane(gate, channel, choice)
        self.arrivals.add(self._now(), len(text))
        return self._events(lane, lane.gate.feed(text))

    def _events(self, lane: Lane, effects: list[gates.Effect]) -> list[ServerEvent]:
        out: list[ServerEvent] = []
        for effect in effects:
            if effect[0] == gates.RELEASE:
                lane.parts.append(effect[1])
                lane.streamed = True
                out.append(MessageStream(self.message_id, lane.channel, lane.choice, effect[1]))
            elif effect[0] == gates.REDACTED:
                lane.parts.append(effect[1])
                lane.redactions.append((effect[2], effect[1]))
                out.append(Redaction(self.message_id, lane.channel, effect[2], effect[1]))
            elif effect[0] == gates.FOUND:
                lane.found.append(effect[1])
                out.append(self._found(effect[1]))
            elif effect[0] == gates.CHECK:
                self.questions.append(Question((lane.channel, lane.choice), effect[1], lane.gate.applies_to))
            else:
                out.append(self._stopped(effect[1], effect[2]))
        self._settle(lane)
        return out

    def _settle(self, lane: Lane) -> None:
        """Note what is held no longer: shown, or hidden for good. Arrivals less these is what was held at any time."""
        settled = lane.gate.settled
        if self.blocked is None and lane.channel in ("text", "thinking") and settled > lane.settled:
            self.releases.add(self._now(), settled - lane.settled)
            lane.settled = settled

    def _ended(self, reason: str, choice: int) -> list[ServerEvent]:
        """A choice is over. One that is not complete says so, once for every reason."""
        if choice == 0:
            self.stop_reason = stops.kept(reason if stops.known(reason) else self.fit(stops.kept(reason)))
        words = stops.cut(reason)
        if not words or words in self._cut:
            return []
        self._cut = (*self._cut, words)
        return self.take(ProviderNotice("answer_cut", words))

    def _found(self, finding: Finding) -> FindingEvent:
        return FindingEvent(self.number(finding))

    def _stopped(self, finding: Finding, withheld: int) -> Blocked:
        self.blocked = finding
        self.stopped = Blocked(self.message_id, block_reason(finding, "answer"), finding.guardrail, withheld)
        return self.stopped

    def _tool_result(self, id_: str, result: str, error: str) -> Iterator[list[ServerEvent]]:
        """What the provider's own tool returned: the call it answers is over, and is told before what came of it.

        Name, arguments and result pass the gate as whole texts before they are shown.
        """
        call = self.tools.answered(id_[:MAX_NAME_CHARS])
        if call is None:
            return
        if not call.told:
            lane = name_lane(self.policy, call.wanted, monitor=self.monitor)
            yield self._unseen(lane, [*lane.gate.feed(call.wanted), *lane.gate.finish()])
            call.name = shown_as(call.wanted, "".join(lane.parts))
            self._looked(lane, call.wanted)
        written, parts = JsonChannel(), list[str]()
        for part in reading(written, "{}" if call.told else readable(call.arguments)):  # told: they are behind it
            parts.append(part)
            yield []
        self._returns += 1
        text, failed = taken(result, error)
        returned = Returned.of(
            self._returns, call, text, failed, self.policy, monitor=self.monitor,
            written=written, arguments="".join(parts),
        )  # fmt: skip
        self._returned[self._returns] = returned
        for effects in _whole(returned.asked, returned.arguments):
            for part in writing(written, effects or ()):
                returned.shown.append(part)
                yield []
            if effects is not None:
                yield self._return(returned, returned.asked, effects, written=True)
        if self.blocked is None:
            for effects in _whole(returned.said, returned.text):
                returned.fed = effects is not None
                yield [] if effects is None else self._return(returned, returned.said, effects)

    def _unseen(self, lane: Lane, effects: list[gates.Effect]) -> list[ServerEvent]:
        """Events of a text that is told in one piece, without its pieces."""
        events = self._events(lane, effects)
        return [event for event in events if not isinstance(event, MessageStream | Redaction)]

    def _looked(self, lane: Lane, text: str) -> None:
        if self._look is not None:
            released = lane.gate.counters.released
            self._look(Looked(text, lane.gate.applies_to, lane.channel, tuple(lane.found), released))

    def _return(
        self, returned: Returned, lane: Lane, effects: list[gates.Effect], *, written: bool = False
    ) -> list[ServerEvent]:
        """Events of a call that the provider ran: the call, and then its result, each in one piece.

        Each once no deciding guardrail has to answer about it. ``written``: the arguments are JSON again already.
        """
        if lane is returned.asked and not written:
            returned.shown.append(returned.written.encode(effects))
        out = self._unseen(lane, effects)
        if not returned.asked_over and (self.blocked is not None or not returned.asked.gate.waiting):
            returned.asked_over = True
            if not returned.call.told:
                self._looked(returned.asked, returned.arguments)
                returned.call.run = "".join(returned.shown) + returned.written.finish()
                if self.blocked is None:
                    returned.call.told = True
                    out.append(ToolCall(returned.call.id, returned.call.name, returned.call.run))
        over = self.blocked is not None or not returned.said.gate.waiting
        if returned.asked_over and not returned.told and over and returned.fed:
            returned.told = True
            self._looked(returned.said, returned.text)
            if returned.call.told and (self.blocked is None or returned.said.gate.block is not None):
                shown = "".join(returned.said.parts)
                returned.call.result, returned.call.failed = shown, returned.failed
                told = (
                    ToolResult(returned.call.id, error=shown)
                    if returned.failed
                    else ToolResult(returned.call.id, shown)
                )
                out.append(self._counted(told))
        if returned.fed and not any(one.gate.awaited for one in returned.lanes.values()):
            self._returned.pop(returned.number, None)
        return out

    def _counted(self, event: ServerEvent) -> ServerEvent:
        """The event; results of tools are counted on their way out."""
        if isinstance(event, ToolResult):
            self.tools_ok += event.error is None
            self.tools_failed += event.error is not None
        return event


def _whole(lane: Lane, text: str) -> Iterator[list[gates.Effect] | None]:
    """What a text leads to, in the end; before that nothing, slice by slice."""
    effects: list[gates.Effect] = []
    for at in range(0, len(text), SLICE):
        effects += lane.gate.feed(text[at : at + SLICE])
        yield None
    yield [*effects, *lane.gate.finish()]


def _sum(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    return {name: one.get(name, 0) + other.get(name, 0) for name in (*one, *(n for n in other if n not in one))}


def block_reason(finding: Finding, where: str) -> str:
    """Why a text was stopped, in words without any of it."""
    what = (finding.category or finding.rule or finding.kind).replace("_", " ")
    return f"The {where} was stopped by the guardrail “{finding.guardrail}” ({what})."
