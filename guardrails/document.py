"""Policy documents: what may stand in a policy file, with every default written out.

Protects the rule that nothing in a policy is silently skipped: an unknown key, an unknown kind or an impossible
combination is refused with the path of the key. Parameters of a kind may be written flat or under ``config``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from pydantic import ValidationError

from guardrails.findings import Action, AppliesTo, Mode, OnError
from guardrails.kinds.base import Config, Kind, all_kinds
from guardrails.performance import TIME_LIMIT_S, Checkpoint, Family

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}", re.IGNORECASE)
_TOOL = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")
_NOT_STORED = re.compile("[\0\ud800-\udfff]")
_DEEPEST = 50
_ENVELOPE = ("name", "kind", "description", "applies_to", "mode", "action", "on_error", "client", "time_limit_s")
_MAX_TIME_LIMIT_S = 600.0
EnumT = TypeVar("EnumT", bound=StrEnum)


class PolicyError(ValueError):
    """A refused policy document. ``path`` names the key, e.g. ``guardrails[1].config.rules[0].pattern``."""

    permanent = True

    def __init__(self, path: str, message: str) -> None:
        self.path = path
        self.message = message
        super().__init__(f"{path}: {message}" if path else message)


@dataclass(frozen=True, slots=True)
class GuardrailDocument:
    """One guardrail entry with its defaults filled in. ``kind`` is the built instance of the kind."""

    name: str
    kind: Kind[Config]
    description: str
    applies_to: tuple[AppliesTo, ...]
    mode: Mode
    action: Action
    on_error: OnError
    client: bool
    time_limit_s: float

    @property
    def checkpoint(self) -> Checkpoint:
        """When the guardrail runs."""
        return self.kind.get_performance_characteristics().checkpoint

    def as_dict(self) -> dict[str, object]:
        """The entry as JSON, every default written out, parameters under ``config``."""
        return {
            "name": self.name,
            "kind": self.kind.name,
            "description": self.description,
            "applies_to": [text.value for text in self.applies_to],
            "mode": self.mode.value,
            "action": self.action.value,
            "on_error": self.on_error.value,
            "client": self.client,
            "time_limit_s": self.time_limit_s,
            "config": self.kind.config.model_dump(mode="json"),
        }


@dataclass(frozen=True, slots=True)
class PolicyDocument:
    """A validated policy document."""

    name: str
    description: str
    guardrails: tuple[GuardrailDocument, ...]
    restore_in_tools: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """The document as JSON, every default written out.

        ``restore_in_tools`` stands in it only when it names a tool: documents that were signed before there was such a
        key keep their digest.
        """
        return {
            "policy": self.name,
            "description": self.description,
            **({"restore_in_tools": list(self.restore_in_tools)} if self.restore_in_tools else {}),
            "guardrails": [guardrail.as_dict() for guardrail in self.guardrails],
        }


def parse_document(document: object) -> PolicyDocument:
    """Validate a policy document (the parsed JSON or TOML of a policy file). Raises ``PolicyError``."""
    top = _mapping(document, "")
    _storable(top, "")
    _known_keys(top, ("policy", "description", "restore_in_tools", "guardrails"), "")
    name = _text(top, "policy", "")
    if not _NAME.fullmatch(name):
        raise PolicyError("policy", "must be 1-64 letters, digits, '_', '.' or '-', starting with a letter or digit")
    entries = top.get("guardrails", [])
    if not isinstance(entries, list | tuple):
        raise PolicyError("guardrails", "must be a list")
    guardrails = tuple(_guardrail(entry, f"guardrails[{i}]") for i, entry in enumerate(entries))
    seen: set[str] = set()
    for i, guardrail in enumerate(guardrails):
        if guardrail.name in seen:
            raise PolicyError(f"guardrails[{i}].name", f"{guardrail.name!r} is used twice")
        seen.add(guardrail.name)
    return PolicyDocument(name, _text(top, "description", "", default=""), guardrails, _tools(top))


def _storable(value: object, path: str, depth: int = 0) -> None:
    """No text of a policy holds NUL, which PostgreSQL does not store, or half a surrogate pair, which nothing does; no
    text that is guarded has them either."""
    if depth > _DEEPEST:
        raise PolicyError(path[:200], f"nested more than {_DEEPEST} deep")
    if isinstance(value, str) and (found := _NOT_STORED.search(value)):
        raise PolicyError(path, f"holds U+{ord(found[0]):04X}, which no text can have")
    if isinstance(value, Mapping):
        for key, one in value.items():
            _storable(key, path, depth + 1)
            _storable(one, f"{path}.{key}" if path else f"{key}", depth + 1)
    elif isinstance(value, list | tuple):
        for i, one in enumerate(value):
            _storable(one, f"{path}[{i}]", depth + 1)


def _guardrail(entry: object, path: str) -> GuardrailDocument:
    raw = _mapping(entry, path)
    kinds = all_kinds()
    kind_name = _text(raw, "kind", path)
    kind = kinds.get(kind_name)
    if kind is None:
        raise PolicyError(f"{path}.kind", f"unknown kind {kind_name!r}; known: {', '.join(kinds)}")
    name = _text(raw, "name", path, default=kind_name)
    if not _NAME.fullmatch(name):
        raise PolicyError(f"{path}.name", "must be 1-64 letters, digits, '_', '.' or '-'")
    row = kind.decision()
    mode = _choice(raw, "mode", path, Mode, row.mode)
    if mode not in (row.mode, Mode.DISABLED) and not row.override:
        raise PolicyError(f"{path}.mode", f"kind {kind_name!r} cannot run in {mode.value}, only in {row.mode.value}")
    action = _choice(raw, "action", path, Action, row.action)
    checkpoint = kind.get_performance_characteristics().checkpoint
    return GuardrailDocument(
        name=name,
        kind=_build(kind, raw, path),
        description=_text(raw, "description", path, default=""),
        applies_to=_applies_to(raw, path, kind),
        mode=mode,
        action=action,
        on_error=_choice(raw, "on_error", path, OnError, row.on_error),
        client=_client(raw, path, kind),
        time_limit_s=_time_limit(raw, path, TIME_LIMIT_S[checkpoint]),
    )


def _build(kind: type[Kind[Config]], raw: Mapping[str, object], path: str) -> Kind[Config]:
    """The kind's instance from its parameters, flat or under ``config``."""
    flat = {key: value for key, value in raw.items() if key not in _ENVELOPE and key != "config"}
    under = raw.get("config")
    if under is None:
        parameters, at = flat, path
        if unknown := flat.keys() - kind.Config.model_fields.keys():
            raise PolicyError(f"{path}.{min(unknown)}", "unknown key")
    else:
        parameters, at = dict(_mapping(under, f"{path}.config")), f"{path}.config"
        if flat:
            raise PolicyError(f"{path}.{min(flat)}", "unknown key (parameters of the kind stand under config here)")
    try:
        return kind(kind.Config.model_validate(parameters))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
        message = "unknown key" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
        raise PolicyError(at + where, message) from None
    except PolicyError as error:
        raise PolicyError(f"{at}.{error.path}" if error.path else at, error.message) from None
    except (ValueError, OSError) as error:
        raise PolicyError(at, str(error)) from None


def _applies_to(raw: Mapping[str, object], path: str, kind: type[Kind[Config]]) -> tuple[AppliesTo, ...]:
    value = raw.get("applies_to")
    if value is None:
        return kind.applies_to
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list | tuple) or not value:
        raise PolicyError(f"{path}.applies_to", "must be a non-empty list")
    out: list[AppliesTo] = []
    for i, item in enumerate(value):
        try:
            out.append(AppliesTo(item))
        except ValueError:
            known = ", ".join(text.value for text in AppliesTo)
            raise PolicyError(f"{path}.applies_to[{i}]", f"unknown {item!r}; known: {known}") from None
    return tuple(dict.fromkeys(out))


def _tools(top: Mapping[str, object]) -> tuple[str, ...]:
    """Names of the tools in whose arguments masked values are put back: exact names, no patterns."""
    value = top.get("restore_in_tools", [])
    if not isinstance(value, list | tuple):
        raise PolicyError("restore_in_tools", "must be a list")
    for i, name in enumerate(value):
        if not isinstance(name, str) or not _TOOL.fullmatch(name):
            words = "must be the name of a tool: 1-128 letters, digits, '_', '.', ':', '/' or '-'"
            raise PolicyError(f"restore_in_tools[{i}]", words)
    return tuple(dict.fromkeys(value))


def _client(raw: Mapping[str, object], path: str, kind: type[Kind[Config]]) -> bool:
    value = raw.get("client", False)
    if not isinstance(value, bool):
        raise PolicyError(f"{path}.client", "must be true or false")
    if value and kind.family not in (Family.PATTERN, Family.LISTED):
        raise PolicyError(f"{path}.client", f"kind {kind.name!r} cannot be sent to clients")
    return value


def _time_limit(raw: Mapping[str, object], path: str, default: float) -> float:
    value = raw.get("time_limit_s", default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _MAX_TIME_LIMIT_S:
        raise PolicyError(f"{path}.time_limit_s", f"must be seconds, above 0 and at most {_MAX_TIME_LIMIT_S:g}")
    return float(value)


def _mapping(value: object, path: str) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise PolicyError(path, "must be an object")
    return value


def _known_keys(value: Mapping[str, object], known: tuple[str, ...], path: str) -> None:
    for key in value:
        if key not in known:
            raise PolicyError(f"{path}.{key}" if path else str(key), "unknown key")


def _text(raw: Mapping[str, object], key: str, path: str, default: str | None = None) -> str:
    value = raw.get(key, default)
    where = f"{path}.{key}" if path else key
    if value is None:
        raise PolicyError(where, "is required")
    if not isinstance(value, str):
        raise PolicyError(where, "must be text")
    return value


def _choice(raw: Mapping[str, object], key: str, path: str, choices: type[EnumT], default: EnumT) -> EnumT:
    value = raw.get(key)
    if value is None:
        return default
    try:
        return choices(str(value))
    except ValueError:
        known = ", ".join(choices)
        raise PolicyError(f"{path}.{key}", f"unknown {value!r}; known: {known}") from None
