"""A page's form fields, read as a browser would send them; templates' contents are no part of a form."""

from __future__ import annotations

from html.parser import HTMLParser


class Fields(HTMLParser):
    """``pairs``: names and values in the page's order. ``text``: all that is written on it, attributes apart."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.pairs: list[tuple[str, str]] = []
        self.tags: list[str] = []
        self._inert = 0
        self._select = ""
        self._area: tuple[str, list[str]] | None = None
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attrs}
        self.tags.append(tag)
        if tag == "template":
            self._inert += 1
        if self._inert:
            return
        if tag == "input" and "name" in given and given.get("type") not in ("submit", "button"):
            if given.get("type") != "checkbox" or "checked" in given:
                self.pairs.append((given["name"], given.get("value", "")))
        elif tag == "select":
            self._select = given.get("name", "")
        elif tag == "option" and self._select and "selected" in given:
            self.pairs.append((self._select, given["value"]))
        elif tag == "textarea":
            self._area = (given["name"], [])

    def handle_endtag(self, tag: str) -> None:
        if tag == "template":
            self._inert -= 1
        elif tag == "select":
            self._select = ""
        elif tag == "textarea" and self._area:
            name, texts = self._area
            text = "".join(texts).removeprefix("\n")
            self.pairs.append((name, text.replace("\n", "\r\n")))
            self._area = None

    def handle_data(self, data: str) -> None:
        if self._area:
            self._area[1].append(data)

    def data(self) -> dict[str, list[str]]:
        """What a browser would post."""
        out: dict[str, list[str]] = {}
        for name, value in self.pairs:
            out.setdefault(name, []).append(value)
        return out
