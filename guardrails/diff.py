"""What changed between two policy documents, guardrail by guardrail and rule by rule.

Exists because whoever signs or rolls back reads this and not two documents. Protects the rule that nothing that changed
is left out: what is not understood as a rule, a word or a key is shown as a whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

What = Literal["added", "removed", "changed", "moved"]
_LISTS = ("keywords", "patterns")
"""Lists of texts whose entries are rules of their own."""


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that differs. ``guardrail`` empty: the policy itself. ``rule`` empty: the guardrail. ``key`` empty: all
    of it. ``before`` and ``after`` are JSON values, None where there is nothing."""

    what: What
    guardrail: str
    rule: str = ""
    key: str = ""
    before: object = None
    after: object = None

    def __str__(self) -> str:
        place = "/".join(part for part in (self.guardrail or "policy", self.rule) if part)
        named = f"{place}: {self.key}" if self.key else place
        if self.what == "changed":
            return f"~ {named}: {_json(self.before)} -> {_json(self.after)}"
        if self.what == "moved":
            return f"~ {named}: place {self.before} -> {self.after}"
        if self.what == "added":
            return f"+ {named}: {_json(self.after)}"
        return f"- {named}: {_json(self.before)}"


def changes(before: Mapping[str, object], after: Mapping[str, object]) -> tuple[Change, ...]:
    """Everything that differs between two normalised policy documents; empty if nothing does."""
    found = list(_keys("", "", _without(before, "guardrails"), _without(after, "guardrails")))
    old, new = _by(before.get("guardrails"), "name"), _by(after.get("guardrails"), "name")
    found += [Change("removed", name, before=value) for name, value in old.items() if name not in new]
    for name, value in new.items():
        if name not in old:
            found.append(Change("added", name, after=value))
        else:
            found += _guardrail(name, old[name], value)
    both = [name for name in old if name in new]
    found += _moved([name for name in new if name in old], both)
    return tuple(found)


def _guardrail(name: str, before: Mapping[str, object], after: Mapping[str, object]) -> Iterator[Change]:
    yield from _keys(name, "", _without(before, "config"), _without(after, "config"))
    old, new = _mapping(before.get("config")), _mapping(after.get("config"))
    special = ("rules", *_LISTS)
    yield from _keys(name, "", _without(old, *special), _without(new, *special))
    yield from _rules(name, _by(old.get("rules"), "id"), _by(new.get("rules"), "id"))
    for key in _LISTS:
        was, is_ = _texts(old.get(key)), _texts(new.get(key))
        yield from (Change("removed", name, text, before=text) for text in was if text not in is_)
        yield from (Change("added", name, text, after=text) for text in is_ if text not in was)
        if set(was) == set(is_) and was != is_:
            yield Change("changed", name, key=key, before=was, after=is_)


def _rules(
    name: str, old: Mapping[str, Mapping[str, object]], new: Mapping[str, Mapping[str, object]]
) -> Iterator[Change]:
    yield from (Change("removed", name, id_, before=rule) for id_, rule in old.items() if id_ not in new)
    for id_, rule in new.items():
        if id_ not in old:
            yield Change("added", name, id_, after=rule)
        else:
            yield from _keys(name, id_, old[id_], rule)
    kept = [id_ for id_ in new if id_ in old]
    for moved in _moved(kept, [id_ for id_ in old if id_ in new]):
        yield Change("moved", name, moved.guardrail, before=moved.before, after=moved.after)


def _moved(now: Sequence[str], was: Sequence[str]) -> list[Change]:
    """Which of the same names stand at another place; the order decides between rules."""
    return [
        Change("moved", name, before=was.index(name) + 1, after=at)
        for at, name in enumerate(now, 1)
        if was.index(name) + 1 != at
    ]


def _keys(guardrail: str, rule: str, before: Mapping[str, object], after: Mapping[str, object]) -> Iterator[Change]:
    for key in sorted(before.keys() | after.keys()):
        if key not in after:
            yield Change("removed", guardrail, rule, key, before=before[key])
        elif key not in before:
            yield Change("added", guardrail, rule, key, after=after[key])
        elif before[key] != after[key] or type(before[key]) is not type(after[key]):
            yield Change("changed", guardrail, rule, key, before[key], after[key])


def _without(value: Mapping[str, object], *keys: str) -> dict[str, object]:
    return {key: one for key, one in value.items() if key not in keys}


def _mapping(value: object) -> Mapping[str, object]:
    return cast("Mapping[str, object]", value) if isinstance(value, Mapping) else {}


def _by(value: object, key: str) -> dict[str, Mapping[str, object]]:
    entries = value if isinstance(value, list | tuple) else []
    return {str(entry[key]): entry for entry in entries}


def _texts(value: object) -> list[str]:
    return [str(entry) for entry in value] if isinstance(value, list | tuple) else []


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
