"""Reading calls out of tool markup: from what stands between its opening and its close to names and arguments.

Exists apart from ``core.markup``, which finds the markup in a text that comes in pieces. Protects the rule that no half
of what was written is run: markup that is not a call of its form through and through is none (``None``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

MAX_NAME = 200
"""Characters of a name that is looked for."""

NAMED, CALL_ID, ARGS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
"""In the form whose names are no JSON: what stands before each call, before its id, and before its arguments."""

FUNCTION, PARAMETER = "<function=", "<parameter="

PREFIXES = ("", "antml:", "minimax:")
"""Of tags in the forms with ``<invoke>``."""

CALL_BEGINS, CALL_ENDS, SEPARATES = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"
"""DeepSeek's own signs: full-width bars, and a block in the place of blanks."""

Types = Mapping[str, frozenset[str]]
"""By tool: its parameters that are text."""

Calls = list[tuple[str, str]] | None
"""Names and arguments (JSON text)."""

NAME = re.compile(rf"[\w.:/-]{{1,{MAX_NAME}}}")
_PARAMETER = re.compile(rf"\s*<parameter=([^>\n]{{1,{MAX_NAME}}})>(.*?)</parameter>\s*", re.DOTALL)
_PREFIX = "|".join(map(re.escape, PREFIXES))
_INVOKE = re.compile(
    rf'\s*<({_PREFIX})invoke name="([^"\n]{{1,{MAX_NAME}}})"\s*>(.*?)</\1invoke>\s*', re.DOTALL
)  # fmt: skip
_NAMED_PARAMETER = re.compile(
    rf'\s*<({_PREFIX})parameter name="([^"\n]{{1,{MAX_NAME}}})"[^>\n]*>(.*?)</\1parameter>\s*', re.DOTALL
)  # fmt: skip
_BAR_OPENS = re.compile(
    rf"\s*{CALL_BEGINS}\s*+(?:function{SEPARATES})?({NAME.pattern})"
    rf"\s*+(?:{SEPARATES}\s*+)?(?:```json\s*+)?(?=\{{)"
)
_BAR_CLOSES = re.compile(rf"\s*+(?:```\s*+)?(?:{CALL_ENDS}\s*|$)")
"""Runs of blanks are never given back: two such runs in a row would cost the square of a long one."""
_CHANNEL = re.compile(
    rf"(?:functions\.)?({NAME.pattern})(?:\s|<\|channel\|>|<\|constrain\|>|\b[a-z]{{1,20}}\b){{0,12}}<\|message\|>(.*)",
    re.DOTALL,
)


def json_calls(inside: str) -> Calls:
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


def named_calls(inside: str) -> Calls:
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


def function_call(inside: str, types: Types) -> Calls:
    """A call whose name is part of what opens it: its arguments are an object, or a parameter each."""
    name, closes, body = inside.partition(">")
    body = body.strip()
    if not closes or NAME.fullmatch(name) is None:
        return None
    if not body.startswith(PARAMETER):
        try:
            arguments = json.loads(body or "{}")
        except (ValueError, RecursionError):
            return None
        return [(name, _written(arguments))] if isinstance(arguments, dict) else None
    given = _given(body, _PARAMETER, 1, types.get(name, frozenset()))
    return None if given is None else [(name, _written(given))]


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


def invokes(written: str, types: Types) -> Calls:
    """Calls that are tags, one behind the other, with a tag for each parameter."""
    calls: list[tuple[str, str]] = []
    at = 0
    while at < len(written):
        if (found := _INVOKE.match(written, at)) is None or NAME.fullmatch(found[2]) is None:
            return None
        given = _given(found[3], _NAMED_PARAMETER, 2, types.get(found[2], frozenset()))
        if given is None:
            return None
        calls.append((found[2], _written(given)))
        at = found.end()
    return calls or None


def barred_calls(written: str) -> Calls:
    """DeepSeek's calls, one behind the other; the older models write ``function`` before and a fence around."""
    calls: list[tuple[str, str]] = []
    at = 0
    while at < len(written):
        if (found := _barred(written, at)) is None:
            return None
        name, arguments, at = found
        calls.append((name, arguments))
    return calls or None


def _barred(written: str, at: int) -> tuple[str, str, int] | None:
    begun = _BAR_OPENS.match(written, at)
    if begun is None:
        return None
    try:
        arguments, end = json.JSONDecoder().raw_decode(written, begun.end())
    except (ValueError, RecursionError):
        return None
    closed = _BAR_CLOSES.match(written, end)
    if closed is None or not isinstance(arguments, dict):
        return None
    return begun[1], _written(arguments), closed.end()


def channel_call(inside: str) -> Calls:
    """A call in a channel of its own: to whom, how it is written, and the arguments."""
    found = _CHANNEL.fullmatch(inside)
    if found is None:
        return None
    try:
        arguments = json.loads(found[2])
    except (ValueError, RecursionError):
        return None
    return [(found[1], _written(arguments))] if isinstance(arguments, dict) else None


def _given(body: str, form: re.Pattern[str], key: int, texts: frozenset[str]) -> dict[str, object] | None:
    """Parameters that are tags; None if anything else stands there."""
    given: dict[str, object] = {}
    at, body = 0, body.strip()
    while at < len(body):
        if (found := form.match(body, at)) is None:
            return None
        name, value = found[key].strip(), found[key + 1].removeprefix("\n").removesuffix("\n")
        given[name] = value if name in texts else _value(value)
        at = found.end()
    return given
