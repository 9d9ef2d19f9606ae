"""Where findings stand in the two texts that are stored of a request: what was asked last, and what was answered.

Exists because a request is thousands of strings and an answer a row of blocks, each looked at by itself, while the
record has one prompt and one answer. Protects the rule that a mark never lies: a finding's channel is ``prompt`` or
``text`` only where the stored text is, piece by piece, what its strings came to; what was found elsewhere says where.
Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from guardrails.findings import Action, Finding, Mode
from guardrails.masking import LENGTH, well_formed
from streaming.checks import CheckedText, Later
from streaming.gateway.channel import Channel
from streaming.gateway.gates import Gates

Redactions = list[tuple[int, str]]
"""[offset in the visible text, placeholder] pairs."""
PROMPT = "prompt"
BETWEEN = "\n"
"""What the texts of a message's parts are joined with."""
_FIELDS = frozenset(
    {"system", "tools", "functions", "tool_choice", "metadata", "user", "stop", "stop_sequences", "format",
     "response_format", "options", "model", "prediction"}
)  # fmt: skip


def channel_of(turn: int, top: object) -> str:
    """What findings of a request say of where they are. ``turn``: of the message, -1 for none; ``top``: the field of
    the request, which a client may call as it likes."""
    if turn >= 0:
        return f"messages[{turn}]"[:32]
    return str(top) if top in _FIELDS else "request"


@dataclass(slots=True)
class _Part:
    """A text of the message: where it begins in all of them, and what came of it. ``hidden``: None, nobody can say."""

    at: int
    text: str
    shown: str = ""
    hidden: Redactions | None = field(default_factory=list)
    whole: bool = True


class Asked:
    """The message that a request asks last. Its strings are told with ``looked`` as they are looked at."""

    def __init__(self, turn: int, content: object, raw: str, holder: object) -> None:
        self._turn = turn
        self._parts: dict[tuple[int, str | int], _Part] = {}
        at = 0
        for where, key, text in _texts(content, holder):
            self._parts[id(where), key] = _Part(at, text, text)
            at += len(text) + len(BETWEEN)
        self._fits = BETWEEN.join(part.text for part in self._parts.values()) == raw

    def looked(
        self, holder: object, key: str | int, text: str, shown: str, checked: CheckedText,
        quoted: tuple[str, CheckedText] | None = None,
    ) -> tuple[list[Finding], list[Later]]:  # fmt: skip
        """A string of the request, before and after: its findings with their place, and what is still to be asked.

        ``quoted``: the same with quotes around its numbers, and the findings there, where that is what is shown.
        """
        part = self._parts.get((id(holder), key))
        if part is None:
            return checked.findings, checked.later
        if text != part.text:
            self._fits = False
            return checked.findings, checked.later
        part.shown, part.whole = shown, checked.blocked is None
        was, there = quoted or (text, checked)
        part.hidden = there.redactions if shown == there.visible else hidden_in(was, shown, there)
        found = [_moved(finding, PROMPT, part.at) for finding in checked.findings]
        return found, [replace(later, channel=PROMPT, at=part.at) for later in checked.later]

    def settled(self, shown: str, findings: list[Finding], later: list[Later]) -> Redactions:
        """All have been looked at, and ``shown`` is what is stored: what stands in it for what was hidden.

        Where it is not what the parts came to, ``findings`` and what is still to be asked go by the message alone.
        """
        parts = list(self._parts.values())
        out: Redactions = []
        at = 0
        for part in parts:
            self._fits = self._fits and part.hidden is not None and (part.whole or part is parts[-1])
            out += [(at + place, label) for place, label in part.hidden or ()]
            at += len(part.shown) + len(BETWEEN)
        if self._fits and BETWEEN.join(part.shown for part in parts) == shown:
            return out
        name = channel_of(self._turn, "")
        findings[:] = [replace(one, channel=name) if one.channel == PROMPT else one for one in findings]
        later[:] = [replace(one, channel=name) if one.channel == PROMPT else one for one in later]
        return []


def _texts(content: object, holder: object) -> Iterator[tuple[object, str | int, str]]:
    if isinstance(content, str):
        yield holder, "content", content
    elif isinstance(content, list):
        for part in content:
            if isinstance(part, dict) and isinstance(text := part.get("text"), str):
                yield part, "text", text


def hidden_in(text: str, shown: str, checked: CheckedText) -> Redactions | None:
    """Where placeholders of masked values stand in ``shown``; None where it does not read like ``text`` beside them."""
    hidden = spans(checked.findings)
    out: Redactions = []
    at = done = 0
    for number, (start, end) in enumerate(hidden):
        if shown[at : at + start - done] != text[done:start]:
            return None
        at += start - done
        following = text[end : hidden[number + 1][0] if number + 1 < len(hidden) else len(text)]
        masked = shown[at : at + LENGTH]
        labels = [masked] if well_formed(masked) else []
        labels += [label for _, label in checked.redactions[number : number + 1]]
        label = next((one for one in labels if shown.startswith(one + following, at)), None)
        if label is None:
            return None
        out.append((at, label))
        at, done = at + len(label), end
    return out if shown[at:] == text[done:] else None


def spans(findings: Iterable[Finding]) -> list[tuple[int, int]]:
    """What is hidden of a text, in its order: findings that overlap are hidden as one."""
    out: list[tuple[int, int]] = []
    hidden = [f for f in findings if f.mode is Mode.BLOCK and f.action in (Action.REDACT, Action.MASK)]
    for start, end in sorted((finding.start, finding.end) for finding in hidden):
        if out and start < out[-1][1]:
            out[-1] = (out[-1][0], max(end, out[-1][1]))
        else:
            out.append((start, end))
    return out


def answered(gates: Gates) -> tuple[list[Finding], Redactions]:
    """The findings of an answer with their places in what is stored of it, and what stands there for what was hidden.

    Its blocks are stored joined. Where one of them ended before all of it was shown and another stands behind it,
    places in it and behind it are places of the blocks.
    """
    names: dict[int, tuple[str, int]] = {}
    out: Redactions = []
    for choice, channels in gates.answers.items():
        clear = _clear(channels)
        at = shown = 0
        for number, channel in enumerate(channels):
            name = "text" if number < clear else f"blocks[{number}]"
            names[id(channel)] = (name if choice == 0 else f"choices[{choice}]"[:32], at if number < clear else 0)
            if choice == 0 and number < clear:
                out += _redactions(channel, shown)
            at += channel.gate.counters.chars_in
            shown += sum(map(len, channel.recorded))
    found = []
    for finding in gates.findings:
        place = names.get(id(gates.found_in.get(finding.n)))
        found.append(finding if place is None else _moved(finding, *place))
    return found, out


def _clear(channels: Sequence[Channel]) -> int:
    """How many channels, from the first on, have their place in all of them joined."""
    last = max((number for number, channel in enumerate(channels) if channel.recorded), default=-1)
    cut = next((number for number, channel in enumerate(channels[: max(last, 0)]) if not channel.all_came), None)
    return len(channels) if cut is None else cut


def _redactions(channel: Channel, at: int) -> Iterator[tuple[int, str]]:
    chips = set(channel.hidden)
    for number, text in enumerate(channel.recorded):
        if number in chips:
            yield at, text
        at += len(text)


def _moved(finding: Finding, channel: str, by: int) -> Finding:
    return replace(finding, channel=channel, start=finding.start + by, end=finding.end + by)
