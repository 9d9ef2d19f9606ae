"""Tool calls that a model wrote down as text, because the server in front of it has no parser for them.

Exists so that tool markup never reaches a page or the storage as text. Only these forms are looked for, as the models'
published chat templates write them:

    <tool_call>{"name": …, "arguments": {…}}</tool_call>      Hermes, Qwen and those that follow them
    [TOOL_CALLS][{"name": …, "arguments": {…}}, …]            Mistral, up to the end of the answer
    [TOOL_CALLS]name[ARGS]{…}[TOOL_CALLS]name[ARGS]{…} …      Mistral since 2025, some with [CALL_ID] and an id
    <|python_tag|>{"name": …, "parameters": {…}}              Llama 3, up to the end of the answer
    <function=name>{…}</function>                             Llama 3 with tools of one's own
    <function=name><parameter=key>…</parameter></function>    Qwen Coder, mostly within <tool_call>

In the text of a model that was offered tools what opens a form is markup, and a call is made of it. Where no call can
be made (nobody offered tools, or the model was only thinking) it is markup if a call really begins there and it is not
quoted as code: there a model may as well speak of markup (docs/adr/0205).

Sans-IO. What may be the beginning of markup is held back; markup that is not made into a call is dropped and told,
never shown. What closes markup does not where it stands in an argument, within a JSON string.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping

from streaming.core.events import ProviderEvent, ProviderNotice, TextDelta, ThinkingDelta, ToolCallDelta
from streaming.core.text import Mender

FORMS = {
    "<tool_call>": "</tool_call>", "[TOOL_CALLS]": "", "<|python_tag|>": "", "<function=": "</function>",
}  # fmt: skip
"""How markup opens, and how it closes (empty: with the answer)."""

NAMED, CALL_ID, ARGS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
"""In the form whose names are no JSON: what stands before each call, before its id, and before its arguments."""

FUNCTION, PARAMETER = "<function=", "<parameter="
KEYS = tuple(f'"{key}"' for key in ("name", "arguments", "parameters", "id", "type", "function"))
"""With one of these a call in JSON begins."""

FIRST_INDEX = 1_000_000
"""Calls found here are numbered from this on, away from those that the server itself tells."""

MAX_CHARS = 1_000_000
"""Longer markup is dropped."""

MAX_SPACE, MAX_NAME = 32, 200
"""Characters before a call, and of its name, for which a text is held back until it is clear whether one begins."""

PIECE = 4_096
"""Characters looked at in one go: a long text full of calls is not copied for each of them."""

UNREADABLE = "The model wrote a tool call that cannot be read; it was not made."
NOT_OFFERED = "The model wrote a tool call although it was offered no tools; it was neither shown nor made."
THOUGHT = "The model wrote a tool call into its thinking; it was neither shown nor made."

Types = Mapping[str, frozenset[str]]
"""By tool: its parameters that are text."""

_NAME = re.compile(rf"[\w.:/-]{{1,{MAX_NAME}}}")
_PARAMETER = re.compile(rf"\s*<parameter=([^>\n]{{1,{MAX_NAME}}})>(.*?)</parameter>\s*", re.DOTALL)
_OPENS = re.compile(r"[<\[]")


class MarkupReader:
    """One channel of one choice: its text in, text without markup and calls out.

    ``instead``: what is told in place of a call, where none may be made. ``thinking``: the text is thoughts.
    """

    def __init__(
        self,
        choice: int,
        numbers: Iterator[int],
        *,
        instead: str = "",
        thinking: bool = False,
        types: Types | None = None,
    ) -> None:
        self._choice, self._numbers, self._instead, self._types = choice, numbers, instead, types or {}
        self._delta = ThinkingDelta if thinking else TextDelta
        self._text = self._coming = self._opened = ""
        self._trusting = True
        self._fenced, self._ticks = False, ""
        self._begin()

    def _begin(self) -> None:
        """Nothing is known of what stands in the markup."""
        self._inside: list[str] = []
        self._size = self._passed = 0
        self._json = self._quoted = self._escaped = False

    def feed(self, text: str) -> Iterator[ProviderEvent]:
        """What is known now that ``text`` has come."""
        if not (self._opened or self._text or self._coming or _OPENS.search(text)):
            yield from self._show(text)
            return
        self._coming += text
        while self._coming:
            self._text, self._coming = self._text + self._coming[:PIECE], self._coming[PIECE:]
            before = ""
            while self._text and self._text != before:
                before = self._text
                yield from self._in_markup() if self._opened else self._in_text()

    def finish(self) -> Iterator[ProviderEvent]:
        """The answer is over."""
        while self._opened:
            rest, self._text = self._text, ""
            self._keep(rest)
            yield from self._close("")
            yield from self.feed("")
        rest, self._text = self._text, ""
        yield from self._show(rest)

    def _in_text(self) -> Iterator[ProviderEvent]:
        found = [(at, form) for form in FORMS if (at := self._text.find(form)) >= 0]
        if not found:
            kept = _beginning(self._text, FORMS)
            shown, self._text = self._text[: len(self._text) - kept], self._text[len(self._text) - kept :]
            yield from self._show(shown)
            return
        at, form = min(found)
        shown, self._text = self._text[:at], self._text[at:]
        yield from self._show(shown)
        behind = self._text[len(form) :]
        opens = self._opens(form, behind)
        if opens:
            self._opened, self._text = form, behind
        elif opens is False:
            self._text = behind
            yield from self._show(form)

    def _opens(self, form: str, behind: str) -> bool | None:
        """Whether this is markup; None: what comes next will tell."""
        if not self._instead:
            return True
        return False if self._fenced or self._ticks else _call_begins(form, behind)

    def _show(self, text: str) -> Iterator[ProviderEvent]:
        if not text:
            return
        if self._instead and ("`" in text or self._ticks):
            marks = (self._ticks + text).split("```")
            self._fenced ^= len(marks) % 2 == 0
            self._ticks = marks[-1][len(marks[-1].rstrip("`")) :]
        yield self._delta(text, self._choice)

    def _in_markup(self) -> Iterator[ProviderEvent]:
        closing = FORMS[self._opened]
        at = self._text.find(closing) if closing else -1
        if at < 0:
            kept = _beginning(self._text, (closing,)) if closing else 0
            self._keep(self._text[: len(self._text) - kept])
            self._text = self._text[len(self._text) - kept :]
            return
        self._keep(self._text[:at])
        self._text = self._text[at + len(closing) :]
        if self._json and self._quoted and self._trusting and self._size <= MAX_CHARS:
            self._keep(closing)  # an argument speaks of markup
            self._passed = self._passed or self._size
        else:
            yield from self._close(closing)

    def _keep(self, text: str) -> None:
        if not self._size:
            text = text.lstrip()
            self._json = text[:1] in ("{", "[")
        self._size += len(text)
        if self._size > MAX_CHARS:
            return
        self._inside.append(text)
        for char in text:
            if self._escaped:
                self._escaped = False
            elif char == "\\":
                self._escaped = self._quoted
            elif char == '"':
                self._quoted = not self._quoted

    def _close(self, closing: str) -> Iterator[ProviderEvent]:
        inside, whole, passed = "".join(self._inside), self._size <= MAX_CHARS, self._passed
        opened, self._opened = self._opened, ""
        calls = self._read(opened, inside) if whole else None
        self._begin()
        if calls is None:
            yield ProviderNotice("tool_markup", self._instead or UNREADABLE)
            if whole and passed:  # it was no argument: the text behind goes on, and nothing is passed over again
                self._coming = inside[passed:] + closing + self._text + self._coming
                self._text, self._trusting = "", False
            return
        if self._instead:
            yield ProviderNotice("tool_markup", self._instead)
            return
        for name, arguments in calls:
            yield ToolCallDelta(next(self._numbers), "", _mended(name), _mended(arguments), self._choice)

    def _read(self, opened: str, inside: str) -> list[tuple[str, str]] | None:
        """Names and arguments (JSON text) of the calls that stand there; None if that is not what it says."""
        if opened == FUNCTION:
            return _function(inside, self._types)
        if opened == NAMED and not self._json:
            return _named_calls(inside)
        if inside.startswith(FUNCTION):
            return _function(inside.removeprefix(FUNCTION).rstrip().removesuffix(FORMS[FUNCTION]), self._types)
        return _calls(inside)


def _call_begins(form: str, behind: str) -> bool | None:
    """Whether what stands behind an opening is a call's beginning; None: it may become one."""
    rest = behind.lstrip()
    if len(behind) - len(rest) > MAX_SPACE:
        return False
    if form == FUNCTION:
        name, closes, body = rest.partition(">")
        if not closes:
            return _name_then(rest, (">",))
        space = len(body) - len(body.lstrip())
        given = ("{", PARAMETER, FORMS[FUNCTION])
        return _one_of(body.lstrip(), given) if space <= MAX_SPACE and _NAME.fullmatch(name) else False
    words = {"<tool_call>": ("{", FUNCTION), NAMED: ("{", "["), "<|python_tag|>": ("{", "[")}[form]
    begins = _one_of(rest, words)
    if begins and rest[0] in "[{":
        inner = rest.lstrip("[{ \t\r\n")
        return _one_of(inner, KEYS) if len(rest) - len(inner) <= MAX_SPACE else False
    if begins is False and form == NAMED:
        return _named_begins(rest)
    if begins is False and form == "<|python_tag|>":
        return _name_then(rest, ("(",))
    return begins


def _named_begins(text: str) -> bool | None:
    """The same for a name, perhaps an id, and what opens its arguments."""
    named, args, body = text.partition(ARGS)
    name, identified, id_ = named.partition(CALL_ID)
    if not args:
        return _name_then(text, (ARGS, CALL_ID)) if not identified else None if len(id_) <= MAX_NAME else False
    space = len(body) - len(body.lstrip())
    return _one_of(body.lstrip(), ("{",)) if _NAME.fullmatch(name.strip()) and space <= MAX_SPACE else False


def _one_of(text: str, words: tuple[str, ...]) -> bool | None:
    """Whether it begins with one of them; None: it may, once more of it has come."""
    if text.startswith(words):
        return True
    return None if any(word.startswith(text) for word in words) else False


def _name_then(text: str, words: tuple[str, ...]) -> bool | None:
    """Whether it begins with a name and one of these."""
    if not text:
        return None
    if (name := _NAME.match(text)) is None:
        return False
    behind = text[name.end() :]
    rest = behind.lstrip()
    return _one_of(rest, words) if len(behind) - len(rest) <= MAX_SPACE else False


def _beginning(text: str, forms: Iterable[str]) -> int:
    """How many characters at the end of ``text`` may be the beginning of one of ``forms``."""
    longest = max(map(len, forms)) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(form.startswith(text[-length:]) for form in forms):
            return length
    return 0


def _mended(text: str) -> str:
    """What JSON could spell and no store takes, replaced: the text was mended before it was read as JSON."""
    mender = Mender()
    return mender.feed(text) + mender.finish()


def _calls(inside: str) -> list[tuple[str, str]] | None:
    """Calls that are JSON objects."""
    try:
        said = json.loads(inside)
    except (ValueError, RecursionError):
        return None
    calls: list[tuple[str, str]] = []
    for call in said if isinstance(said, list) else [said]:
        if not isinstance(call, dict) or not isinstance(name := call.get("name"), str) or not name:
            return None
        calls.append((name, _written(call.get("arguments", call.get("parameters", {})))))
    return calls or None


def _named_calls(inside: str) -> list[tuple[str, str]] | None:
    """Calls with their names before their arguments, one behind the other."""
    calls: list[tuple[str, str]] = []
    at, decoder = 0, json.JSONDecoder()
    while True:
        args = inside.find(ARGS, at)
        name = inside[at:args].partition(CALL_ID)[0].strip() if args >= 0 else ""
        if not name or "[" in name:
            return None
        try:
            arguments, end = decoder.raw_decode(inside, _past_space(inside, args + len(ARGS)))
        except (ValueError, RecursionError):
            return None
        calls.append((name, _written(arguments)))
        at = _past_space(inside, end)
        if at == len(inside):
            return calls
        if not inside.startswith(NAMED, at):
            return None
        at += len(NAMED)


def _function(inside: str, types: Types) -> list[tuple[str, str]] | None:
    """A call whose name is part of what opens it: its arguments are an object, or a parameter each."""
    name, closes, body = inside.partition(">")
    body = body.strip()
    if not closes or _NAME.fullmatch(name) is None:
        return None
    if not body.startswith(PARAMETER):
        try:
            arguments = json.loads(body or "{}")
        except (ValueError, RecursionError):
            return None
        return [(name, _written(arguments))] if isinstance(arguments, dict) else None
    given: dict[str, object] = {}
    at = 0
    while at < len(body):
        if (found := _PARAMETER.match(body, at)) is None:
            return None
        key, value = found[1].strip(), found[2].removeprefix("\n").removesuffix("\n")
        given[key] = value if key in types.get(name, frozenset()) else _value(value)
        at = found.end()
    return [(name, _written(given))]


def _value(text: str) -> object:
    """A parameter that is not text, as JSON has it; what is no JSON is text all the same."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return text


def _no_constant(word: str) -> object:
    raise ValueError(f"{word} is no JSON")


def _past_space(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _written(arguments: object) -> str:
    """Arguments as JSON text; some write JSON within JSON."""
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
