"""Tool calls that a model wrote down as text, because the server in front of it has no parser for them.

Exists so that tool markup never reaches a page or the storage as text. Only these forms are looked for, as the models'
published chat templates write them:

    <tool_call>{"name": …, "arguments": {…}}</tool_call>      Hermes, Qwen and those that follow them
    [TOOL_CALLS][{"name": …, "arguments": {…}}, …]            Mistral, up to the end of the answer
    [TOOL_CALLS]name[ARGS]{…}[TOOL_CALLS]name[ARGS]{…} …      Mistral since 2025, some with [CALL_ID] and an id
    <|python_tag|>{"name": …, "parameters": {…}}              Llama 3, up to the end of the answer
    <function=name>{…}</function>                             Llama 3 with tools of one's own
    <function=name><parameter=key>…</parameter></function>    Qwen Coder, mostly within <tool_call>
    <function_calls><invoke name="…"><parameter name="key">…</parameter></invoke></function_calls>
                                                              also with a prefix (``antml:``), and <invoke> alone;
                                                              MiniMax writes <minimax:tool_call> around
    <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>name<｜tool▁sep｜>{…}<｜tool▁call▁end｜>… <｜tool▁calls▁end｜>
                                                              DeepSeek; older: function<｜tool▁sep｜>name and a fence
    <|channel|>commentary to=functions.name <|constrain|>json<|message|>{…}<|call|>
                                                              gpt-oss, also with <|start|>assistant before

In the text of a model that was offered tools what opens a form is markup, and a call is made of it. Where no call can
be made (nobody offered tools, or the model was only thinking) it is markup if a call really begins there and it is not
quoted as code: there a model may as well speak of markup (docs/adr/0205).

Sans-IO. What may be the beginning of markup is held back; markup that is not made into a call is dropped and told,
never shown. What closes markup does not where it stands in an argument, within a JSON string.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from streaming.core.events import ProviderEvent, ProviderNotice, TextDelta, ThinkingDelta, ToolCallDelta
from streaming.core.markup_calls import (
    ARGS,
    CALL_BEGINS,
    CALL_ENDS,
    CALL_ID,
    FUNCTION,
    MAX_NAME,
    NAME,
    NAMED,
    PARAMETER,
    PREFIXES,
    SEPARATES,
    Calls,
    Types,
    barred_calls,
    channel_call,
    function_call,
    invokes,
    json_calls,
    named_calls,
)
from streaming.core.text import Mender

_BARRED, _BARRED_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CHANNELS = tuple(
    f"{before}{to}"
    for before in ("", "<|start|>assistant")
    for to in ("<|channel|>commentary to=", "<|channel|>analysis to=", " to=")
    if before or to.startswith("<")
)
INVOKES = tuple(f"<{prefix}invoke name=" for prefix in PREFIXES)
AROUND = {f"<{prefix}function_calls>": f"</{prefix}function_calls>" for prefix in PREFIXES}
AROUND |= {"<minimax:tool_call>": "</minimax:tool_call>"}
BARRED = {_BARRED: _BARRED_END, CALL_BEGINS: CALL_ENDS}

FORMS = {
    "<tool_call>": "</tool_call>", NAMED: "", "<|python_tag|>": "", FUNCTION: "</function>",
    **AROUND, **{f"<{prefix}invoke name=": f"</{prefix}invoke>" for prefix in PREFIXES},
    **BARRED, **dict.fromkeys(CHANNELS, "<|call|>"),
}  # fmt: skip
"""How markup opens, and how it closes (empty: with the answer)."""

KEYS = tuple(f'"{key}"' for key in ("name", "arguments", "parameters", "id", "type", "function"))
"""With one of these a call in JSON begins."""

FIRST_INDEX = 1_000_000
"""Calls found here are numbered from this on, away from those that the server itself tells."""

MAX_CHARS = 1_000_000
"""Longer markup is dropped."""

MAX_SPACE = 32
"""Characters before a call for which a text is held back until it is clear whether one begins; and ``MAX_NAME``."""

PIECE = 4_096
"""Characters looked at in one go: a long text full of calls is not copied for each of them."""

UNREADABLE = "The model wrote a tool call that cannot be read; it was not made."
NOT_OFFERED = "The model wrote a tool call although it was offered no tools; it was neither shown nor made."
THOUGHT = "The model wrote a tool call into its thinking; it was neither shown nor made."

_FORM = re.compile("|".join(map(re.escape, FORMS)))
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
        found = _FORM.search(self._text)
        if found is None:
            kept = _beginning(self._text, FORMS)
            shown, self._text = self._text[: len(self._text) - kept], self._text[len(self._text) - kept :]
            yield from self._show(shown)
            return
        at, form = found.start(), found[0]
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
            self._json = text[:1] in ("{", "[") or self._opened in BARRED or self._opened in CHANNELS
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

    def _read(self, opened: str, inside: str) -> Calls:
        """Names and arguments (JSON text) of the calls that stand there; None if that is not what it says."""
        if opened == FUNCTION:
            return function_call(inside, self._types)
        if opened == NAMED and not self._json:
            return named_calls(inside)
        if opened in AROUND:
            return invokes(inside, self._types)
        if opened in INVOKES:
            return invokes(f"{opened}{inside}{FORMS[opened]}", self._types)
        if opened in BARRED:
            return barred_calls(inside if opened == _BARRED else f"{opened}{inside}{FORMS[opened]}")
        if opened in CHANNELS:
            return channel_call(inside)
        if inside.startswith(FUNCTION):
            return function_call(inside.removeprefix(FUNCTION).rstrip().removesuffix(FORMS[FUNCTION]), self._types)
        return json_calls(inside)


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
        return _one_of(body.lstrip(), given) if space <= MAX_SPACE and NAME.fullmatch(name) else False
    if form in AROUND or form == _BARRED:
        within = INVOKES if form in AROUND else (CALL_BEGINS,)
        opened = next((one for one in within if rest.startswith(one)), "")
        return _call_begins(opened, rest.removeprefix(opened)) if opened else _one_of(rest, within)
    if form in INVOKES:
        return _invoke_begins(rest)
    if form == CALL_BEGINS:
        return _name_then(rest, (SEPARATES,))
    if form in CHANNELS:
        return _name_then(rest, ("<|channel|>", "<|constrain|>", "<|message|>", "json", "code"))
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


def _invoke_begins(text: str) -> bool | None:
    """The same for a quoted name, and a parameter or the end of the call."""
    if not text.startswith('"'):
        return None if not text else False
    name, closes, body = text[1:].partition('">')
    if not closes:
        return _name_then(text[1:], ('">',))
    space = len(body) - len(body.lstrip())
    given = tuple(f"<{prefix}parameter name=" for prefix in PREFIXES) + tuple(f"</{p}invoke>" for p in PREFIXES)
    return _one_of(body.lstrip(), given) if NAME.fullmatch(name) and space <= MAX_SPACE else False


def _named_begins(text: str) -> bool | None:
    """The same for a name, perhaps an id, and what opens its arguments."""
    named, args, body = text.partition(ARGS)
    name, identified, id_ = named.partition(CALL_ID)
    if not args:
        return _name_then(text, (ARGS, CALL_ID)) if not identified else None if len(id_) <= MAX_NAME else False
    space = len(body) - len(body.lstrip())
    return _one_of(body.lstrip(), ("{",)) if NAME.fullmatch(name.strip()) and space <= MAX_SPACE else False


def _one_of(text: str, words: tuple[str, ...]) -> bool | None:
    """Whether it begins with one of them; None: it may, once more of it has come."""
    if text.startswith(words):
        return True
    return None if any(word.startswith(text) for word in words) else False


def _name_then(text: str, words: tuple[str, ...]) -> bool | None:
    """Whether it begins with a name and one of these."""
    if not text:
        return None
    if (name := NAME.match(text)) is None:
        return False
    behind = text[name.end() :]
    rest = behind.lstrip()
    return _one_of(rest, words) if len(behind) - len(rest) <= MAX_SPACE else False


def _beginning(text: str, forms: Iterable[str]) -> int:
    """How many characters at the end of ``text`` may be the beginning of one of ``forms``."""
    longest = max(map(len, forms)) - 1
    for at in range(max(0, len(text) - longest), len(text)):
        if text[at] in "<[" and any(form.startswith(text[at:]) for form in forms):
            return len(text) - at
    return 0


def _mended(text: str) -> str:
    """What JSON could spell and no store takes, replaced: the text was mended before it was read as JSON."""
    mender = Mender()
    return mender.feed(text) + mender.finish()
