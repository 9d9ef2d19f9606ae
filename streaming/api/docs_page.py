"""What the documentation page says of each call and each shape, read from the OpenAPI document.

The page says nothing that the document does not, so it cannot fall behind the code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias, cast

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

Part: TypeAlias = Mapping[str, object]
_SHAPES = "#/components/schemas/"
_LIMITS = {
    "minimum": "at least {}", "maximum": "at most {}", "minLength": "at least {} characters",
    "maxLength": "at most {} characters", "minItems": "at least {} items", "maxItems": "at most {} items",
    "default": "otherwise {}",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Field:
    """A parameter or a field: its type in words, and the shape that the words speak of ("" for none)."""

    name: str
    words: str
    shape: str
    required: bool
    about: str


@dataclass(frozen=True, slots=True)
class Call:
    """One call: the names of the shapes that it takes and gives ("" where the document names none)."""

    method: str
    path: str
    summary: str
    about: str
    keyed: bool
    takes: str
    gives: str
    parameters: tuple[Field, ...]

    @property
    def anchor(self) -> str:
        """The place of this call on the page."""
        return f"{self.method.lower()}{self.path.replace('/', '-')}"


@dataclass(frozen=True, slots=True)
class Shape:
    """A named object and its fields."""

    name: str
    about: str
    fields: tuple[Field, ...]


def _part(within: Part, *names: str) -> Part:
    for name in names:
        within = cast("Part", within.get(name) or {})
    return within


def _parts(within: Part, name: str) -> list[Part]:
    return cast("list[Part]", within.get(name) or [])


def _shape(schema: Part) -> str:
    """The name of the shape that a schema is, or that its items or one of its choices are."""
    if ref := str(schema.get("$ref", "")):
        return ref.removeprefix(_SHAPES)
    inner = [_part(schema, "items")] if "items" in schema else _parts(schema, "anyOf")
    return next((name for one in inner if (name := _shape(one))), "")


def _words(schema: Part) -> str:
    """A type as a reader says it: ``string, at most 64 characters``."""
    if "$ref" in schema:
        said = _shape(schema)
    elif choices := _parts(schema, "anyOf"):
        said = " or ".join(_words(one) for one in choices)
    elif values := schema.get("enum") or ([schema["const"]] if "const" in schema else []):
        said = "one of " + ", ".join(map(str, cast("list[object]", values)))
    elif "items" in schema:
        said = f"array of {_words(_part(schema, 'items'))}"
    else:
        said = str(schema.get("type", "any value"))
    limits = [words.format(schema[name]) for name, words in _LIMITS.items() if schema.get(name) not in (None, "", [])]
    return ", ".join([said, *limits])


def _field(name: str, schema: Part, *, required: bool, about: object) -> Field:
    return Field(name, _words(schema), _shape(schema), required, str(about or ""))


def _sent(body: object) -> str:
    """The shape of a body in JSON."""
    return _shape(_part(cast("Part", body), "content", "application/json", "schema"))


def _given(answers: Part) -> str:
    """The shape of the first answer that is no refusal. A status is a number here, and text in JSON."""
    return next((shape for status, one in answers.items() if str(status)[0] == "2" and (shape := _sent(one))), "")


def calls(schema: Part) -> Iterator[Call]:
    """Every call of the document, in its order."""
    for path, operations in _part(schema, "paths").items():
        for method, operation in cast("dict[str, Part]", operations).items():
            parameters = tuple(
                _field(
                    f"{one['name']} ({one['in']})",
                    _part(one, "schema"),
                    required=bool(one.get("required")),
                    about=one.get("description"),
                )
                for one in _parts(operation, "parameters")
            )
            yield Call(
                method=method.upper(),
                path=path,
                summary=str(operation.get("summary", "")),
                about=str(operation.get("description", "")),
                keyed=bool(operation.get("security")),
                takes=_sent(_part(operation, "requestBody")),
                gives=_given(_part(operation, "responses")),
                parameters=parameters,
            )


def shapes(schema: Part) -> Iterator[Shape]:
    """Every shape of the document, in its order."""
    for name, shape in cast("dict[str, Part]", _part(schema, "components", "schemas")).items():
        required = cast("list[str]", shape.get("required") or [])
        fields = tuple(
            _field(field, about, required=field in required, about=about.get("description"))
            for field, about in cast("dict[str, Part]", _part(shape, "properties")).items()
        )
        yield Shape(name, str(shape.get("description", "")), fields)


def page(request: HttpRequest, schema: Part) -> HttpResponse:
    """The page of a document."""
    context = {"info": schema["info"], "calls": list(calls(schema)), "shapes": list(shapes(schema))}
    return render(request, "api/docs.html", context)
