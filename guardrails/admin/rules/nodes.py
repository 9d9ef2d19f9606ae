"""What a template needs to draw a field, and where a field stands: in the form, in the document, in the schema.

Protects the rule that a refusal is shown at the field that it is about: every node knows its path in the document.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class Place:
    """``name``: of the form field. ``path``: in the policy document, as refusals name it. ``key``: in the schema."""

    name: str
    path: str = ""
    key: str = ""

    def child(self, key: str) -> Place:
        """A key of the object that stands here."""
        path = f"{self.path}.{key}" if self.path else key
        return Place(f"{self.name}.{key}", path, f"{self.key}.{key}" if self.key else key)

    def item(self, token: str, index: int) -> Place:
        """An item of the list that stands here; the token is only a name, the order of the tokens is the order."""
        return Place(f"{self.name}.{token}", f"{self.path}[{index}]", self.key)

    def of_kind(self, kind: str) -> Place:
        """The same place, its schema being this kind's."""
        return replace(self, key=kind)


@dataclass(slots=True)
class Option:
    """An entry of a choice."""

    value: str
    label: str
    selected: bool = False


@dataclass(slots=True)
class Node:
    """One field as it is drawn. ``widget`` names the part of the template; ``problem`` is why it was refused."""

    place: Place
    widget: str
    label: str = ""
    help: str = ""
    value: str = ""
    checked: bool = False
    long: bool = False
    options: list[Option] = field(default_factory=list)
    children: list[Node] = field(default_factory=list)
    more: list[Node] = field(default_factory=list)
    items: list[Node] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    problem: str = ""

    @property
    def name(self) -> str:
        """Name of the form field."""
        return self.place.name

    @property
    def token(self) -> str:
        """Name of an item within its list."""
        return self.place.name.rpartition(".")[2]

    @property
    def list_name(self) -> str:
        """Name of the list that an item stands in."""
        return self.place.name.rpartition(".")[0]

    @property
    def troubled(self) -> bool:
        """Is a problem shown here or inside?"""
        return any(node.problem for node in self.walk())

    @property
    def more_troubled(self) -> bool:
        """Is a problem among the settings that are folded away?"""
        return any(node.troubled for node in self.more)

    def walk(self) -> Iterator[Node]:
        """This node and all inside."""
        yield self
        for node in (*self.children, *self.more, *self.items):
            yield from node.walk()


def home_of(path: str, known: Mapping[str, object]) -> str:
    """The known path that a refused path belongs to: itself, or the nearest thing around it; else the empty path."""
    while path and path not in known:
        dot, bracket = path.rfind("."), path.rfind("[")
        path = path[: max(dot, bracket, 0)]
    return path


def place_problems(nodes: Iterable[Node], problems: Mapping[str, str]) -> list[str]:
    """Write each problem to the node that it is about; what belongs to none comes back."""
    at = {node.place.path: node for top in nodes for node in top.walk()}
    homeless: list[str] = []
    for path, message in problems.items():
        home = home_of(path, at)
        if not home:
            homeless.append(f"{path}: {message}" if path else message)
            continue
        node = at[home]
        words = message if home == path else f"{path.removeprefix(home).lstrip('.')}: {message}"
        node.problem = f"{node.problem} {words}".strip()
    return homeless
