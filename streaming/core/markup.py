"""Tool calls that a model wrote down as text, because the server in front of it has no parser for them.

Exists so that tool markup never reaches a page or the storage as text. Only what a model writes that was offered tools
is looked at, and only these forms, as the models' published chat templates write them:

    <tool_call>{"name": …, "arguments": {…}}</tool_call>      Hermes, Qwen and those that follow them
    [TOOL_CALLS][{"name": …, "arguments": {…}}, …]            Mistral, up to the end of the answer
    [TOOL_CALLS]name[ARGS]{…}[TOOL_CALLS]name[ARGS]{…} …      Mistral since 2025, some with [CALL_ID] and an id
    <|python_tag|>{"name": …, "parameters": {…}}              Llama 3, up to the end of the answer

Sans-IO. What may be the beginning of markup is held back, thirteen characters at most; markup that cannot be read is
dropped and told, never shown. What closes markup does not where it stands in an argument, within a JSON string.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from streaming.core.events import ProviderEvent, ProviderNotice, TextDelta, ToolCallDelta
from streaming.core.text import Mender

FORMS = {"<tool_call>": "</tool_call>", "[TOOL_CALLS]": "", "<|python_tag|>": ""}
"""How markup opens, and how it closes (empty: with the answer)."""

NAMED, CALL_ID, ARGS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
"""In the form whose names are no JSON: what stands before each call, before its id, and before its arguments."""

FIRST_INDEX = 1_000_000
"""Calls found here are numbered from this on, away from those that the server itself tells."""

MAX_CHARS = 1_000_000
"""Longer markup is dropped."""

PIECE = 4_096
"""Characters looked at in one go: a long text full of calls is not copied for each of them."""

UNREADABLE = "The model wrote a tool call that cannot be read; it was not made."


class MarkupReader:
    """One choice's text in, text without markup and calls out."""

    def __init__(self, choice: int, numbers: Iterator[int]) -> None:
        self._choice, self._numbers = choice, numbers
        self._text = self._coming = self._opened = ""
        self._trusting = True
        self._begin()

    def _begin(self) -> None:
        """Nothing is known of what stands in the markup."""
        self._inside: list[str] = []
        self._size = self._passed = 0
        self._json = self._quoted = self._escaped = False

    def feed(self, text: str) -> Iterator[ProviderEvent]:
        """What is known now that ``text`` has come."""
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
        if rest:
            yield TextDelta(rest, self._choice)

    def _in_text(self) -> Iterator[ProviderEvent]:
        found = [(at, form) for form in FORMS if (at := self._text.find(form)) >= 0]
        if found:
            at, self._opened = min(found)
            shown, self._text = self._text[:at], self._text[at + len(self._opened) :]
        else:
            kept = _beginning(self._text, FORMS)
            shown, self._text = self._text[: len(self._text) - kept], self._text[len(self._text) - kept :]
        if shown:
            yield TextDelta(shown, self._choice)

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
        named = self._opened == NAMED and not self._json
        self._opened = ""
        self._begin()
        calls = (_named_calls(inside) if named else _calls(inside)) if whole else None
        if calls is None:
            yield ProviderNotice("tool_markup", UNREADABLE)
            if whole and passed:  # it was no argument: the text behind goes on, and nothing is passed over again
                self._coming = inside[passed:] + closing + self._text + self._coming
                self._text, self._trusting = "", False
            return
        for name, arguments in calls:
            yield ToolCallDelta(next(self._numbers), "", _mended(name), _mended(arguments), self._choice)


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
    """Names and arguments (JSON text); None if that is not what it says."""
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
    """The same of calls with their names before their arguments, one behind the other."""
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


def _past_space(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _written(arguments: object) -> str:
    """Arguments as JSON text; some write JSON within JSON."""
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
