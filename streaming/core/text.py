"""Text that can be stored, sent and matched: no NUL, no lone surrogates.

Exists because JSON can spell both (``"\\u0000"``, ``"\\ud800"``) and neither can be stored or encoded. Protects the
rule for bad input: from a client they are an error that names the field; from a model they become U+FFFD, and the
two halves of one character that arrive in two chunks are joined first.
"""

from __future__ import annotations

REPLACEMENT = "\ufffd"


def unusable(text: str) -> str | None:
    """Why ``text`` cannot be accepted from a client (a clause for an error message), or None when it can."""
    if "\x00" in text:
        return "contains a NUL character"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"contains a lone surrogate (U+{ord(text[error.start]):04X}) at position {error.start}"
    return None


class Mender:
    """Makes a model's deltas usable, one delta after the other; holds back at most one half of a surrogate pair."""

    __slots__ = ("_half",)

    def __init__(self) -> None:
        self._half = ""

    def feed(self, text: str) -> str:
        """The usable text of this delta."""
        text = self._half + text
        self._half = ""
        if text and "\ud800" <= text[-1] <= "\udbff":
            text, self._half = text[:-1], text[-1]
        return mend(text)

    def finish(self) -> str:
        """What was held back, mended, when the stream ends."""
        rest, self._half = self._half, ""
        return mend(rest)


def mend(text: str) -> str:
    """A whole text made usable."""
    try:
        text.encode()
    except UnicodeEncodeError:
        # A round trip through UTF-16 joins pairs; what is still alone after it cannot be saved.
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text.replace("\x00", REPLACEMENT)
