"""Every code that trouble with a provider can have stands in the pages in which somebody looks it up."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from streaming import resilience
from streaming.api.errors import CODES
from streaming.providers.base import ProviderError

PACKAGE = Path(resilience.__file__).resolve().parent
DOCS = PACKAGE.parent / "docs"


def kinds_of(error: type[ProviderError]) -> Iterator[type[ProviderError]]:
    yield error
    for kind in error.__subclasses__():
        yield from kinds_of(kind)


def notices() -> Iterator[str]:
    """The codes of notices as they are written; one that repeats the code of an error has none of its own."""
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            match node:
                case ast.Call(func=ast.Name(id="ProviderNotice"), args=[ast.Constant(value=str(code)), *_]):
                    yield code
                case ast.Call(func=ast.Name(id="ProviderNotice"), args=[ast.Attribute(attr="code"), *_]):
                    pass
                case ast.Call(func=ast.Name(id="ProviderNotice")):
                    raise AssertionError(f"{file.name}, line {node.lineno}: the code is not written there")


def failures() -> set[str]:
    return {kind.code for kind in kinds_of(ProviderError)}


def test_it_works() -> None:
    assert set(notices()) == {
        "answer_cut", "malformed_line", "provider_fallback", "too_many_rounds", "too_many_tool_calls", "tool_markup"
    }  # fmt: skip
    assert {"provider_error", "provider_auth", "circuit_open"} < failures()


def test_every_code_has_its_line_in_the_table_of_what_to_do() -> None:
    page = (DOCS / "troubleshooting.md").read_text("utf-8")
    assert {*notices(), *failures()} <= set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))


def test_every_code_is_among_those_of_the_events() -> None:
    _, _, table = (DOCS / "events.md").read_text("utf-8").partition("## Error codes")
    assert {*notices(), *failures()} <= set(re.findall(r"`(\w+)`", table))


REFUSALS = {"ApiError", "StartRefused", "FrameError", "OutOfTurn", "Refused", "error_response"}
SOCKETS = {"consumers.py", "compare_socket.py"}


def codes_of_calls() -> Iterator[str]:
    """The codes that refusals of calls are written with; what only a socket says is among those of the events."""
    yield from CODES.values()
    for file in sorted(PACKAGE.rglob("*.py")):
        if file.name in SOCKETS or "gateway" in file.parts:
            continue
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            match node:
                case ast.Call(func=ast.Name(id=name), args=args, keywords=more) if name in REFUSALS:
                    said = [each.value for each in more if each.arg == "code"] + args[:1]
                    words = [each.value for each in said if isinstance(each, ast.Constant)]
                    yield from (word for word in words if isinstance(word, str) and re.fullmatch(r"\w+", word))


def test_every_refusal_of_a_call_has_its_line_where_refusals_are_looked_up() -> None:
    _, _, page = (DOCS / "troubleshooting.md").read_text("utf-8").partition("## When a call or a frame is refused")
    table = "\n".join(line for line in page.partition("\n## ")[0].splitlines() if line.startswith("|"))
    codes = set(codes_of_calls())
    assert {"seq_conflict", "log_unavailable", "unknown_conversation", "too_large"} < codes
    assert codes - {"conflict"} <= set(re.findall(r"`(\w+)`", table)), "a conflict has always a code of its own"
