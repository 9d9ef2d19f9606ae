"""Typed events of a provider in the words of a dialect: what is said where upstream and client differ.

Exists so that any dialect can stand in front of any provider. Protects the rule that a client never gets an answer to
another question than the one that it asked: a request with anything in it that the provider behind has no words for is
refused with the field named, and nothing is asked. What comes out of here is walked and gated like an answer that was
passed through. Pure but for the provider's own stream.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field

from streaming.core.events import (
    ModelNamed,
    ProviderEvent,
    Stopped,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    Usage,
)
from streaming.gateway.prompt import BadRequest
from streaming.gateway.walker import Json
from streaming.providers.base import Provider, ProviderRequest, ToolSpec
from streaming.providers.sampling import WORDS, Sampling, beyond
from streaming.written_calls import without_markup


@dataclass(slots=True)
class Call:
    """One tool call, gathered."""

    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(slots=True)
class Choice:
    """One choice, gathered."""

    text: str = ""
    thinking: str = ""
    signature: str = ""
    calls: dict[int, Call] = field(default_factory=dict)
    reason: str = ""


@dataclass(slots=True)
class Gathered:
    """A whole answer."""

    model: str = ""
    choices: dict[int, Choice] = field(default_factory=dict)
    usage: dict[str, int] = field(default_factory=dict)

    def take(self, event: ProviderEvent) -> None:
        """Add an event."""
        match event:
            case TextDelta(text, choice):
                self._of(choice).text += text
            case ThinkingDelta(text, choice, signature):
                self._of(choice).thinking += text
                self._of(choice).signature += signature
            case ToolCallDelta() if not event.ran_by_provider:
                call = self._of(event.choice).calls.setdefault(event.index, Call())
                call.id, call.name = call.id or event.id, call.name or event.name
                call.arguments += event.arguments
            case Stopped(reason, choice):
                self._of(choice).reason = reason
            case ModelNamed(model):
                self.model = model
            case Usage():
                self.usage |= event.as_dict()

    def _of(self, choice: int) -> Choice:
        return self.choices.setdefault(choice, Choice())


class Speaker(ABC):
    """Subclasses say the dialect. One for each answer."""

    def __init__(self, model: str, id_: str, created: int) -> None:
        self.model = model
        self.id = id_
        self.created = created

    @abstractmethod
    def chunks(self, event: ProviderEvent) -> Iterator[Json]:
        """The chunks that an event is."""

    @abstractmethod
    def end(self, gathered: Gathered) -> Iterator[Json]:
        """The last chunks."""

    @abstractmethod
    def whole(self, gathered: Gathered) -> Json:
        """The answer where it is not streamed."""


async def spoken(
    provider: Provider, request: ProviderRequest, speaker: Speaker, *, streaming: bool
) -> AsyncGenerator[Json, None]:
    """The provider's answer as chunks, or as the one document. Raises ``ProviderError``."""
    gathered = Gathered()
    events = provider.stream(request) if streaming else provider.standard(request)
    if provider.calls_in_text:
        events = without_markup(events, request.tools)
    async with aclosing(events):
        async for event in events:
            gathered.take(event)
            if isinstance(event, ModelNamed):
                speaker.model = event.model
            if streaming:
                for chunk in speaker.chunks(event):
                    yield chunk
    if not streaming:
        yield speaker.whole(gathered)
        return
    for chunk in speaker.end(gathered):
        yield chunk


FREE = frozenset({"cache_control", "citations", "annotations", "parsed"})
"""What may stand at messages, parts and tools of any dialect, and changes nothing in the answer."""
_FALSE_IS_DEFAULT = frozenset({"logprobs", "store", "strict", "background", "disable_parallel_tool_use"})


def refuse_unknown(
    fields: Json, known: frozenset[str], ignored: frozenset[str], provider: Provider, within: str = ""
) -> None:
    """Raises ``BadRequest`` for the first field that the provider behind would not be told of.

    ``within``: where the fields stand, with a dot behind it. What is empty says nothing; false often does.
    """
    for name, value in fields.items():
        if name in known or name in ignored or value is None or value in ([], {}, ""):
            continue
        if value is False and name in _FALSE_IS_DEFAULT:
            continue
        where = f"{within}{name}"
        raise BadRequest(
            f"“{where}” cannot be passed on: the upstream “{provider.name}” speaks another dialect.",
            where,
            "unsupported",
        )


def all_objects(value: object, where: str) -> list[Json]:
    """The objects of a list, none where there is none. Raises ``BadRequest`` for a list with something else in it."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise BadRequest(f"“{where}” is no list.", where)
    for number, one in enumerate(value):
        if not isinstance(one, dict):
            raise BadRequest(f"“{where}[{number}]” is no object.", f"{where}[{number}]")
    return value


def function_of(holder: Json, known: frozenset[str], where: str, provider: Provider) -> Json:
    """The function of a tool or of a call. Raises ``BadRequest`` for another sort, and for what would be lost."""
    function = holder.get("function")
    if holder.get("type") not in (None, "function") or not isinstance(function, dict):
        raise BadRequest(f"“{where}” is not a function.", where, "unsupported")
    refuse_unknown(holder, frozenset({"type", "function", "id", "index"}), FREE, provider, f"{where}.")
    refuse_unknown(function, known, FREE, provider, f"{where}.function.")
    return function


def functions_of(body: Json, provider: Provider) -> Iterator[ToolSpec]:
    """The tools of a request, of the two dialects that call them functions. Raises ``BadRequest``."""
    for number, tool in enumerate(all_objects(body.get("tools"), "tools")):
        function = function_of(tool, frozenset({"name", "description", "parameters"}), f"tools[{number}]", provider)
        parameters = function.get("parameters")
        yield ToolSpec(
            str(function.get("name", "")),
            str(function.get("description") or ""),
            parameters if isinstance(parameters, dict) else {"type": "object", "properties": {}},
        )


def text_alone(content: object, where: str, provider: Provider) -> str:
    """Content as text. Raises ``BadRequest`` for parts that are not text."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts: list[str] = []
        for number, part in enumerate(content):
            text = part.get("text") if isinstance(part, dict) and part.get("type") in ("text", "input_text") else None
            if not isinstance(text, str):
                raise BadRequest(
                    f"“{where}[{number}]” is not text, and the upstream “{provider.name}” speaks another dialect.",
                    f"{where}[{number}]", "unsupported",
                )  # fmt: skip
            refuse_unknown(part, frozenset({"type", "text"}), FREE, provider, f"{where}[{number}].")
            parts.append(text)
        return "\n\n".join(parts)
    raise BadRequest(f"“{where}” is neither text nor a list of parts.", where)


def sampling_of(fields: Json, provider: Provider, dialect: str, within: str = "") -> Sampling:
    """What a client of ``dialect`` wishes of how words are picked, for the provider behind.

    ``within``: the field that ``fields`` is the value of. Raises ``BadRequest`` for what cannot be told, or is none.
    """
    words = WORDS[dialect]
    found: dict[str, object] = {}
    for name, word in words.items():
        if (value := fields.get(word)) is None:
            continue
        if not _is_wish(name, value):
            raise BadRequest(f"“{within}{word}” is not what this dialect has there.", f"{within}{word}")
        found[name] = _texts_of(value) if name == "stop" else value
    sampling = Sampling(**found)  # type: ignore[arg-type]  # each was looked at
    if not provider.scripted and (missing := beyond(sampling, provider.name)):
        where = f"{within}{words[missing]}"
        raise BadRequest(
            f"“{where}” cannot be passed on: the dialect of the upstream “{provider.name}” has no such value.",
            where, "unsupported",
        )  # fmt: skip
    return sampling


def _texts_of(value: object) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else ()


def _is_wish(name: str, value: object) -> bool:
    if name == "stop":
        return isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, str) for one in value))
    if isinstance(value, bool):
        return False
    return isinstance(value, int) or (isinstance(value, float) and name not in ("seed", "top_k"))


def at_least_one(value: object, where: str) -> int | None:
    """A limit of tokens or a number of answers, None where none is named. Raises ``BadRequest`` for what is none."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BadRequest(f"“{where}” is a whole number of at least 1.", where)
    return value
