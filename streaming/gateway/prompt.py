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
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol, cast

from guardrails.findings import AppliesTo, Finding
from guardrails.kinds.base import Turn
from guardrails.performance import Checkpoint
from guardrails.policy import Policy
from streaming.checks import CheckedText, Later, check_text
from streaming.core.events import GuardrailStatus
from streaming.core.gate import gate_text
from streaming.core.text import unusable
from streaming.gateway.walker import Json

MAX_DEPTH = 60
MAX_STRINGS = 50_000
_STRUCTURE = frozenset(
    {"role", "type", "id", "model", "name", "object", "tool_call_id", "tool_use_id", "format", "detail", "media_type"}
)
"""Fields whose values are names of things: rules look at them, nobody is asked about them."""
_MEDIA = {
    "image_url": "image", "image": "image", "input_image": "image", "input_audio": "audio", "audio": "audio",
    "file": "file", "input_file": "file", "container_upload": "file", "video_url": "video", "video": "video",
}  # fmt: skip
_OPAQUE = frozenset({"data", "url", "file_data", "file_id", "image_url", "image"})


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
    media: tuple[str, ...] = ()
    chars: int = 0


@dataclass(frozen=True, slots=True)
class _Place:
    """A string of the request. ``turn``: the number of the message that it is in, -1 for none."""

    holder: Json | list[object]
    key: str | int
    text: str
    applies_to: AppliesTo
    turn: int = -1
    structure: bool = False


async def guarded(policy: Policy, body: Json, *, media_allowed: bool, mask: Mask = visible) -> Prompted:
    """The request as it may go upstream. ``policy`` as the gateway runs it. Raises ``BadRequest``."""
    walk = _Walk(policy)
    copied = cast("Json", walk.copy(body, (), AppliesTo.PROMPT, -1))
    out = Prompted(copied, media=tuple(dict.fromkeys(walk.media)))
    if out.media and not media_allowed and any(g.decides for g in policy.running(AppliesTo.PROMPT)):
        what = " and ".join(out.media)
        raise BadRequest(
            f"The policy “{policy.name}” cannot look at what this request has beside text ({what}).",
            "messages",
            "media_refused",
        )
    turns = _turns(body)
    earlier = _visible(policy, turns)
    await _check(policy, walk.places, earlier, out, mask)
    second: list[_Place] = []
    for place, value, before in walk.inside:  # JSON within a string: its own strings have been looked at by now
        text = place.text if value == before else json.dumps(value, ensure_ascii=False)
        second.append(_Place(place.holder, place.key, text, place.applies_to, place.turn))
    await _check(policy, second, earlier, out, mask, again=True)
    out.findings += walk.findings
    out.blocked = out.blocked or walk.blocked
    asked = next((number for number in range(len(turns) - 1, -1, -1) if turns[number].role == "user"), -1)
    if asked >= 0:
        out.raw = turns[asked].text
        out.shown = _text_of(cast("list[Json]", copied["messages"])[asked].get("content"))
    return out


async def _check(
    policy: Policy, places: list[_Place], turns: tuple[Turn, ...], out: Prompted, mask: Mask, *, again: bool = False
) -> None:
    rules = policy.only(Checkpoint.IMMEDIATE)

    async def one(place: _Place) -> tuple[_Place, CheckedText]:
        return place, await check_text(
            rules if place.structure else policy,
            place.text,
            applies_to=place.applies_to,
            channel="prompt" if place.turn < 0 else f"messages[{place.turn}]"[:32],
            conversation=turns[: max(0, place.turn)],
            later=True,
        )

    asking = any(g.decides and g.checkpoint is not Checkpoint.IMMEDIATE for g in policy.guardrails)
    done: list[tuple[_Place, CheckedText]] = []
    if asking:
        done = list(await asyncio.gather(*(one(place) for place in places)))
    else:
        for place in places:
            done.append(await one(place))
            if len(place.text) > 2_000:
                await asyncio.sleep(0)  # others stream meanwhile
    for place, checked in done:
        out.chars += len(place.text)
        out.findings += checked.findings
        out.blocked = out.blocked or checked.blocked
        out.statuses += checked.statuses
        out.later += checked.later
        place.holder[place.key] = mask(place.text, checked, again=again)  # type: ignore[index]  # keys are its own


class _Walk:
    """A copy of the request, and where its strings stand in it."""

    def __init__(self, policy: Policy) -> None:
        self._rules = policy.only(Checkpoint.IMMEDIATE)
        self.places: list[_Place] = []
        self.inside: list[tuple[_Place, object, object]] = []
        self.media: list[str] = []
        self.findings: list[Finding] = []
        self.blocked: Finding | None = None
        self._names: dict[str, str] = {}

    def copy(self, value: object, path: tuple[str | int, ...], applies_to: AppliesTo, turn: int) -> object:
        """A copy of a part. Raises ``BadRequest``."""
        if len(path) > MAX_DEPTH:
            raise BadRequest("The request is nested too deep.", _dotted(path[:4]))
        match value:
            case dict(fields):
                return self._object(cast("Json", fields), path, applies_to, turn)
            case list(items):
                made: list[object] = []
                for at, item in enumerate(items):
                    number = at if path == ("messages",) else turn
                    made.append(None)
                    self._put(made, at, item, (*path, at), applies_to, number)
                return made
        return value

    def _object(self, fields: Json, path: tuple[str | int, ...], applies_to: AppliesTo, turn: int) -> Json:
        applies_to = _kind_of(fields, applies_to)
        opaque = self._see(fields, path)
        out: Json = {}
        for name, value in fields.items():
            key = self._name(name, path)
            if opaque and name in _OPAQUE and _is_opaque(value):
                out[key] = value
            elif name == "images" and isinstance(value, list) and turn >= 0:
                self.media.append("image")
                out[key] = value
            else:
                self._put(out, key, value, (*path, name), applies_to, turn)
        return out

    def _see(self, fields: Json, path: tuple[str | int, ...]) -> bool:
        """Note what no guardrail can read; True where this object holds it."""
        kind, within = fields.get("type"), path[-1] if path else ""
        if isinstance(kind, str) and kind in _MEDIA and "messages" in path:
            self.media.append(_MEDIA[kind])
        elif kind == "document" and isinstance(source := fields.get("source"), dict) and source.get("type") != "text":
            self.media.append("document")
        elif not path and isinstance(modalities := fields.get("modalities"), list) and "audio" in modalities:
            self.media.append("audio")
        return within in ("source", "image_url", "input_audio", "file", "video_url")

    def _put(
        self, holder: Json | list[object], key: str | int, value: object, path: tuple[str | int, ...],
        applies_to: AppliesTo, turn: int,
    ) -> None:  # fmt: skip
        if not isinstance(value, str):
            holder[key] = self.copy(value, path, applies_to, turn)  # type: ignore[index]
            if self._found_in_number(value, path, applies_to):
                said = holder[key] = json.dumps(value)  # type: ignore[index]  # what hides it is text
                self.places.append(_Place(holder, key, said, applies_to, turn, structure=True))
            return
        if why := unusable(value):
            raise BadRequest(f"“{_dotted(path)}” {why}.", _dotted(path))
        holder[key] = value  # type: ignore[index]
        if len(self.places) + len(self.inside) >= MAX_STRINGS:
            raise BadRequest(f"The request has more than {MAX_STRINGS:,} strings.")
        place = _Place(holder, key, value, applies_to, turn, structure=path[-1] in _STRUCTURE)
        inner = _json_in(value)
        if inner is None:
            if value:
                self.places.append(place)
            return
        self.inside.append((place, self.copy(inner, (*path, "json"), applies_to, turn), inner))

    def _found_in_number(self, value: object, path: tuple[str | int, ...], applies_to: AppliesTo) -> bool:
        """Whether a number is more than a number: an account in the arguments of an earlier call, for one."""
        if type(value) not in (int, float) or len(path) < 2 or path[0] == "options" or len(str(value)) < 6:
            return False
        return bool(gate_text(self._rules, json.dumps(value), applies_to=applies_to, channel="prompt").findings)

    def _name(self, name: str, path: tuple[str | int, ...]) -> str:
        """A field's name as it may go upstream."""
        known = self._names.get(name)
        if known is not None:
            return known
        if why := unusable(name):
            raise BadRequest(f"A name in “{_dotted(path)}” {why}.", _dotted(path))
        checked = gate_text(self._rules, name, applies_to=AppliesTo.PROMPT, channel="prompt")
        self.findings += checked.findings
        if checked.action == "block":
            self.blocked = self.blocked or checked.findings[0]
        self._names[name] = checked.visible
        return checked.visible


def _kind_of(fields: Json, applies_to: AppliesTo) -> AppliesTo:
    match fields:
        case {"role": "tool" | "function"} | {"type": "tool_result" | "web_search_tool_result"}:
            return AppliesTo.TOOL_RESULT
        case {"type": "document" | "file" | "search_result"}:
            return AppliesTo.DOCUMENT
    return applies_to


def _is_opaque(value: object) -> bool:
    """Encoded bytes; an address of something is text."""
    if not isinstance(value, str):
        return False
    return value.startswith("data:") or (
        not value.startswith(("http:", "https:")) and len(value) > 200 and " " not in value
    )


def _json_in(text: str) -> object:
    if len(text) < 3 or text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        found: object = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict | list) and found else None


def _visible(policy: Policy, turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """The messages as guardrails that want the conversation are told it: without what the rules hide."""
    if not any(g.impl.wants_conversation for kind in AppliesTo for g in policy.running(kind)):
        return ()
    rules = policy.only(Checkpoint.IMMEDIATE)
    return tuple(
        Turn(turn.role, gate_text(rules, turn.text, applies_to=AppliesTo.PROMPT, channel="prompt").visible)
        for turn in turns
    )


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


def _dotted(path: tuple[str | int, ...]) -> str:
    out = ""
    for part in path:
        out += f"[{part}]" if isinstance(part, int) else f".{part}" if out else part
    return out
