"""How a client writes what it does not have to say, and what it calls its things by.

Exists so that calls and frames read both in one way. Protects the rule that a client which writes out every field of
its own types, with null for those that it has no value for, is answered like one that leaves them out.
"""

from __future__ import annotations

from typing import cast

from pydantic import BaseModel, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema


def as_text(value: object) -> object:
    """A whole number as its digits: a name that is one is the same name as text. Everything else as it is."""
    whole = value.is_integer() if isinstance(value, float) else isinstance(value, int) and not isinstance(value, bool)
    return str(int(cast("float", value))) if whole else value


class Given(BaseModel):
    """What a client sends. Not ninja's ``Schema``: that takes any value for an object with optional fields alone.

    Null says nothing: a field that may be left out may be null, as a client writes it that has nothing to say.
    """

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: object) -> object:
        if not isinstance(given, dict):
            return given
        strange = set(given) - set(cls.model_fields) if cls.model_config.get("extra") == "allow" else set()
        return {name: value for name, value in given.items() if value is not None or name in strange}

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        found = handler(core)
        schema = handler.resolve_ref_schema(found)
        for name, field in schema.get("properties", {}).items():
            may_be_null = {"type": "null"} in [*field.get("anyOf", ()), {"type": field.get("type")}]
            if name not in schema.get("required", ()) and not may_be_null:
                about = {key: field.pop(key) for key in ("title", "description", "default") if key in field}
                one_of = field.get("anyOf") or field.get("allOf") or [field]  # of all there is one: a reference
                schema["properties"][name] = {"anyOf": [*one_of, {"type": "null"}], **about}
        return found
