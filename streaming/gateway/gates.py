"""The gates of one answer that passes through the gateway: one for each channel of each choice.

Exists because a client of the gateway reads more than text: thinking, refusals, arguments of tool calls, fields that
nobody here knows. Protects three rules. Whatever a model wrote is text with a gate of its own, and where a policy says
nothing of that kind of text, what it says of answers stands for it: thinking and tool arguments are answers to who
reads them. One blocks, all stop. And values are put back only behind the gate, in what it has released. Pure.
"""

from __future__ import annotations

import contextlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace

from guardrails.findings import HIDING, Action, AppliesTo, Finding, Mode, Outcome, Verdict
from guardrails.performance import Checkpoint
from guardrails.policy import Policy
from streaming.beside import Beside
from streaming.core import gate as gates
from streaming.core.gate import Gate, SentenceCheck
from streaming.core.json_text import JsonChannel
from streaming.core.restore import Restorer
from streaming.core.text import Mender
from streaming.gateway.by_name import without_limits
from streaming.gateway.channel import Channel
from streaming.gateway.loose_json import has_escapes, laid_open
from streaming.gateway.measure import Measure
from streaming.gateway.shadow import Noted

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


Restoring = Callable[[str], Restorer | None]
"""Makes the restorer of a channel of this name."""


def nothing_masked(channel: str) -> Restorer | None:
    """For requests in which no value was masked."""
    return None


@dataclass(frozen=True, slots=True)
class Question:
    """A text that guardrails have to be asked about."""

    channel: Channel
    check: SentenceCheck


_LONGEST_NAME = 64
_MOST_WORDS = 3
_MOST_LETTERS = 8


def _says_something(text: str) -> bool:
    """Whether a text is more than the name of something: many words, or as many letters as they have.

    Letters beyond ASCII are counted by themselves: some of their scripts put no blanks between words.
    """
    if len(text) > _LONGEST_NAME or len(text.split()) > _MOST_WORDS:
        return True
    return not text.isascii() and sum(char.isalpha() and not char.isascii() for char in text) > _MOST_LETTERS


class Gates:
    """``channel`` and ``whole`` make gates; ``feed`` and ``finish`` run them; ``questions`` are to be asked."""

    def __init__(
        self,
        policy: Policy,
        restoring: Restoring = nothing_masked,
        restore_arguments: Callable[[str, str], str] = lambda text, tool: text,
        same_again: Callable[[str, str], bool] = lambda written, shown: written == shown,
    ) -> None:
        self.policy = widened(policy)
        self.restore_arguments = restore_arguments
        self._same_again = same_again
        self.beside = Beside(self.policy)
        self._immediate = self.policy.only(Checkpoint.IMMEDIATE)
        self._limitless = without_limits(self._immediate)
        self._restoring = restoring
        self._channels: dict[Key, Channel] = {}
        self._joined: dict[Hashable, Channel] = {}
        self._every: list[Channel] = []
        self._clean: set[tuple[AppliesTo, str]] = set()
        self._clean_objects: set[str] = set()
        self.answer: list[Channel] = []
        """The channels that are the text of the first choice."""
        self.answers = {0: self.answer}
        """The same of every choice."""
        self.findings: list[Finding] = []
        self.found_in: dict[int, Channel] = {}
        """By the finding's number; without those of texts that were looked at without a channel."""
        self.questions: list[Question] = []
        self.blocked: Finding | None = None
        self.measure = Measure()
        self.noted: Noted | None = None
        """Where a shadow reads afterwards what was looked at."""

    def decides(self, applies_to: AppliesTo) -> bool:
        """Whether anything could be kept from the reader in this kind of text."""
        return any(guardrail.decides for guardrail in self.policy.running(applies_to))

    def untouched(self, applies_to: AppliesTo) -> bool:
        """Whether nobody looks at this kind of text and nothing is put back into it."""
        return self._restoring is nothing_masked and not self.policy.running(applies_to)

    @property
    def signed_as_shown(self) -> bool:
        """Whether thoughts are sure to be shown, and sent back upstream, as their vendor signed them."""
        return self.untouched(AppliesTo.THINKING) and not self.decides(AppliesTo.PROMPT)

    @property
    def deciding(self) -> bool:
        """Whether anything could be kept from the reader in an answer."""
        return any(map(self.decides, (AppliesTo.RESPONSE, AppliesTo.THINKING, AppliesTo.TOOL_ARGUMENTS)))

    def channel(
        self,
        key: Key,
        applies_to: AppliesTo,
        name: str,
        *,
        kept: bool = False,
        said: bool = False,
        joined: bool = False,
        open_ended: bool = False,
    ) -> Channel:
        """The channel of this key, whose first part is the choice.

        ``kept``: its texts are wanted, for the record where it is the first choice's answer. ``said``: it is known to
        be words for the reader, so that values come back into it. ``joined``: a reader sees it behind the last such
        channel of the choice. ``open_ended``: see there. One that goes on behind others is the one text that it was.
        """
        found = self._channels.get(key)
        if new := found is None:
            found = self._channels[key] = self._made(applies_to, name, said=said)
            found.open_ended = open_ended
            if kept:
                found.visible, found.raw = [], []
                if applies_to is AppliesTo.RESPONSE and isinstance(choice := key[0], int):
                    self.answers.setdefault(choice, []).append(found)
        if joined and found.restorer is not None and (last := self._joined.get(key[0])) is not found:
            self._joined[key[0]] = found
            if last is not None and new:
                found.begins_behind(last)
            elif last is not None:
                found.goes_on_behind(last)
        return found

    def altered(self, channel: Channel) -> bool:
        """Whether a kept channel's text, sent back as it was shown, would go upstream otherwise than it came."""
        return not self._same_again("".join(channel.raw or ()), "".join(channel.visible or ()))

    def known(self, key: Key) -> Channel | None:
        """The channel of this key, if there is one."""
        return self._channels.get(key)

    def _made(self, applies_to: AppliesTo, name: str, *, said: bool = False) -> Channel:
        self.measure.channel()
        made = Channel(Gate(self.policy, applies_to, name), self._restoring(name) if said else None)
        if self.blocked is not None:
            made.gate.stop()
        if self.beside.wants(applies_to):
            made.heard = []
        self._every.append(made)
        return made

    def feed(self, channel: Channel, text: str) -> None:
        """More text of a channel. Raises ``Endless``."""
        if channel.ended:
            return
        self.measure.said(len(text))
        if text := channel.mender.feed(text):
            if channel.raw is not None:
                channel.raw.append(text)
            if self.noted is not None:
                self.noted.came(channel.gate, text)
            if channel.heard is not None:
                channel.heard.append(text)
            self._came(channel, channel.gate.feed(text))

    def finish(self, channel: Channel) -> None:
        """A channel's text has ended. Of one that was stopped nothing more is shown."""
        if channel.ended:
            return
        if rest := channel.mender.finish():
            if self.noted is not None:
                self.noted.came(channel.gate, rest)
            if channel.heard is not None:
                channel.heard.append(rest)
            self._came(channel, channel.gate.feed(rest))
        channel.ended = True
        self._came(channel, channel.gate.finish())

    def whole(self, text: str, applies_to: AppliesTo, name: str) -> Channel:
        """A text that is complete."""
        made = self._made(applies_to, name)
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
        text_in = laid_open(mender.feed(text) + mender.finish(), self._finder(applies_to))
        gate = Gate(self._immediate, applies_to, name)
        effects = [*gate.feed(text_in), *gate.finish()]
        shown = "".join(e[1] for e in effects if e[0] == gates.RELEASE or e[0] == gates.REDACTED)
        if self.noted is not None:
            self.noted.whole(applies_to, name, text_in, _found_of(effects), gate.counters.released)
        self._noted(effects)
        if not asked and self.must_ask(applies_to) and _says_something(text):
            shown = ""
        if shown == text and len(self._clean) < 1_000:
            self._clean.add((applies_to, text))
        return shown

    def decoded(self, text: str, *, again: bool = False) -> str:
        """Complete arguments that no parser takes, or not every one alike: rules look at them as strings say them.

        What nothing was hidden in is as the model wrote it. So is what is no JSON where all that was found is found in
        it as it stands: it may be a program, to which every sign matters. ``again``: its strings have been looked at
        one by one, and of what is found now only that counts which is done about it.
        """
        mender, channel = Mender(), JsonChannel()
        gate = Gate(self._immediate, AppliesTo.TOOL_ARGUMENTS, "tool_arguments")
        written = mender.feed(text) + mender.finish()
        said = laid_open(written, self._finder(AppliesTo.TOOL_ARGUMENTS))
        read, rest = channel.decode(said), channel.decode_rest()
        effects = [*gate.feed(read), *gate.feed(rest), *gate.finish()]
        found = _found_of(effects)
        asked = has_escapes(written) and self.must_ask(AppliesTo.TOOL_ARGUMENTS)
        if found and not (asked or channel.is_json or gate.blocked):
            there = self._finder(AppliesTo.TOOL_ARGUMENTS)(said)
            if _said_in(said, there) >= _said_in(read + rest, found):
                return said
        if self.noted is not None:
            self.noted.whole(AppliesTo.TOOL_ARGUMENTS, gate.channel, read + rest, found, gate.counters.released)
        self._noted([e for e in effects if not again or e[0] != gates.FOUND or _hides(e[1])])
        shown = "".join(e[1] for e in effects if e[0] == gates.RELEASE or e[0] == gates.REDACTED)
        if shown == read + rest and not asked:
            return written
        return channel.encode(effects) + channel.finish()

    def stays(self, text: str) -> bool:
        """Whether rules hide nothing of the JSON of an object. How long a text may be is a matter of its strings."""
        if text in self._clean_objects:
            return True
        stays = gates.gate_text(self._limitless, text, applies_to=AppliesTo.RESPONSE, channel="field").visible == text
        if stays and len(self._clean_objects) < 1_000:
            self._clean_objects.add(text)
        return stays

    def by_name(self, text: str, *, told: bool) -> str:
        """The JSON of an object as rules leave it that go by the name of a field. ``told``: findings are told already.

        Those about which nothing is done are told of its strings alone.
        """
        channel, gate = JsonChannel(), Gate(self._limitless, AppliesTo.RESPONSE, "field")
        read = channel.decode(text) + channel.decode_rest()
        effects = [*gate.feed(read), *gate.finish()]
        if self.noted is not None and not told:
            found, released = _found_of(effects), gate.counters.released
            self.noted.whole(AppliesTo.RESPONSE, "field", read, found, released, limits=False)
        self._noted([] if told else [e for e in effects if e[0] != gates.FOUND or _hides(e[1]) or gate.blocked])
        return channel.encode(effects) + channel.finish()

    def hides(self, text: str, applies_to: AppliesTo) -> bool:
        """Whether rules hide something of a complete text, or stop it."""
        return gates.gate_text(self._immediate, text, applies_to=applies_to, channel="field").visible != text

    def _finder(self, applies_to: AppliesTo) -> Callable[[str], list[Finding]]:
        return lambda text: gates.gate_text(self._immediate, text, applies_to=applies_to, channel="field").findings

    def _noted(self, effects: list[gates.Effect]) -> None:
        for effect in effects:
            if effect[0] == gates.FOUND:
                self._found(effect[1])
            elif effect[0] == gates.BLOCKED:
                self._stop(effect[1])

    def must_ask(self, applies_to: AppliesTo) -> bool:
        """Whether somebody who decides has to be asked about this kind of text."""
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
                    if effect[0] == gates.REDACTED:
                        channel.hidden.append(len(channel.recorded))
                    channel.shown(effect[1])
            elif effect[0] == gates.FOUND:
                if self.noted is not None:
                    self.noted.found(channel.gate, effect[1])
                self._found(effect[1])
                self.found_in[len(self.findings)] = channel
            elif effect[0] == gates.CHECK:
                self.questions.append(Question(channel, effect[1]))
            else:
                self._stop(effect[1])
        if channel.ended and not channel.gate.waiting:
            channel.shown_all()
        if channel.followers and self.blocked is None:
            channel.wake()

    def _found(self, finding: Finding) -> None:
        self.findings.append(replace(finding, n=len(self.findings) + 1))

    def _stop(self, finding: Finding) -> None:
        if self.blocked is not None:
            return
        self.blocked = finding
        for channel in self._every:
            if not channel.gate.blocked:
                self._came(channel, channel.gate.stop())

    def heard_beside(self) -> Beside:
        """The answer's texts that are no answer, for workers."""
        for channel in self._every:
            self.beside.add(channel.gate.applies_to, "".join(channel.heard or ()), channel.gate.counters.released)
        return self.beside

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


def _said_in(text: str, found: list[Finding]) -> Counter[tuple[str, str, str]]:
    """What was found in a text, by guardrail and rule, as it stands there."""
    return Counter((finding.guardrail, finding.rule, text[finding.start : finding.end]) for finding in found)


def _hides(finding: Finding) -> bool:
    return finding.mode is Mode.BLOCK and finding.action in HIDING


def _found_of(effects: list[gates.Effect]) -> list[Finding]:
    return [effect[1] for effect in effects if effect[0] == gates.FOUND]


def outcome_of(findings: list[Finding], *, blocked: bool) -> Outcome:
    """How a request that came to its end is called."""
    if blocked:
        return Outcome.BLOCKED
    actions = {finding.action for finding in findings if finding.mode is Mode.BLOCK}
    if actions & {Action.REDACT, Action.MASK}:
        return Outcome.REDACTED
    return Outcome.WARNED if Action.WARN in actions else Outcome.ALLOWED
