"""From a kind's ``Config`` model to the fields that edit it.

Protects the rule that adding a kind is adding one file: nothing here names a kind. A type that no field fits is edited
as JSON, so that every parameter can be edited.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Mapping
from typing import Annotated, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo

from guardrails.admin.rules.groups import Field, Group, Items, Named, Switch
from guardrails.admin.rules.widgets import Check, Choice, Json, Lines, Number, Text, Widget

SHORT = 120
"""Characters; a text that may be longer gets a field of several lines."""
_UPPER = {"id", "ssn", "ssns", "iban", "ip", "sql", "html", "pii", "url"}
_PROOF = ("must_match", "must_not_match", "ignore_case", "placeholder")
"""Keys that an author looks for first, however many others there are."""
_MAX_DEPTH = 6


@functools.cache
def group_of(model: type[BaseModel], depth: int = 0) -> Group:
    """The fields of a model."""
    return Group(tuple(_field(key, info, depth) for key, info in model.model_fields.items()))


def _field(key: str, info: FieldInfo, depth: int) -> Field:
    required = info.is_required()
    default = None if required else as_json(info.get_default(call_default_factory=True))
    widget = widget_of(info.annotation, info.metadata, depth)
    if isinstance(widget, Number) and default is not None:
        widget = Number(widget.whole, widget.optional, {**widget.facts, "placeholder": str(default)})
    rank = -1 if required else _PROOF.index(key) if key in _PROOF else None
    return Field(key, widget, label_of(key), info.description or "", default, rank)


def label_of(key: str) -> str:
    """A key in a reader's words."""
    words = [word.upper() if word in _UPPER else word for word in key.split("_")]
    return " ".join(words)[:1].upper() + " ".join(words)[1:]


def as_json(value: object) -> object:
    """A value as it stands in a document."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return TypeAdapter(object).dump_python(value, mode="json")


def widget_of(annotation: object, metadata: list[object] | None = None, depth: int = 0) -> Widget:
    """The field for a type."""
    metadata = list(metadata or [])
    while get_origin(annotation) is Annotated:
        annotation, *more = get_args(annotation)
        for one in more:
            metadata += one.metadata if isinstance(one, FieldInfo) else [one]
    optional, parts = _parts(annotation)
    models = [part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)]
    if len(parts) == 2 and bool in parts and len(models) == 1 and not optional and depth < _MAX_DEPTH:
        return Switch(group_of(models[0], depth + 1))
    if len(parts) != 1:
        return Json()
    return _plain(parts[0], metadata, optional, depth)


def _plain(kind: object, metadata: list[object], optional: bool, depth: int) -> Widget:
    if kind is bool:
        return Choice({"": None, "true": True, "false": False}, {"": "as needed", "true": "yes", "false": "no"}) \
            if optional else Check()  # fmt: skip
    if kind is int or kind is float:
        return Number(kind is int, optional, _limits(metadata))
    if kind is str:
        return Text(long=_longest(metadata) > SHORT, optional=optional)
    if get_origin(kind) is Literal and all(isinstance(word, str) for word in get_args(kind)):
        none: dict[str, object] = {"": None} if optional else {}
        return Choice({**none, **{word: word for word in get_args(kind)}}, {"": "none"})
    if optional or depth >= _MAX_DEPTH:
        return Json()
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return group_of(kind, depth + 1)
    return _container(kind, depth)


def _container(kind: object, depth: int) -> Widget:
    origin, args = get_origin(kind), get_args(kind)
    if origin is tuple and len(args) == 2 and args[1] is Ellipsis:
        inside = widget_of(args[0], None, depth)
        if isinstance(inside, Text) and not inside.optional:
            return Lines()
        if isinstance(inside, Group):
            return Items(inside)
    if origin is dict and args[0] is str and isinstance(widget_of(args[1], None, depth), Lines):
        return Named()
    return Json()


def _parts(annotation: object) -> tuple[bool, list[object]]:
    """Whether null is possible, and the other types of a union."""
    if get_origin(annotation) not in (Union, types.UnionType):
        return False, [annotation]
    parts = list(get_args(annotation))
    return type(None) in parts, [part for part in parts if part is not type(None)]


def _limits(metadata: list[object]) -> Mapping[str, str]:
    facts: dict[str, str] = {}
    for one in metadata:
        if isinstance(one, annotated_types.Ge):
            facts["min"] = str(one.ge)
        elif isinstance(one, annotated_types.Le):
            facts["max"] = str(one.le)
    return facts


def _longest(metadata: list[object]) -> int:
    longest = [one.max_length for one in metadata if isinstance(one, annotated_types.MaxLen)]
    return min(longest, default=SHORT)
