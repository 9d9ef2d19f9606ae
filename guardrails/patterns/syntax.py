"""Rule text -> tree, or a clear refusal. The only module that touches the standard library's private parser.

The accepted language is the RE2 subset (syntax page of the RE2 project): no look-around, no back-references, no
atomic or possessive pieces. Two passes: ``_prepare`` walks the text once, refuses with a position what we do not
take, and rewrites what only RE2 spells (``\\z``, ``[[:alnum:]]``, ``(?i)`` in the middle, ``\\Q…\\E``); the parser
behind ``re`` then gives the structure, from which ``_convert`` builds our tree with every class spelled out.
"""

from __future__ import annotations

import re
import re._constants as sre  # type: ignore[import-not-found]
import re._parser as sre_parser  # type: ignore[import-not-found]
import warnings
from collections.abc import Sequence
from typing import Any

from guardrails.patterns import charset
from guardrails.patterns.charset import Ranges
from guardrails.patterns.errors import PatternSyntaxError, UnsupportedError
from guardrails.patterns.tree import EMPTY, Alt, Assert, Chars, Group, Node, Repeat, seq

MAX_LENGTH = 20_000
MAX_NESTING = 60
_FLAGS = re.compile(r"\(\?([a-zA-Z]*)(-[a-zA-Z]+)?([:)])")
_GROUP_NAME = re.compile(r"\(\?P?<([A-Za-z_]\w*)>")
_REPEAT = re.compile(r"[*+?]|\{\d*,?\d*\}")
_CLASSES: dict[object, Ranges] = {
    sre.CATEGORY_DIGIT: charset.DIGIT,
    sre.CATEGORY_NOT_DIGIT: charset.negate(charset.DIGIT),
    sre.CATEGORY_SPACE: charset.SPACE,
    sre.CATEGORY_NOT_SPACE: charset.negate(charset.SPACE),
    sre.CATEGORY_WORD: charset.WORD,
    sre.CATEGORY_NOT_WORD: charset.negate(charset.WORD),
}
_LOOK = {"(?=": "look-ahead", "(?!": "look-ahead", "(?<=": "look-behind", "(?<!": "look-behind"}
_IGNORE_CASE, _MULTILINE, _DOTALL = re.IGNORECASE.value, re.MULTILINE.value, re.DOTALL.value


def parse(pattern: str, *, ignore_case: bool = False) -> Node:
    """Parse a pattern to a tree.

    Raises ``PatternSyntaxError`` when it is malformed and ``UnsupportedError`` when it uses what is outside the
    accepted subset; both name construct and position (code points from the pattern's start).
    """
    if len(pattern) > MAX_LENGTH:
        raise UnsupportedError(f"pattern longer than {MAX_LENGTH} characters")
    prepared = _prepare(pattern)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parsed = sre_parser.parse(prepared, re.ASCII.value if not ignore_case else re.ASCII.value | _IGNORE_CASE)
    except re.error as error:
        exact = error.pos if prepared == pattern else None
        raise PatternSyntaxError(error.msg, exact) from None
    except (OverflowError, RecursionError) as error:
        raise PatternSyntaxError(str(error) or "nested too deeply") from None
    return _convert(parsed, parsed.state.flags)


def _prepare(pattern: str) -> str:
    """Refuse what we do not take and spell RE2's own words the parser's way."""
    out: list[str] = []
    # per open group: the flag groups "(?i:" opened inside it, which every "|" closes and opens again
    stack: list[list[str]] = [[]]
    i, n = 0, len(pattern)
    quantified = False  # the piece just written is a repeat
    while i < n:
        ch = pattern[i]
        if ch == "\\":
            i = _escape(pattern, i, out)
        elif ch == "[":
            i = _char_class(pattern, i, out)
        elif ch == "(":
            i = _open_group(pattern, i, out, stack)
            if len(stack) > MAX_NESTING:
                raise UnsupportedError(f"groups nested deeper than {MAX_NESTING}", i)
        elif ch == ")":
            if len(stack) == 1:
                raise PatternSyntaxError("unbalanced parenthesis", i)
            out.append(")" * len(stack.pop()) + ")")
            i += 1
        elif ch == "|":
            flags = stack[-1]
            out.append(")" * len(flags) + "|" + "".join(flags))
            i += 1
        elif (found := _REPEAT.match(pattern, i)) and out and found.group() not in ("{}", "{,}"):
            if quantified and found.group() != "?":
                construct = "possessive repeat" if found.group() == "+" else "repeat of a repeat"
                raise UnsupportedError("not accepted", i, construct)
            out.append(found.group())
            i = found.end()
            if not quantified and i < n and pattern[i] == "?":
                out.append("?")
                i += 1
            quantified = True
            continue
        else:
            out.append(ch)
            i += 1
        quantified = False
    if len(stack) > 1:
        raise PatternSyntaxError("missing ), unterminated group", n)
    return "".join(out) + ")" * len(stack[0])


def _escape(pattern: str, i: int, out: list[str]) -> int:
    """One escape outside a class; returns the position behind it."""
    if i + 1 >= len(pattern):
        raise PatternSyntaxError("bad escape at the end of the pattern", i)
    ch = pattern[i + 1]
    if ch.isdigit() and ch != "0":
        raise UnsupportedError("not accepted", i, "back-reference")
    if ch in "pPkCgXRNGK":
        name = {"p": "Unicode class", "P": "Unicode class", "k": "back-reference"}.get(ch, f"escape \\{ch}")
        raise UnsupportedError("not accepted", i, name)
    if ch == "z":
        out.append("\\Z")
    elif ch == "Q":
        end = pattern.find("\\E", i + 2)
        end = len(pattern) if end < 0 else end
        out.append(re.escape(pattern[i + 2 : end]))
        return min(end + 2, len(pattern))
    elif ch == "x" and pattern.startswith("{", i + 2):
        return _hex_braces(pattern, i, out)
    else:
        out.append(pattern[i : i + 2])
    return i + 2


def _hex_braces(pattern: str, i: int, out: list[str]) -> int:
    end = pattern.find("}", i)
    try:
        code = int(pattern[i + 3 : end], 16) if end > 0 else -1
    except ValueError:
        code = -1
    if not 0 <= code <= 0x10FFFF:
        raise PatternSyntaxError("bad \\x{…} escape", i)
    out.append(f"\\U{code:08x}")
    return end + 1


def _char_class(pattern: str, i: int, out: list[str]) -> int:
    """One bracket expression; POSIX classes are spelled out, set operations do not exist here."""
    start, n = i, len(pattern)
    out.append("[")
    i += 1
    if i < n and pattern[i] == "^":
        out.append("^")
        i += 1
    first = True
    while i < n:
        ch = pattern[i]
        if ch == "]" and not first:
            out.append("]")
            return i + 1
        first = False
        if pattern.startswith("[:", i) and (end := pattern.find(":]", i)) > 0:
            name = pattern[i + 2 : end]
            ranges = charset.POSIX.get(name.removeprefix("^"))
            if ranges is None:
                raise PatternSyntaxError(f"unknown POSIX class [:{name}:]", i)
            if name.startswith("^"):
                ranges = charset.negate(ranges)
            out.extend(f"\\U{lo:08x}-\\U{hi:08x}" for lo, hi in ranges)
            i = end + 2
        elif ch == "\\":
            i = _class_escape(pattern, i, out)
        else:
            out.append("\\" + ch if ch in "[&~|" else ch)
            i += 1
    raise PatternSyntaxError("unterminated character set", start)


def _class_escape(pattern: str, i: int, out: list[str]) -> int:
    if i + 1 >= len(pattern):
        raise PatternSyntaxError("bad escape at the end of the pattern", i)
    ch = pattern[i + 1]
    if ch in "pP":
        raise UnsupportedError("not accepted", i, "Unicode class")
    if ch == "x" and pattern.startswith("{", i + 2):
        return _hex_braces(pattern, i, out)
    out.append(pattern[i : i + 2])
    return i + 2


def _open_group(pattern: str, i: int, out: list[str], stack: list[list[str]]) -> int:
    """``(`` and what belongs to it; returns the position behind."""
    for text, name in _LOOK.items():
        if pattern.startswith(text, i):
            raise UnsupportedError("not accepted", i, name)
    if not pattern.startswith("(?", i):
        if pattern.startswith("(*", i):
            raise UnsupportedError("not accepted", i, "verb")
        out.append("(")
        stack.append([])
        return i + 1
    if named := _GROUP_NAME.match(pattern, i):
        out.append("(")  # by number only: RE2 and JavaScript spell names differently
        stack.append([])
        return named.end()
    flags = _FLAGS.match(pattern, i)
    if flags is None:
        names = {"(?>": "atomic group", "(?(": "conditional", "(?P": "back-reference by name", "(?#": "comment"}
        raise UnsupportedError("not accepted", i, names.get(pattern[i : i + 3], "group"))
    on, off, end = flags.groups()
    off = off or ""
    if bad := set(on + off.removeprefix("-")) - set("ims"):
        raise UnsupportedError("not accepted", i, f"flag {min(bad)}")
    if end == ":":
        out.append(flags.group() if on or off else "(?:")
        stack.append([])
    elif on or off:  # "(?i)": holds until the enclosing group ends
        opener = f"(?{on}{off}:"
        out.append(opener)
        stack[-1].append(opener)
    return flags.end()


def _convert(parsed: Sequence[tuple[object, Any]], flags: int) -> Node:
    return seq(*(_convert_one(op, value, flags) for op, value in parsed))


def _convert_one(op: object, value: Any, flags: int) -> Node:
    if op is sre.LITERAL:
        return Chars(_cased(((value, value),), flags))
    if op is sre.NOT_LITERAL:
        return Chars(charset.negate(_cased(((value, value),), flags)))
    if op is sre.ANY:
        return Chars(charset.ANY if flags & _DOTALL else charset.DOT)
    if op is sre.IN:
        return Chars(_set(value, flags))
    if op is sre.BRANCH:
        _, branches = value
        return Alt(tuple(_convert(branch, flags) for branch in branches))
    if op is sre.SUBPATTERN:
        number, add, remove, body = value
        inner = _convert(body, (flags | add) & ~remove)
        return inner if number is None else Group(number, inner)
    if op is sre.MAX_REPEAT or op is sre.MIN_REPEAT:
        low, high, body = value
        inner = _convert(body, flags)
        if inner == EMPTY or high == 0:
            return EMPTY
        return Repeat(inner, int(low), None if high == sre.MAXREPEAT else int(high), op is sre.MAX_REPEAT)
    if op is sre.AT:
        return Assert(_assertion(value, flags))
    raise UnsupportedError("not accepted", construct=str(op).lower())


def _cased(ranges: Ranges, flags: int) -> Ranges:
    ranges = charset.normal(ranges)
    return charset.ascii_case(ranges) if flags & _IGNORE_CASE else ranges


def _set(items: Sequence[tuple[object, Any]], flags: int) -> Ranges:
    ranges: list[tuple[int, int]] = []
    negated = False
    for op, value in items:
        if op is sre.NEGATE:
            negated = True
        elif op is sre.LITERAL:
            ranges.append((value, value))
        elif op is sre.RANGE:
            ranges.append(value)
        else:
            ranges.extend(_CLASSES[value])
    found = _cased(tuple(ranges), flags)
    return charset.negate(found) if negated else found


def _assertion(value: object, flags: int) -> str:
    multi = bool(flags & _MULTILINE)
    return {
        sre.AT_BEGINNING: "line_start" if multi else "text_start",
        sre.AT_BEGINNING_STRING: "text_start",
        sre.AT_END: "line_end" if multi else "text_end",
        sre.AT_END_STRING: "text_end",
        sre.AT_BOUNDARY: "boundary",
        sre.AT_NON_BOUNDARY: "not_boundary",
    }[value]
