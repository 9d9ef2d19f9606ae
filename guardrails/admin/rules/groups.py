"""Fields made of fields: an object, a switch with options, a list of objects, lists by name.

An item of a list has a token in its field names, and the list sends its tokens in order; so adding, removing and moving
items renames nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from guardrails.admin.rules.lines import from_lines, to_lines
from guardrails.admin.rules.nodes import Node, Option, Place
from guardrails.admin.rules.reading import Reading
from guardrails.admin.rules.widgets import LEFT_OUT, Widget

NEW = "NEW-ITEM"
"""Stands in a blank item where the script puts the item's name."""
_MANY = 8


@dataclass(frozen=True)
class Field:
    """A key of an object: its widget, its words, its default as JSON. ``first``: never folded away."""

    key: str
    widget: Widget
    label: str
    help: str
    default: object = None
    first: bool = True


@dataclass(frozen=True)
class Group(Widget):
    """An object with known keys."""

    fields: tuple[Field, ...]

    def nodes(self, at: Place, value: object) -> tuple[list[Node], list[Node]]:
        """The fields, and those of a large object that stand at their default and can be folded away."""
        given = value if isinstance(value, Mapping) else {}
        shown: list[Node] = []
        folded: list[Node] = []
        for one in self.fields:
            current = given.get(one.key, one.default)
            node = one.widget.view(at.child(one.key), current)
            node.label, node.help = one.label, one.help
            plain = len(self.fields) <= _MANY or one.first or current != one.default
            (shown if plain else folded).append(node)
        return shown, folded

    def view(self, at: Place, value: object) -> Node:
        """The fields together."""
        shown, folded = self.nodes(at, value)
        return Node(at, "group", children=shown, more=folded)

    def read(self, at: Place, form: Reading) -> object:
        """The object."""
        form.note(at)
        out: dict[str, object] = {}
        for one in self.fields:
            inside = at.child(one.key)
            form.note(inside)
            value = one.widget.read(inside, form)
            if value is not LEFT_OUT:
                out[one.key] = value
        return out

    def blanks(self, at: Place) -> Iterator[Node]:
        """Of the fields."""
        for one in self.fields:
            yield from one.widget.blanks(at.child(one.key))


@dataclass(frozen=True)
class Switch(Widget):
    """False, true, or an object of options."""

    options: Group

    def view(self, at: Place, value: object) -> Node:
        """A choice of three, and the options."""
        state = "options" if isinstance(value, Mapping) else "yes" if value is True else "no"
        words = {"no": "no", "yes": "yes", "options": "yes, with the options below"}
        node = self.options.view(at, value)
        node.widget = "switch"
        node.options = [Option(word, label, word == state) for word, label in words.items()]
        return node

    def read(self, at: Place, form: Reading) -> object:
        """What was chosen."""
        state = form.one(at.name)
        return self.options.read(at, form) if state == "options" else state == "yes"

    def blanks(self, at: Place) -> Iterator[Node]:
        """Of the options."""
        return self.options.blanks(at)


@dataclass(frozen=True)
class Items(Widget):
    """A list of objects."""

    item: Group

    def view(self, at: Place, value: object) -> Node:
        """The items, each with its token."""
        given = value if isinstance(value, list) else []
        items = [self.item.view(at.item(str(i), i), one) for i, one in enumerate(given)]
        for node in items:
            node.widget = "item"
        return Node(at, "items", items=items)

    def read(self, at: Place, form: Reading) -> object:
        """The items in the order of their tokens."""
        return read_items(at, form, lambda place: self.item.read(place, form))

    def blanks(self, at: Place) -> Iterator[Node]:
        """An empty item, and what is inside it."""
        node = self.item.view(Place(NEW, "", at.key), {})
        node.widget = "item"
        yield node
        yield from self.item.blanks(at)


@dataclass(frozen=True)
class Named(Widget):
    """Lists of strings, each under a name."""

    def view(self, at: Place, value: object) -> Node:
        """A name and its lines, for each."""
        given = value if isinstance(value, Mapping) else {}
        items = []
        for i, (name, texts) in enumerate(given.items()):
            place = Place(f"{at.name}.{i}", f"{at.path}.{name}", at.key)
            items.append(_entry(place, str(name), texts))
        return Node(at, "items", items=items)

    def read(self, at: Place, form: Reading) -> object:
        """The lists by name. A name that is used twice is refused, and both are kept."""
        out: dict[str, object] = {}
        for token in form.all(at.name):
            base = f"{at.name}.{token}"
            name = form.one(f"{base}.name")
            if name in out:
                again = next(f"{name} ({n})" for n in range(2, len(out) + 3) if f"{name} ({n})" not in out)
                form.problems[f"{at.path}.{again}"] = f"the name {name!r} is used twice"
                name = again
            form.note(Place(base, f"{at.path}.{name}"))
            out[name] = from_lines(form.one(f"{base}.texts"))
        return out

    def blanks(self, at: Place) -> Iterator[Node]:
        """An empty list without a name."""
        yield _entry(Place(NEW, "", at.key), "", [])


def read_items(at: Place, form: Reading, read: Callable[[Place], object]) -> list[object]:
    """Read what stands under each token of a list."""
    out: list[object] = []
    for i, token in enumerate(form.all(at.name)):
        place = at.item(token, i)
        form.note(place)
        out.append(read(place))
    return out


def _entry(place: Place, name: str, texts: object) -> Node:
    lines = to_lines(map(str, texts)) if isinstance(texts, list | tuple) else str(texts)
    children = [
        Node(Place(f"{place.name}.name"), "text", label="Name", value=name),
        Node(Place(f"{place.name}.texts"), "lines", label="Words and phrases", value=lines),
    ]
    return Node(place, "item", children=children)
