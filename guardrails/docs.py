"""The tables of docs/guardrails.md, written from the code.

Protects the rule that the documentation page and the program read the same data: a kind that is added, a default that
changes, shows up in the page (`manage.py rules docs --write docs/guardrails.md`), and a test fails until it does.
"""

from __future__ import annotations

import json
import types
from collections.abc import Iterator, Sequence
from typing import Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from guardrails.kinds.base import Config, Kind, all_kinds
from guardrails.performance import DECISION_TABLE

BEGIN, END = "<!-- generated: {} -->", "<!-- end of generated: {} -->"


def decision_table() -> str:
    """The decision table as Markdown."""
    rows = [
        (
            row.label,
            row.performance_class.value,
            row.mode.value,
            "yes" + (f" ({row.override_warning.rstrip('.')})" if row.override_warning else "")
            if row.override
            else "no",
            row.action.value,
            row.on_error.value,
        )
        for row in DECISION_TABLE.values()
    ]
    head = ("guardrails", "class", "default mode", "may be overridden", "default action", "on error")
    return _table(head, rows)


def kinds() -> str:
    """Every kind: what it does, its row's defaults, its parameters, an example that hits."""
    return "\n\n".join(_kind(kind) for kind in all_kinds().values())


SECTIONS = {"decision table": decision_table, "kinds": kinds}
"""Name of each generated section and what writes it."""


def filled_in(page: str) -> str:
    """The page with every generated section brought up to date. Raises ``ValueError`` if marks are missing."""
    for name, write in SECTIONS.items():
        begin, end = BEGIN.format(name), END.format(name)
        before, found, rest = page.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"the page has no marks for the section {name!r}")
        page = f"{before}{begin}\n{write()}\n{end}{after}"
    return page


def _kind(kind: type[Kind[Config]]) -> str:
    row, performance = kind.decision(), kind.get_performance_characteristics()
    lines = [
        f"### `{kind.name}`",
        "",
        f"{kind.description} {performance.performance_class.value}, {performance.checkpoint.value}; "
        f"default mode {row.mode.value}, action `{row.action.value}`, on error `{row.on_error.value}`.",
        "",
        _table(("parameter", "form", "default", "meaning"), list(_parameters(kind.Config))),
        "",
    ]
    example = kind.examples[0]
    lines.append(f"Example: `{json.dumps(example.config, ensure_ascii=False)}`")
    lines.append(
        "hits " + ", ".join(map(_literal, example.hits)) + "; passes " + ", ".join(map(_literal, example.passes)) + "."
    )
    return "\n".join(lines)


def _parameters(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    for name, field in model.model_fields.items():
        yield f"`{prefix}{name}`", _form(field.annotation), _default(field), field.description or ""
        for inner in _models(field.annotation):
            yield from _parameters(inner, f"{prefix}{name}.")


def _models(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def _form(annotation: object) -> str:
    """The type of a parameter in a reader's words."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "object"
    plain = {bool: "true or false", int: "whole number", float: "number", str: "text", type(None): "null"}
    if isinstance(annotation, type) and annotation in plain:
        return plain[annotation]
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{arg}`" for arg in args)
    if origin in (Union, types.UnionType):
        return " or ".join(_form(arg) for arg in args)
    if origin is tuple:
        return f"list of {_form(args[0])}"
    if origin is dict:
        return f"object of {_form(args[1])}"
    if args:  # Annotated
        return _form(args[0])
    return str(annotation)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "all"
    if value in ((), {}, ""):
        return "empty"
    return f"`{json.dumps(value)}`"


def _literal(text: str) -> str:
    shown = json.dumps(text, ensure_ascii=False)[1:-1].replace('\\"', '"')
    shown = shown if len(shown) <= 60 else shown[:57] + "…"
    return f"`` {shown} ``" if "`" in shown else f"`{shown}`"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
