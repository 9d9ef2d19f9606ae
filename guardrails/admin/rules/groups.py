"""Fields made of fields: an object, a switch with options, a list of objects, lists by name.

An item of a list has a token in its field names, and the list sends its tokens in order; so adding, removing and moving
items renames nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from operator import itemgetter

from guardrails.admin.rules.lines import from_lines, to_lines
from guardrails.admin.rules.nodes import Node, Option, Place
from guardrails.admin.rules.reading import Reading
from guardrails.admin.rules.widgets import LEFT_OUT, Widget

NEW = "NEW-ITEM"
"""Stands in a blank item where the script puts the item's name."""
_MANY = 8


@dataclass(frozen=True)
class Field:
    """A key of an object: its widget, its words, its default as JSON.

    ``rank``: where it stands in a large item; None: behind the others, folded away while it is at its default.
    """

    key: str
    widget: Widget
    label: str
    help: str
    default: object = None
    rank: int | None = None


@dataclass(frozen=True)
class Group(Widget):
    """An object with known keys."""

    fields: tuple[Field, ...]

    def nodes(self, at: Place, value: object, *, fold: bool = False) -> tuple[list[Node], list[Node]]:
        """The fields, and if ``fold`` those apart that stand at their default and that few authors look for."""
        given = value if isinstance(value, Mapping) else {}
        shown: list[tuple[int, Node]] = []
        folded: list[Node] = []
        for one in self.fields:
            current = given.get(one.key, one.default)
            node = one.widget.view(at.child(one.key), current)
            node.label, node.help = one.label, one.help
            if fold and one.rank is None and current == one.default:
                folded.append(node)
            else:
                shown.append((one.rank if fold and one.rank is not None else len(self.fields), node))
        return [node for _, node in sorted(shown, key=itemgetter(0))], folded

    def view(self, at: Place, value: object) -> Node:
        """The fields together."""
        return Node(at, "group", children=self.nodes(at, value)[0])

    def entry(self, at: Place, value: object) -> Node:
        """The fields as an item of a list, the unusual ones of a large item folded away."""
        shown, folded = self.nodes(at, value, fold=len(self.fields) > _MANY)
        return Node(at, "item", children=shown, more=folded)

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
        items = [self.item.entry(at.item(str(i), i), one) for i, one in enumerate(given)]
        return Node(at, "items", items=items)

    def read(self, at: Place, form: Reading) -> object:
        """The items in the order of their tokens."""
        return read_items(at, form, lambda place: self.item.read(place, form))

    def blanks(self, at: Place) -> Iterator[Node]:
        """An empty item, and what is inside it."""
        yield self.item.entry(Place(NEW, "", at.key), {})
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
