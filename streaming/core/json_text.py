"""Tool arguments: JSON that arrives in pieces, matched as what it says and sent on as JSON.

Exists because ``"joe\\u0040example.com"`` is a mail address and ``4111111111111111`` may be a card number. Protects the
rule that arguments are decoded before they are matched and encoded afterwards: a gate reads them with every escape
replaced by what it stands for, wherever the pieces were cut, also inside ``\\u00e9`` or between the halves of a pair;
what it hides becomes a placeholder inside the string, a number of which anything is hidden becomes a string, and the
brackets, commas and quotes stay, so that what was JSON is JSON again.

Sans-IO. The gate stays the caller's, as for every channel::

    channel = JsonChannel(masker if tool_name in policy.restore_in_tools else None)
    shown = channel.encode(gate.feed(channel.decode(delta)))              # for each delta of the arguments
    shown = channel.encode(gate.verdict(…))                               # effects of verdicts alike
    shown = channel.encode(gate.feed(channel.decode_rest())); shown += channel.encode(gate.finish()) + channel.finish()

What is not JSON passes the gate all the same: what stands outside of strings is taken character by character.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Literal, TypedDict

from guardrails.findings import HIDING, Mode
from guardrails.masking import Masker
from streaming.core.effects import FOUND, REDACTED, RELEASE, Effect
from streaming.core.places import Place
from streaming.core.restore import Restorer, RestorerState
from streaming.core.snapshot import StateError
from streaming.core.text import REPLACEMENT

FORMAT = 1
QUOTE, INSIDE, FRAME, BARE = "q", "i", "f", "b"
"""What a character is: a quote, inside a string, a bracket or a blank and the like, part of a number or a bare word."""

_FRAME = frozenset("{}[],: \t\n\r")
_WORD = frozenset("-+.0123456789eEtrufalsn")
"""What the numbers and bare words of JSON are made of."""
_SHORT = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_PLAIN = re.compile(r'[^"\\\x00\ud800-\udfff]+')
_HEX = re.compile(r"[0-9a-fA-F]{0,4}")


class JsonState(TypedDict):
    """A channel as JSON. ``escape``: an escape whose end has not come; ``half``: a half of a pair, as a number."""

    format: int
    inside: bool
    escape: str
    half: int
    text: str
    sorts: str
    at: int
    placeholder: str
    bare: str | None
    altered: bool
    restorer: RestorerState | None


class JsonChannel:
    """One tool call's arguments on their way through a gate.

    ``masker``: whose values are put back into strings; None for a tool that must not get them. ``around``: the place
    in all of the text, where it may be shown as it is (``Restorer``); no value comes back then behind what is no JSON.
    """

    __slots__ = ("_altered", "_around", "_at", "_bare", "_escape", "_half", "_inside", "_masker", "_placeholder",
                 "_restorer", "_sorts", "_text", "is_json")  # fmt: skip

    def __init__(self, masker: Masker | None = None, *, around: Place | None = None) -> None:
        self._masker = masker
        self._around = around
        self.is_json = True
        """Whether nothing stood outside of strings that stands nowhere in JSON."""
        self._inside = False
        self._escape = ""
        self._half = 0
        self._text = self._sorts = ""  # decoded, and neither released nor hidden yet; what each character is
        self._at = 0  # offset of the first of them in the decoded text
        self._placeholder = ""  # of a redaction, waiting for a place within a value
        self._bare: str | None = None  # the number or word that is being written
        self._altered = False
        self._restorer: Restorer | None = None  # of the string that is being written

    # -- towards the gate ---------------------------------------------------------------------------------------

    def decode(self, delta: str) -> str:
        """More of the arguments as the model writes them. Returns what the gate is to read."""
        text: list[str] = []
        sorts: list[str] = []
        at = 0
        while at < len(delta):
            if self._inside and not (self._escape or self._half) and (run := _PLAIN.match(delta, at)) is not None:
                text.append(run[0])
                sorts.append(INSIDE * len(run[0]))
                at = run.end()
                continue
            for decoded, sort in self._read(delta[at]):
                text.append(decoded)
                sorts.append(sort)
            at += 1
        return self._noted(text, sorts)

    def decode_rest(self) -> str:
        """What the gate is to read when the arguments end within an escape."""
        rest = [(char, INSIDE) for char in self._lone_half() + self._escape]
        self._escape = ""
        return self._noted([char for char, _ in rest], [sort for _, sort in rest])

    def _noted(self, text: list[str], sorts: list[str]) -> str:
        decoded = "".join(text)
        self._text += decoded
        self._sorts += "".join(sorts)
        return decoded

    def _read(self, char: str) -> Iterator[tuple[str, str]]:
        if not self._inside:
            self._inside = char == '"'
            if char != '"' and char not in _FRAME and char not in _WORD:
                self.is_json = False
            yield char, QUOTE if char == '"' else FRAME if char in _FRAME else BARE
            return
        if not self._escape:
            if char == "\\":
                self._escape = char
                return
            for lone in self._lone_half():
                yield lone, INSIDE
            if char == '"':
                self._inside = False
                yield char, QUOTE
            else:
                yield REPLACEMENT if "\ud800" <= char <= "\udfff" or char == "\0" else char, INSIDE
            return
        escape = self._escape + char
        if len(escape) == 2 and char in _SHORT:
            self._escape = ""
            for decoded in self._lone_half() + _SHORT[char]:
                yield decoded, INSIDE
        elif escape[1] == "u" and _HEX.fullmatch(escape, 2):
            self._escape = escape if len(escape) < 6 else ""
            if len(escape) == 6:
                for decoded in self._unit(int(escape[2:], 16)):
                    yield decoded, INSIDE
        else:  # no escape that JSON knows: it stands for itself
            self._escape = ""
            for decoded in self._lone_half() + escape[:-1]:
                yield decoded, INSIDE
            yield from self._read(char)

    def _unit(self, unit: int) -> str:
        """What a ``\\uXXXX`` adds to the text; the first half of a pair waits for the second."""
        half, self._half = self._half, 0
        if 0xDC00 <= unit < 0xE000:
            return chr(0x10000 + ((half - 0xD800) << 10) + unit - 0xDC00) if half else REPLACEMENT
        before = REPLACEMENT if half else ""
        if 0xD800 <= unit < 0xDC00:
            self._half = unit
            return before
        return before + (chr(unit) if unit else REPLACEMENT)

    def _lone_half(self) -> str:
        half, self._half = self._half, 0
        return REPLACEMENT if half else ""

    @property
    def within_string(self) -> bool:
        """Whether a string has begun and not ended."""
        return self._inside

    # -- from the gate ------------------------------------------------------------------------------------------

    def encode(self, effects: list[Effect]) -> str:
        """What the gate answered, as JSON."""
        out: list[str] = []
        for effect in effects:
            if effect[0] == RELEASE:
                out.append(self._shown(len(effect[1])))
            elif effect[0] == REDACTED:
                self._placeholder = effect[1]
            elif effect[0] == FOUND and effect[1].mode is Mode.BLOCK and effect[1].action in HIDING:
                out.append(self._hidden(effect[1].end - self._at))
        return "".join(out)

    def finish(self) -> str:
        """The arguments have ended, and everything that the gate answered was encoded. Returns the rest."""
        return self._end_bare() + self._end_string()

    def _cut(self, count: int) -> Iterator[tuple[str, str]]:
        """The next characters in runs of one sort; every quote by itself."""
        text, sorts = self._text[:count], self._sorts[:count]
        self._text, self._sorts = self._text[count:], self._sorts[count:]
        self._at += len(text)
        start = 0
        for at in range(1, len(text) + 1):
            if at == len(text) or sorts[at] != sorts[start] or sorts[at] == QUOTE:
                yield text[start:at], sorts[start]
                start = at

    def _shown(self, count: int) -> str:
        out: list[str] = []
        for text, sort in self._cut(count):
            if sort == BARE:
                self._bare = (self._bare or "") + self._passed(self._due() + text)
                continue
            out.append(self._end_bare())
            if sort == INSIDE:
                out.append(self._written(self._due() + text))
            else:
                out.append(self._frame(text, sort))
        return "".join(out)

    def _hidden(self, count: int) -> str:
        """The frame of what is hidden, with the placeholder in the first value that is touched."""
        out: list[str] = []
        for text, sort in self._cut(max(0, count)):
            if sort == BARE:
                self._bare = (self._bare or "") + self._passed(self._due())
                self._altered = True
                continue
            out.append(self._end_bare())
            if sort == INSIDE:
                out.append(self._written(self._due()))
            else:
                out.append(self._frame(text, sort))
        return "".join(out)

    def _due(self) -> str:
        placeholder, self._placeholder = self._placeholder, ""
        if placeholder:
            self._altered = True
        return placeholder

    def _frame(self, text: str, sort: str) -> str:
        out = (self._end_string() if sort == QUOTE else "") + self._passed(text)
        if sort == QUOTE:
            self._altered = False
        return out

    def _end_bare(self) -> str:
        """The number or word that has ended; as a string if any of it was hidden."""
        bare, altered = self._bare, self._altered
        if bare is None:
            return ""
        self._bare, self._altered = None, False
        return json.dumps(bare, ensure_ascii=False) if altered else bare

    def _passed(self, text: str) -> str:
        """Text outside of strings, which the place around reads along."""
        if self._around is not None:
            self._around.read(text)
        return text

    def _written(self, text: str) -> str:
        """Text of a string, with values put back where they may be, in JSON's spelling."""
        if self._restorer is None and self._masker is not None and (self.is_json or self._around is None):
            self._restorer = Restorer(self._masker, one_value=True, around=self._around)
        if self._restorer is not None:
            text = self._restorer.feed(text)
        return json.dumps(text, ensure_ascii=False)[1:-1]

    def _end_string(self) -> str:
        restorer, self._restorer = self._restorer, None
        return "" if restorer is None else json.dumps(restorer.finish(), ensure_ascii=False)[1:-1]

    # -- state --------------------------------------------------------------------------------------------------

    def state(self) -> JsonState:
        """The state as JSON-able data; it holds what the gate holds, and no value."""
        return {
            "format": FORMAT,
            "inside": self._inside,
            "escape": self._escape,
            "half": self._half,
            "text": self._text,
            "sorts": self._sorts,
            "at": self._at,
            "placeholder": self._placeholder,
            "bare": self._bare,
            "altered": self._altered,
            "restorer": None if self._restorer is None else self._restorer.state(),
        }

    @classmethod
    def restore(cls, state: JsonState, masker: Masker | None = None) -> JsonChannel:
        """A channel that goes on where ``state`` was taken. Raises ``StateError`` if it is of another format."""
        if state.get("format") != FORMAT:
            raise StateError(f"state format {state.get('format')!r} is not {FORMAT}")
        channel = cls(masker)
        channel._inside, channel._escape, channel._half = state["inside"], state["escape"], state["half"]
        channel._text, channel._sorts, channel._at = state["text"], state["sorts"], state["at"]
        channel._placeholder, channel._bare = state["placeholder"], state["bare"]
        channel._altered = state["altered"]
        if state["restorer"] is not None and masker is not None:
            channel._restorer = Restorer.restore(masker, state["restorer"])
        return channel


# -- whole requests -----------------------------------------------------------------------------------------------

Step = str | int
Path = tuple[Step, ...]
"""Where a value stands in a JSON document: keys and positions from the top."""

Json = object


class TooBig(ValueError):
    """A JSON document with more in it than is looked at. ``what`` names the limit."""

    permanent = True

    def __init__(self, what: Literal["depth", "strings", "characters"], limit: int) -> None:
        self.what = what
        super().__init__(f"more than {limit:,} {'levels' if what == 'depth' else what}")


def walk_strings(
    document: Json,
    *,
    numbers: bool = False,
    max_depth: int = 64,
    max_strings: int = 50_000,
    max_chars: int = 4_000_000,
) -> list[tuple[Path, str]]:
    """Every string of a parsed JSON document with its place, in document order; keys are not among them.

    ``numbers``: numbers as well, as they are written (for arguments, in which a card number may be one). Raises
    ``TooBig``. Works without recursion, so that no nesting exhausts the stack.
    """
    found: list[tuple[Path, str]] = []
    chars = 0
    open_: list[tuple[Path, Json]] = [((), document)]
    while open_:
        path, value = open_.pop()
        if isinstance(value, Mapping):
            inner = [((*path, str(key)), item) for key, item in value.items()]
        elif isinstance(value, list | tuple):
            inner = [((*path, index), item) for index, item in enumerate(value)]
        else:
            if isinstance(value, str):
                text = value
            elif numbers and isinstance(value, int | float) and not isinstance(value, bool):
                text = json.dumps(value)
            else:
                continue
            found.append((path, text))
            chars += len(text)
            if len(found) > max_strings:
                raise TooBig("strings", max_strings)
            if chars > max_chars:
                raise TooBig("characters", max_chars)
            continue
        if inner and len(path) >= max_depth:
            raise TooBig("depth", max_depth)
        open_ += reversed(inner)
    return found


def with_strings(document: Json, replaced: Mapping[Path, str]) -> Json:
    """A copy of the document with other strings at these places; the rest is shared. A number becomes a string.

    Takes what ``walk_strings`` of the same document returned, or some of it.
    """
    if not replaced:
        return document
    by_step: dict[Step, dict[Path, str]] = {}
    for path, text in replaced.items():
        if not path:
            return text
        by_step.setdefault(path[0], {})[path[1:]] = text
    if isinstance(document, Mapping):
        return {key: with_strings(item, by_step.get(str(key), {})) for key, item in document.items()}
    if isinstance(document, list | tuple):
        return [with_strings(item, by_step.get(index, {})) for index, item in enumerate(document)]
    raise KeyError(next(iter(replaced)))
