"""The gates of one answer that passes through the gateway: one for each channel of each choice.

Exists because a client of the gateway reads more than text: thinking, refusals, arguments of tool calls, fields that
nobody here knows. Protects three rules. Whatever a model wrote is text with a gate of its own, and where a policy says
nothing of that kind of text, what it says of answers stands for it: thinking and tool arguments are answers to who
reads them. One blocks, all stop. And values are put back only behind the gate, in what it has released. Pure.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Protocol

from guardrails.findings import Action, AppliesTo, Finding, Mode, Outcome, Verdict
from guardrails.performance import Checkpoint
from guardrails.policy import Policy
from streaming.core import gate as gates
from streaming.core.gate import Gate, SentenceCheck
from streaming.core.text import Mender

Key = tuple[Hashable, ...]

_WIDER = {
    AppliesTo.RESPONSE: (AppliesTo.THINKING, AppliesTo.TOOL_ARGUMENTS),
    AppliesTo.PROMPT: (AppliesTo.TOOL_RESULT, AppliesTo.DOCUMENT),
}
_KEPT = 64
_widened: OrderedDict[int, tuple[Policy, Policy]] = OrderedDict()


def widened(policy: Policy) -> Policy:
    """The version as the gateway runs it: guardrails of answers look at thinking and tool arguments too, those of
    prompts at tool results and documents. The automata are shared with the version itself."""
    if (known := _widened.get(id(policy))) is not None and known[0] is policy:
        _widened.move_to_end(id(policy))
        return known[1]
    guardrails = tuple(
        replace(g, applies_to=g.applies_to | {more for kind in g.applies_to for more in _WIDER.get(kind, ())})
        for g in policy.guardrails
    )
    made = replace(policy, guardrails=guardrails, _plans={}, _parts={}, _demoted={})
    _widened[id(policy)] = (policy, made)
    while len(_widened) > _KEPT:
        _widened.popitem(last=False)
    return made


class Restorer(Protocol):
    """Puts values back into one channel's released text, piece by piece."""

    def feed(self, text: str) -> str:
        """What may be shown of the text so far."""

    def finish(self) -> str:
        """What was kept back of it at its end."""


Restoring = Callable[[AppliesTo, str], Restorer | None]
"""Makes the restorer of a channel: its kind of text, and the tool's name where it is the arguments of a call."""


def nothing_masked(applies_to: AppliesTo, tool: str) -> Restorer | None:
    """For requests in which no value was masked."""
    return None


@dataclass(slots=True, eq=False)
class Channel:
    """One channel: its gate, and what it has released that is not sent yet.

    Of texts that are kept, ``visible`` is what the client is sent, ``recorded`` the same before values were put back.
    """

    gate: Gate
    restorer: Restorer | None = None
    mender: Mender = field(default_factory=Mender)
    parts: list[str] = field(default_factory=list)
    visible: list[str] | None = None
    recorded: list[str] = field(default_factory=list)
    raw: list[str] | None = None
    ended: bool = False

    @property
    def has_text(self) -> bool:
        """Something was released and not sent yet."""
        return bool(self.parts)

    @property
    def waiting(self) -> bool:
        """Its text has ended and a guardrail that decides still has to answer."""
        return self.ended and self.gate.waiting

    def take(self) -> str:
        """What was released since the last time."""
        text = "".join(self.parts)
        self.parts.clear()
        return text

    def shown(self, text: str) -> None:
        """The gate has released this."""
        if self.visible is not None:
            self.recorded.append(text)
        if self.restorer is not None:
            text = self.restorer.feed(text)
        self._show(text)

    def shown_all(self) -> None:
        """Nothing follows any more."""
        if self.restorer is not None and not self.gate.blocked:
            self._show(self.restorer.finish())
            self.restorer = None

    def _show(self, text: str) -> None:
        if text:
            self.parts.append(text)
            if self.visible is not None:
                self.visible.append(text)


@dataclass(frozen=True, slots=True)
class Question:
    """A text that guardrails have to be asked about."""

    channel: Channel
    check: SentenceCheck


class Gates:
    """``channel`` and ``whole`` make gates; ``feed`` and ``finish`` run them; ``questions`` are to be asked."""

    def __init__(
        self,
        policy: Policy,
        restoring: Restoring = nothing_masked,
        restore_arguments: Callable[[str, str], str] = lambda text, tool: text,
    ) -> None:
        self.policy = widened(policy)
        self.restore_arguments = restore_arguments
        self._immediate = self.policy.only(Checkpoint.IMMEDIATE)
        self._restoring = restoring
        self._channels: dict[Key, Channel] = {}
        self._every: list[Channel] = []
        self._clean: set[tuple[AppliesTo, str]] = set()
        self.answer: list[Channel] = []
        """The channels that are the text of the first choice."""
        self.findings: list[Finding] = []
        self.questions: list[Question] = []
        self.blocked: Finding | None = None

    def decides(self, applies_to: AppliesTo) -> bool:
        """Whether anything could be kept from the reader in this kind of text."""
        return any(guardrail.decides for guardrail in self.policy.running(applies_to))

    def untouched(self, applies_to: AppliesTo) -> bool:
        """Whether nobody looks at this kind of text and nothing is put back into it."""
        return self._restoring is nothing_masked and not self.policy.running(applies_to)

    @property
    def deciding(self) -> bool:
        """Whether anything could be kept from the reader in an answer."""
        return any(map(self.decides, (AppliesTo.RESPONSE, AppliesTo.THINKING, AppliesTo.TOOL_ARGUMENTS)))

    def channel(self, key: Key, applies_to: AppliesTo, name: str, *, kept: bool = False, tool: str = "") -> Channel:
        """The channel of this key, whose first part is the choice. ``kept``: its texts are wanted for the record."""
        found = self._channels.get(key)
        if found is None:
            found = self._channels[key] = self._made(applies_to, name, tool)
            if kept:
                found.visible, found.raw = [], []
                if key[0] == 0:
                    self.answer.append(found)
        return found

    def known(self, key: Key) -> Channel | None:
        """The channel of this key, if there is one."""
        return self._channels.get(key)

    def _made(self, applies_to: AppliesTo, name: str, tool: str = "") -> Channel:
        made = Channel(Gate(self.policy, applies_to, name), self._restoring(applies_to, tool))
        if self.blocked is not None:
            made.gate.stop()
        self._every.append(made)
        return made

    def feed(self, channel: Channel, text: str) -> None:
        """More text of a channel."""
        if channel.ended:
            return
        if text := channel.mender.feed(text):
            if channel.raw is not None:
                channel.raw.append(text)
            self._came(channel, channel.gate.feed(text))

    def finish(self, channel: Channel) -> None:
        """A channel's text has ended. Of one that was stopped nothing more is shown."""
        if channel.ended:
            return
        if rest := channel.mender.finish():
            self._came(channel, channel.gate.feed(rest))
        channel.ended = True
        self._came(channel, channel.gate.finish())

    def whole(self, text: str, applies_to: AppliesTo, name: str) -> Channel:
        """A text that is complete."""
        made = self._made(applies_to, name)
        made.restorer = None
        self.feed(made, text)
        self.finish(made)
        return made

    def plain(
        self, text: str, applies_to: AppliesTo = AppliesTo.RESPONSE, name: str = "field", *, asked: bool = False
    ) -> str:
        """A short complete text that nobody is asked about: rules alone look at it, and each such text once.

        Longer ones are not shown at all where a guardrail would have to be asked before. ``asked``: it will be.
        """
        if (applies_to, text) in self._clean:
            return text
        mender = Mender()
        text_in = mender.feed(text) + mender.finish()
        gate = Gate(self._immediate, applies_to, name)
        effects = [*gate.feed(text_in), *gate.finish()]
        shown = "".join(e[1] for e in effects if e[0] == gates.RELEASE or e[0] == gates.REDACTED)
        for effect in effects:
            if effect[0] == gates.FOUND:
                self._found(effect[1])
            elif effect[0] == gates.BLOCKED:
                self._stop(effect[1])
        if not asked and self._must_ask(applies_to) and (len(text) > 200 or len(text.split()) > 3):
            shown = ""
        if shown == text and len(self._clean) < 1_000:
            self._clean.add((applies_to, text))
        return shown

    def _must_ask(self, applies_to: AppliesTo) -> bool:
        return any(
            guardrail.decides and guardrail.checkpoint is not Checkpoint.IMMEDIATE
            for guardrail in self.policy.running(applies_to)
        )

    def verdict(self, question: Question, guardrail: str, verdict: Verdict) -> None:
        """The answer to a question; one that a block has made moot changes nothing."""
        channel = question.channel
        with contextlib.suppress(KeyError):
            self._came(channel, channel.gate.verdict(question.check.id, guardrail, verdict))

    def block(self, finding: Finding) -> None:
        """Stop the answer for a reason that no gate has seen."""
        self._found(finding)
        self._stop(finding)

    def let_go(self) -> None:
        """The answer is over: what is held stays withheld, what was found and began before is still told."""
        for channel in self._every:
            if self.blocked is not None:
                self._came(channel, channel.gate.stop())
                self._came(channel, channel.gate.finish())

    def _came(self, channel: Channel, effects: list[gates.Effect]) -> None:
        stopped = self.blocked is not None
        for effect in effects:
            if effect[0] == gates.RELEASE or effect[0] == gates.REDACTED:
                if not stopped:
                    channel.shown(effect[1])
            elif effect[0] == gates.FOUND:
                self._found(effect[1])
            elif effect[0] == gates.CHECK:
                self.questions.append(Question(channel, effect[1]))
            else:
                self._stop(effect[1])
        if channel.ended and not channel.gate.waiting:
            channel.shown_all()

    def _found(self, finding: Finding) -> None:
        self.findings.append(replace(finding, n=len(self.findings) + 1))

    def _stop(self, finding: Finding) -> None:
        if self.blocked is not None:
            return
        self.blocked = finding
        for channel in self._every:
            if not channel.gate.blocked:
                self._came(channel, channel.gate.stop())

    @property
    def holding(self) -> bool:
        """Whether text is held back now."""
        return any(channel.gate.held for channel in self._every)

    def counts(self) -> tuple[int, int, int, int]:
        """Characters in, released, withheld (what is held now included) and exposed, over all channels."""
        counters = [channel.gate.counters for channel in self._every]
        chars_in, released = sum(c.chars_in for c in counters), sum(c.released for c in counters)
        return chars_in, released, chars_in - released, sum(c.exposed for c in counters)

    def came_and_settled(self) -> tuple[int, int]:
        """Characters of the first choice's text that have come, and those of them that are held no longer."""
        settled = sum(channel.gate.settled for channel in self.answer)
        return settled + sum(channel.gate.held for channel in self.answer), settled


def outcome_of(findings: list[Finding], *, blocked: bool) -> Outcome:
    """How a request that came to its end is called."""
    if blocked:
        return Outcome.BLOCKED
    actions = {finding.action for finding in findings if finding.mode is Mode.BLOCK}
    if actions & {Action.REDACT, Action.MASK}:
        return Outcome.REDACTED
    return Outcome.WARNED if Action.WARN in actions else Outcome.ALLOWED
