"""What goes upstream: every string of a request, checked, before anything of it leaves.

Exists because a client of the gateway sends whatever its dialect allows, and fields that are newer than this program.
Protects three rules. No string is passed on that the policy's guardrails for prompts have not seen: messages, results
of tools, documents, descriptions, names of fields, and strings inside JSON that is a string itself. A picture or sound
that no guardrail can read is passed only where the policy is allowed to, and refused otherwise. And what a guardrail
that does not decide thinks of a text, nobody waits for.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol, cast

from guardrails.findings import AppliesTo, Finding
from guardrails.kinds.base import Turn
from guardrails.masking import masking_guardrails
from guardrails.performance import Checkpoint
from guardrails.policy import Guardrail, Policy
from streaming.checks import CheckedText, Later, Looked, check_text, looked_at
from streaming.core.events import GuardrailStatus
from streaming.core.gate import FOUND, Gate
from streaming.core.text import unusable
from streaming.gateway.by_name import by_name, left, structure, without_limits, written
from streaming.gateway.laid import Asked, channel_of
from streaming.gateway.loose_json import laid_open_in_turns
from streaming.gateway.media import Media
from streaming.gateway.names import Names, Path, is_parameter, spelled
from streaming.gateway.outside import Hide, Hiding, needed
from streaming.gateway.quoted import hides, quoted
from streaming.gateway.sweep import Swept, as_it_is, json_in, sweep
from streaming.gateway.thoughts import without_unsigned
from streaming.gateway.walker import Json
from streaming.slices import SLICE, fed

MAX_DEPTH = 60
MAX_STRINGS = 50_000
MAX_NAME_CHARS = 2_000
_STRUCTURE = frozenset(
    {"role", "type", "id", "model", "name", "object", "tool_call_id", "tool_use_id", "format", "detail", "media_type"}
)
"""Fields whose values are names of things: rules look at them, nobody is asked about them."""
_LONGEST_NAME = 64
_LOOK = 64
"""Looking at a text costs as much as this many characters, however short it is."""
_WRITTEN = frozenset({"input", "arguments", "json"})
"""What stands behind these a model or a tool has written, whatever it calls its fields."""


class Mask(Protocol):
    """What goes upstream instead of a text, when its guardrails have looked at it."""

    def __call__(self, text: str, checked: CheckedText, *, again: bool = False) -> str:
        """``again``: the strings in the text, which is JSON, have been masked one by one."""


class BadRequest(ValueError):
    """A request that cannot be passed on. ``field``: where it is wrong; ``code`` in our words."""

    def __init__(self, message: str, field: str = "", code: str = "invalid") -> None:
        super().__init__(message)
        self.field = field
        self.code = code


def visible(text: str, checked: CheckedText, *, again: bool = False) -> str:
    """Where nothing is masked: what the guardrails left."""
    return checked.visible


@dataclass(slots=True)
class Prompted:
    """A request after the guardrails. ``raw``, ``shown``: the last message of the user, before and after."""

    body: Json
    raw: str = ""
    shown: str = ""
    findings: list[Finding] = field(default_factory=list)
    blocked: Finding | None = None
    statuses: list[GuardrailStatus] = field(default_factory=list)
    later: list[Later] = field(default_factory=list)
    looked: list[Looked] = field(default_factory=list)
    media: tuple[str, ...] = ()
    refused: BadRequest | None = None
    """The policy lets no media through that it cannot look at, and there are some."""
    chars: int = 0
    withheld: int = 0
    """Characters of what was blocked."""
    beside: list[tuple[AppliesTo, str]] = field(default_factory=list)
    """Results of tools and documents that the model has not answered yet, as they came."""
    redactions: list[tuple[int, str]] = field(default_factory=list)
    """Offsets in ``shown``, and the placeholders that stand there."""
    hiding: Hiding | None = None
    """What hides values from guardrails that are asked over the network; None: nothing does."""
    masking: Hiding | None = None
    """The same for guardrails of a shadow, also where the active version has none that is asked so."""

    def told(self, guardrail: Guardrail, text: str, applies_to: AppliesTo = AppliesTo.PROMPT) -> str:
        """A text of the user's as this guardrail may be told it."""
        if self.hiding is None or not guardrail.impl.performance.network:
            return text
        return self.hiding.whole(text, applies_to)

    def told_beside(self, guardrail: Guardrail, text: str, applies_to: AppliesTo) -> str:
        """The same for a guardrail of a shadow, when the answer is over."""
        if self.masking is None or not guardrail.impl.performance.network:
            return text
        return self.masking.whole(text, applies_to)


@dataclass(frozen=True, slots=True)
class _Place:
    """A string of the request. ``turn``: the number of the message that it is in, -1 for none."""

    holder: Json | list[object]
    key: str | int
    text: str
    applies_to: AppliesTo
    turn: int = -1
    structure: bool = False
    top: str | int = ""
    """The field of the request that it is in."""
    inner: int = 0
    """How many strings of JSON it stands in; each of them is a place of its own."""
    called: str | None = None
    """How the field is called that has it, where ``text`` is its JSON with that name."""
    of: int = -1
    """The number of what is looked at by its name that it is, or stands in; -1 for none."""

    @property
    def parsed(self) -> bool:
        """It is looked at as JSON that it is not."""
        return self.called is not None

    def again(self) -> _Place:
        """The same with the JSON of what stands there now."""
        now = self.holder[self.key]  # type: ignore[index]  # keys are its own
        return replace(self, text=written(by_name(now, self.called or "")))


class _Told:
    """What was found in the strings of objects and is still there: in the JSON of the object it is found again."""

    def __init__(self) -> None:
        self._found: dict[tuple[int, str, str], Counter[str]] = {}

    def note(self, place: _Place, found: Iterable[Finding]) -> None:
        """Of a string that may stand in an object."""
        for one in found if place.of >= 0 else ():
            if not hides(one):
                said = json.dumps(place.text[one.start : one.end], ensure_ascii=False)[1:-1]
                self._found.setdefault((place.of, one.guardrail, one.rule), Counter())[said] += 1

    def again(self, place: _Place, one: Finding) -> bool:
        """Whether a finding in the JSON of an object is one of those; each of them is found again once.

        What stands in the name of a field is told of the name.
        """
        said = place.text[one.start : one.end]
        if hides(one):
            return False
        if said in (place.called or ""):
            return True
        if not (found := self._found.get((place.of, one.guardrail, one.rule))):
            return False
        within = [said] if said in found else [text for text in found if text in said] if len(found) <= _FEW else []
        for text in within:
            found[text] -= 1
            if not found[text]:
                del found[text]
        return bool(within)


_FEW = 64
"""Texts that are looked for within another one."""


async def guarded(
    policy: Policy,
    body: Json,
    *,
    media_allowed: bool,
    mask: Mask = visible,
    swept: Swept = as_it_is,
    masked: Swept | None = None,
    hide: Hide | None = None,
) -> Prompted:
    """The request as it may go upstream, or is refused. ``policy`` as the gateway runs it. Raises ``BadRequest``.

    ``swept``: a text without the values that were masked or redacted in others, when all of them have been;
    ``masked``: without the masked ones alone. ``hide``: what
    guardrails over the network are told; None: what was typed.
    """
    body = without_unsigned(body) if policy.guardrails else body
    walk = _Walk(policy, mask)
    copied = cast("Json", await walk.copy(body, (), AppliesTo.PROMPT, -1))
    out = Prompted(copied, media=tuple(dict.fromkeys(walk.media.kinds)))
    if out.media and not media_allowed and any(g.decides for g in policy.running(AppliesTo.PROMPT)):
        what = " and ".join(out.media)
        said = f"The policy “{policy.name}” cannot look at what this request has beside text ({what})."
        out.refused = BadRequest(said, "messages", "media_refused")
        policy = policy.only(Checkpoint.IMMEDIATE)  # for the record; nobody is asked about what goes nowhere
    turns = _turns(body)
    if hide is not None and masking_guardrails(policy):
        out.masking = Hiding(policy, hide)
    if out.masking is not None and needed(policy):
        out.hiding = out.masking
        await out.hiding.learn(
            (place.text, place.applies_to)
            for place in (*walk.places, *(place for place, _, _ in walk.inside), *walk.objects)
        )
    earlier = await _visible(policy, turns, swept)
    asked = next((number for number in range(len(turns) - 1, -1, -1) if turns[number].role == "user"), -1)
    last: Json = cast("list[Json]", copied["messages"])[asked] if asked >= 0 else {}
    asking = Asked(asked, last.get("content"), turns[asked].text if asked >= 0 else "", last)
    told = _Told()
    await _check(policy, walk.places, earlier, out, mask, asking, told)
    for depth in sorted({place.inner for place, _, _ in walk.inside}, reverse=True):
        second: list[_Place] = []
        for place, value, before in walk.inside:  # JSON within a string: its own strings have been looked at by now
            if place.inner == depth:
                text = place.text if value == before else written(value)
                second.append(replace(place, text=text, structure=False, inner=0))
        if out.hiding is not None:
            await out.hiding.learn((place.text, place.applies_to) for place in second)
        await _check(policy, second, earlier, out, mask, asking, told, again=True)
    third = [place.again() for place in walk.objects]
    if out.hiding is not None:
        await out.hiding.learn((place.text, place.applies_to) for place in third)
    await _check(policy, third, earlier, out, mask, asking, told, again=True)
    out.findings += walk.names.findings
    copied = out.body = await sweep(copied, swept, walk.media.apart, masked)
    out.blocked = out.blocked or walk.names.blocked
    out.withheld += walk.names.withheld
    if asked >= 0:
        out.raw = turns[asked].text
        out.shown = _text_of(cast("list[Json]", copied["messages"])[asked].get("content"))
        out.redactions = asking.settled(out.shown, out.findings, out.later)
    answered = max((number for number, turn in enumerate(turns) if turn.role == "assistant"), default=-1)
    out.beside = [
        (place.applies_to, place.text)
        for place in (*walk.places, *(place for place, _, _ in walk.inside))
        if place.applies_to is not AppliesTo.PROMPT and place.turn > answered and not (place.structure or place.inner)
    ]
    if out.hiding is not None:
        await out.hiding.learn([(out.raw, AppliesTo.PROMPT)])
    return out


async def _check(
    policy: Policy, places: list[_Place], turns: tuple[Turn, ...], out: Prompted, mask: Mask, asked: Asked,
    told: _Told, *, again: bool = False,
) -> None:  # fmt: skip
    """``told``: what was found in strings of objects; what is found again in the JSON of its object is told once."""
    rules = policy.only(Checkpoint.IMMEDIATE)
    objects = without_limits(rules) if any(place.parsed for place in places) else rules

    async def look(place: _Place) -> CheckedText:
        return await check_text(
            objects if place.parsed else rules if place.structure else policy,
            place.text,
            applies_to=place.applies_to,
            channel=channel_of(place.turn, place.top),
            conversation=turns[: max(0, place.turn)],
            later=True,
            outside=None if out.hiding is None else await out.hiding.learned(place.text, place.applies_to),
        )

    async def one(place: _Place) -> tuple[_Place, CheckedText]:
        return place, await look(place)

    asking = any(g.decides and g.checkpoint is not Checkpoint.IMMEDIATE for g in policy.guardrails)
    done: list[tuple[_Place, CheckedText]] = []
    since = 0
    if asking:
        done = list(await asyncio.gather(*(one(place) for place in places)))
    else:
        for place in places:
            done.append(await one(place))
            since += len(place.text) + _LOOK
            if since > SLICE:
                since = 0
                await asyncio.sleep(0)  # others stream meanwhile
    for place, checked in done:
        looked = looked_at(checked, place.text, place.applies_to, channel_of(place.turn, place.top))
        out.looked.append(replace(looked, asked=not place.structure, limits=not place.parsed))
        out.chars += len(place.text)
        if checked.blocked is not None and (out.blocked is None or not again):
            out.withheld += len(place.text) - checked.counters.released
        out.blocked = out.blocked or checked.blocked
        out.statuses += checked.statuses
        quotes = quoted(place.text, checked)  # a rule that knows a number by its not being a string needs them off
        text, there = quotes or (place.text, checked)
        shown = mask(text, there, again=again)
        if place.called is None:
            place.holder[place.key] = shown  # type: ignore[index]
        elif shown != place.text:
            value = place.holder[place.key]  # type: ignore[index]
            place.holder[place.key] = left(shown, value, place.called)  # type: ignore[index]
        findings, later = asked.looked(place.holder, place.key, place.text, shown, checked, quotes)
        if place.parsed:
            findings = [finding for finding in findings if not told.again(place, finding)]
        else:
            told.note(place, checked.findings)
        out.findings += findings
        out.later += later


class _Walk:
    """A copy of the request, and where its strings stand in it."""

    def __init__(self, policy: Policy, mask: Mask) -> None:
        self._rules = policy.only(Checkpoint.IMMEDIATE)
        self.names = Names(self._rules, mask)
        self.places: list[_Place] = []
        self.inside: list[tuple[_Place, object, object]] = []
        self.objects: list[_Place] = []
        self.media = Media()
        self._numbers = 0
        self._of = -1  # what is looked at by its name, too
        self._inside_text = 0  # in how many strings of JSON
        self._since = 0  # characters looked at since others had their turn

    async def copy(self, value: object, path: Path, applies_to: AppliesTo, turn: int) -> object:
        """A copy of a part. Raises ``BadRequest``."""
        if len(path) > MAX_DEPTH:
            raise BadRequest("The request is nested too deep.", _dotted(path[:4]))
        match value:
            case dict(fields):
                return await self._object(cast("Json", fields), path, applies_to, turn)
            case list(items):
                made: list[object] = []
                for at, item in enumerate(items):
                    number = at if path == ("messages",) else turn
                    made.append(item)
                    if self.media.picture(item, (*path, at)):
                        continue
                    await self._put(made, at, item, (*path, at), applies_to, number)
                return made
        return value

    async def _object(self, fields: Json, path: Path, applies_to: AppliesTo, turn: int) -> Json:
        applies_to = _kind_of(fields, applies_to)
        within = self.media.see(fields, path)
        known = structure(path) if self._of < 0 and not self._inside_text else None
        out: Json = {}
        numbers: dict[str, int] = {}
        for name, value in fields.items():
            if why := unusable(name):
                raise BadRequest(f"A name in “{_dotted(path)}” {why}.", _dotted(path))
            if len(name) > MAX_NAME_CHARS:
                where = _dotted(path)
                raise BadRequest(f"A name in “{where}” has more than {MAX_NAME_CHARS:,} characters.", where)
            self._bounded()
            key = self.names.shown(name, applies_to, (fields, out), numbers)
            await self._looked_at(len(name) + _LOOK)
            if within and self.media.passes(name, value, (*path, name)):
                out[key] = value
                continue
            called = None if known is None else known.called(name, value, path)
            if called is not None:
                self._of = len(self.objects)
            await self._put(out, key, value, (*path, name), applies_to, turn)
            if called is not None:
                called, top = key if called == name else called, path[0] if path else name
                place = _Place(out, key, "", applies_to, turn, True, top, called=called, of=self._of)
                self.objects.append(place.again())
                self._of = -1
                self._bounded()
                await self._looked_at(len(self.objects[-1].text))
        return out

    async def _put(
        self, holder: Json | list[object], key: str | int, value: object, path: Path,
        applies_to: AppliesTo, turn: int,
    ) -> None:  # fmt: skip
        if not isinstance(value, str):
            holder[key] = await self.copy(value, path, applies_to, turn)  # type: ignore[index]
            if await self._found_in_number(value, path, applies_to):
                said = holder[key] = spelled(cast("int | float", value))  # type: ignore[index]  # what hides it is text
                place = _Place(holder, key, said, applies_to, turn, structure=True, top=path[0], of=self._of)
                self.places.append(place)
            return
        if why := unusable(value):
            raise BadRequest(f"“{_dotted(path)}” {why}.", _dotted(path))
        holder[key] = value  # type: ignore[index]
        self._bounded()
        inner = json_in(value)
        if inner is None:
            value = holder[key] = await laid_open_in_turns(value, self._finder(applies_to))  # type: ignore[index]
        structure, inside = _is_structure(path, value), path.count("json")
        place = _Place(
            holder, key, value, applies_to, turn, structure=structure, top=path[0], inner=inside, of=self._of
        )
        if inner is None:
            if value:
                self.places.append(place)
            return
        self._inside_text += 1
        self.inside.append((place, await self.copy(inner, (*path, "json"), applies_to, turn), inner))
        self._inside_text -= 1

    def _bounded(self) -> None:
        found = len(self.places) + len(self.inside) + len(self.objects) + len(self.names) + self._numbers
        if found >= MAX_STRINGS:
            raise BadRequest(f"The request has more than {MAX_STRINGS:,} strings, names of fields and long numbers.")

    async def _looked_at(self, chars: int) -> None:
        """Others stream meanwhile."""
        self._since += chars
        if self._since >= SLICE:
            self._since = 0
            await asyncio.sleep(0)

    def _finder(self, applies_to: AppliesTo) -> Callable[[str], Awaitable[list[Finding]]]:
        async def found(text: str) -> list[Finding]:
            gate = Gate(self._rules, applies_to, "prompt")
            effects = [*await fed(gate, text), *gate.finish()]
            await self._looked_at(len(text) + _LOOK)
            return sorted((e[1] for e in effects if e[0] == FOUND), key=lambda f: (f.start, f.end))

        return found

    async def _found_in_number(self, value: object, path: Path, applies_to: AppliesTo) -> bool:
        """Whether a number is more than a number: an account in the arguments of an earlier call, for one."""
        if isinstance(value, bool) or not isinstance(value, int | float) or is_parameter(path) or len(str(value)) < 6:
            return False
        self._numbers += 1
        self._bounded()
        return bool(await self._finder(applies_to)(spelled(value)))


def _kind_of(fields: Json, applies_to: AppliesTo) -> AppliesTo:
    match fields:
        case {"role": "tool" | "function"}:
            return AppliesTo.TOOL_RESULT
        case {"type": str(kind)} if kind.endswith("tool_result"):  # of tools that the vendor runs, too
            return AppliesTo.TOOL_RESULT
        case {"type": "document" | "file" | "search_result"}:
            return AppliesTo.DOCUMENT
    return applies_to


def _is_structure(path: Path, value: str) -> bool:
    """Whether a value is the name of something, and no sentence that stands where a name should."""
    if path[-1] not in _STRUCTURE or len(value) > _LONGEST_NAME or any(map(str.isspace, value)):
        return False
    return _WRITTEN.isdisjoint(path)


async def _visible(policy: Policy, turns: tuple[Turn, ...], swept: Swept) -> tuple[Turn, ...]:
    """The messages as guardrails that want the conversation are told it: without what the rules hide, and what is
    known to be masked."""
    if not any(g.impl.wants_conversation for kind in AppliesTo for g in policy.running(kind)):
        return ()
    rules = policy.only(Checkpoint.IMMEDIATE)
    seen: list[Turn] = []
    for turn in turns:
        checked = await check_text(rules, turn.text, applies_to=AppliesTo.PROMPT, channel="prompt")
        seen.append(Turn(turn.role, swept(checked.visible)))
        await asyncio.sleep(0)  # others stream meanwhile
    return tuple(seen)


def conversation(prompted: Prompted) -> tuple[Turn, ...]:
    """What guardrails of the answer are told was said before: the messages as they went upstream."""
    return _turns(prompted.body)


def first_asked(body: Json) -> str:
    """The text that a conversation began with: the first message of a user."""
    return next((turn.text for turn in _turns(body) if turn.role == "user"), "")


def _turns(body: Json) -> tuple[Turn, ...]:
    messages = body.get("messages")
    return tuple(
        Turn(str(message.get("role", "")), _text_of(message.get("content")))
        for message in (messages if isinstance(messages, list) else [])
        if isinstance(message, dict)
    )


def _text_of(content: object) -> str:
    return "\n".join(_texts(content))


def _texts(content: object) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in content:
            if isinstance(part, dict) and isinstance(text := part.get("text"), str):
                yield text


def _dotted(path: Path) -> str:
    out = ""
    for part in path:
        out += f"[{part}]" if isinstance(part, int) else f".{part}" if out else part
    return out
