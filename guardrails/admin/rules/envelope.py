"""A policy document and its guardrails as fields: what every guardrail says of itself, then what its kind asks for.

Protects the decision table: a form offers only the modes that the kind's row allows, and says why there are no others.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from guardrails.admin.rules.groups import NEW, Field, Group, read_items
from guardrails.admin.rules.nodes import Node, Place, place_problems
from guardrails.admin.rules.reading import PREFIX, Reading
from guardrails.admin.rules.shapes import group_of
from guardrails.admin.rules.widgets import LEFT_OUT, Check, Choice, Json, Lines, Number, Several, Text
from guardrails.findings import Action, AppliesTo, Mode, OnError
from guardrails.kinds.base import Config, Kind, all_kinds
from guardrails.performance import TIME_LIMIT_S, Family

TOP = Place(PREFIX)
LIST = TOP.child("guardrails")
HEAD = Group(
    (
        Field("policy", Text(), "Policy", "Its name, in sessions, calls and files; it cannot be changed later.", ""),
        Field("description", Text(long=True), "Description", "What it is for.", ""),
        Field("restore_in_tools", Lines(), "Restore in tools",
              "Tools in whose arguments the gateway puts masked values back, one name a line; no others get any.", []),
    )
)  # fmt: skip


@dataclass(slots=True)
class Card:
    """A guardrail as it is drawn."""

    place: Place
    kind: str
    known: bool
    about: str = ""
    performance: str = ""
    checkpoint: str = ""
    envelope: list[Node] = field(default_factory=list)
    config: Node | None = None
    problem: Node = field(default_factory=lambda: Node(TOP, "none"))
    raw: str = ""

    @property
    def name(self) -> str:
        """Prefix of its field names."""
        return self.place.name

    @property
    def token(self) -> str:
        """Its name in the list."""
        return self.place.name.rpartition(".")[2]

    @property
    def nodes(self) -> list[Node]:
        """All that it shows."""
        return [self.problem, *self.envelope, *([self.config] if self.config else [])]

    @property
    def title(self) -> str:
        """The guardrail's own name."""
        return next((node.value for node in self.envelope if node.label == "Name"), self.kind)

    @property
    def troubled(self) -> bool:
        """Is a problem shown in it?"""
        return any(node.troubled for node in self.nodes)


@dataclass(slots=True)
class Sheet:
    """The whole form as it is drawn. ``problems`` belong to no field of it."""

    head: list[Node]
    cards: list[Card]
    problems: list[str]


@functools.cache
def envelope_of(kind_name: str) -> Group:
    """The fields that every guardrail has, limited by the kind's row of the decision table."""
    kind = all_kinds()[kind_name]
    row = kind.decision()
    modes = [mode.value for mode in Mode if row.override or mode in (row.mode, Mode.DISABLED)]
    if row.override:
        why = f"{row.label}: {row.mode.value} unless you say otherwise. {row.override_warning}".strip()
    else:
        why = f"{row.label}: {row.mode.value} cannot be overridden; a whole call can run in MONITOR."
    limit = TIME_LIMIT_S[kind.get_performance_characteristics().checkpoint]
    fields = [
        Field("name", Text(), "Name", "In findings and on the panel; unique in the policy.", kind_name),
        Field("description", Text(), "Description", "For those who read the policy.", ""),
        Field("applies_to", Several([text.value for text in AppliesTo]), "Applies to", "The texts that it looks at.",
              [text.value for text in kind.applies_to]),
        Field("mode", _choice(modes), "Mode", why, row.mode.value),
        Field("action", _choice([action.value for action in Action]), "Action",
              f"What a hit does; {row.action.value} by default.", row.action.value),
        Field("on_error", _choice([on.value for on in OnError]), "On error",
              f"What it does when it fails; {row.on_error.value} by default.", row.on_error.value),
        Field("time_limit_s", Number(facts={"min": "0", "max": "600", "placeholder": f"{limit:g}"}), "Time limit",
              f"Seconds that one check may take; {limit:g} by default.", limit),
    ]  # fmt: skip
    if kind.family in (Family.PATTERN, Family.LISTED):
        words = "Its INSTANT and FAST rules are sent to clients in the signed bundle."
        fields.append(Field("client", Check(), "Client", words, False))
    return Group(tuple(fields))


def sheet(document: Mapping[str, object], problems: Mapping[str, str] | None = None) -> Sheet:
    """The form for a document, filled in, each problem at its field."""
    head, _ = HEAD.nodes(TOP, document)
    entries = document.get("guardrails")
    listed = list(entries) if isinstance(entries, list | tuple) else []
    cards = [_card(LIST.item(str(i), i), entry) for i, entry in enumerate(listed)]
    nodes = [*head, *(node for card in cards for node in card.nodes)]
    return Sheet(head, cards, place_problems(nodes, problems or {}))


def read(form: Reading) -> dict[str, object]:
    """The document that a posted form means."""
    form.names[""] = TOP.name
    document = HEAD.read(TOP, form)
    assert isinstance(document, dict)
    form.note(LIST)
    document["guardrails"] = read_items(LIST, form, lambda place: _guardrail(place, form))
    return document


def blank_cards() -> list[Card]:
    """An empty card for each kind."""
    return [_card(Place(NEW), {"kind": name}) for name in all_kinds()]


def blank_items() -> Iterator[Node]:
    """An empty item for each list that a kind has."""
    for name, kind in all_kinds().items():
        yield from group_of(kind.Config).blanks(Place(NEW).of_kind(name))


def _card(at: Place, entry: object) -> Card:
    given = entry if isinstance(entry, Mapping) else {}
    kind: type[Kind[Config]] | None = all_kinds().get(str(given.get("kind", "")))
    problem = Node(at, "none")
    if kind is None:
        raw = Json().view(at, entry).value
        return Card(at, str(given.get("kind", "")), False, problem=problem, raw=raw)
    performance = kind.get_performance_characteristics()
    config = group_of(kind.Config).view(at.child("config").of_kind(kind.name), _parameters(given, kind))
    return Card(
        place=at,
        kind=kind.name,
        known=True,
        about=kind.description,
        performance=performance.performance_class.value,
        checkpoint=performance.checkpoint.value,
        envelope=envelope_of(kind.name).nodes(at, given)[0],
        config=config,
        problem=problem,
    )


def _parameters(entry: Mapping[str, object], kind: type[Kind[Config]]) -> object:
    """A kind's parameters, under ``config`` or flat."""
    return entry.get("config", {key: value for key, value in entry.items() if key in kind.Config.model_fields})


def _guardrail(at: Place, form: Reading) -> dict[str, object]:
    kind_name = form.one(at.child("kind").name)
    kind = all_kinds().get(kind_name)
    if kind is None:
        # A file's unknown kind has no fields; what the file said goes round as it is.
        raw = Json().read(at.child("raw"), form)
        return raw if isinstance(raw, dict) else {"kind": kind_name, **({} if raw is LEFT_OUT else {"config": raw})}
    envelope = envelope_of(kind_name).read(at, form)
    assert isinstance(envelope, dict)
    inside = at.child("config")
    return {**envelope, "kind": kind_name, "config": group_of(kind.Config).read(inside, form)}


def _choice(words: list[str]) -> Choice:
    return Choice({word: word for word in words})
