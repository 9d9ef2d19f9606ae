"""Pictures, sound and files of a request, and of parts of an answer: what no guardrail can read, and nothing else.

Exists because both say their bytes as text. Protects two rules. Only bytes pass unseen: what stands where a part of a
message says that it is a picture, a sound or a file, and is base64 indeed, too long for a key or a number or a
``data:`` address. A text source, and fields of the same names anywhere else (arguments, results, metadata), are text
however they are written. And no part with bytes in it passes for text because nobody here knows its type, or because it
says none. Pure.
"""

from __future__ import annotations

import binascii
import re

from streaming.gateway.names import HOLDERS
from streaming.gateway.walker import Json

Path = tuple[str | int, ...]

_MEDIA = {
    "image_url": "image", "image": "image", "input_image": "image", "input_audio": "audio", "audio": "audio",
    "file": "file", "input_file": "file", "container_upload": "file", "video_url": "video", "video": "video",
    "audio_url": "audio", "image_embeds": "image", "audio_embeds": "audio", "video_embeds": "video",
    "input_video": "video", "document_url": "document", "image_file": "image",
}  # fmt: skip
"""What a part is, by its type, or by a field of it where it says no type that is known."""
_BYTES = frozenset({"data", "url", "file_data"}) | HOLDERS - {"source", "input_audio", "file"}
"""Fields that have the bytes themselves."""
_TEXTS = frozenset(
    {"text", "input_text", "output_text", "refusal", "thinking", "redacted_thinking", "search_result", "document",
     "tool_call", "compaction"}
)  # fmt: skip
"""Parts that are words, with what their vendor has sealed in them; calls and results are such too."""
_RESULTS = ("tool_use", "_result")
LONG = 256
"""Characters of base64 that are more than a name."""
_LINE = 60
"""Characters without a blank that are no word; base64 has lines of 64 or 76, or none."""
_DATA_URL = re.compile(r"data:[a-z]+/[a-z][a-z0-9.+-]{0,80};base64,", re.IGNORECASE)


class Media:
    """What is found of it on a walk through one request. ``kinds``: of what sort; ``apart``: paths of the bytes."""

    def __init__(self) -> None:
        self.kinds: list[str] = []
        self.apart: set[Path] = set()
        self._parts: set[Path] = set()

    def see(self, fields: Json, path: Path) -> bool:
        """Note what this object is; True where fields of it may be bytes."""
        kind, source = fields.get("type"), fields.get("source")
        said = source.get("type") if isinstance(source, dict) else None
        if _is_part(path):
            if kind == "document" and isinstance(source, dict) and said not in ("text", "content"):
                self._note("document", path)
            elif (what := sort_of(fields)) is not None:
                self._note(what, path)
        elif not path and isinstance(modalities := fields.get("modalities"), list) and "audio" in modalities:
            self.kinds.append("audio")
        if kind == "text":
            return False
        return path in self._parts or (path[:-1] in self._parts and path[-1] in HOLDERS)

    def _note(self, kind: str, path: Path) -> None:
        self.kinds.append(kind)
        self._parts.add(path)

    def passes(self, name: str, value: object, path: Path) -> bool:
        """Whether a field of an object that ``see`` was true of is bytes; it passes then. ``path``: the field's."""
        if name not in _BYTES or not isinstance(value, str) or not _unseen(value):
            return False
        self.apart.add(path)
        return True

    def picture(self, value: object, path: Path) -> bool:
        """The same of an entry of a list: one in a message's ``images`` is a picture."""
        if len(path) != 4 or path[0] != "messages" or path[2] != "images":
            return False
        self.kinds.append("image")
        if not isinstance(value, str) or not _unseen(value):
            return False
        self.apart.add(path)
        return True


def sort_of(part: Json) -> str | None:
    """What sort of media a part of a content is, by its type, its fields, or the bytes in it; None: it is none."""
    kind = part.get("type")
    if isinstance(kind, str) and kind in _MEDIA:
        return _MEDIA[kind]
    if isinstance(kind, str) and (kind in _TEXTS or kind.startswith("reasoning") or kind.endswith(_RESULTS)):
        return next((_MEDIA[name] for name in _MEDIA if "_" in name and part.get(name)), None)
    named = next((_MEDIA[name] for name in _MEDIA if part.get(name)), None)
    return named or ("file" if _has_bytes(part, 0) else None)


def without_media(part: Json, depth: int = 0) -> Json:
    """A part of an answer with an empty text in the place of each part of it that is media; of itself, if it is.

    A document stays one, of an empty text: results of tools have a document there or nothing.
    """
    source, kind = part.get("source"), part.get("type")
    if kind == "document" and isinstance(source, dict) and source.get("type") not in ("text", "content"):
        part = {**part, "source": {"type": "text", "media_type": "text/plain", "data": ""}}
    if part.get("file_type") in ("image", "pdf") and isinstance(part.get("content"), str):  # one that was looked into
        part = {**part, "content": ""}
    part = {name: _within(value, depth) if name in ("content", "source") else value for name, value in part.items()}
    return part if sort_of(part) is None and depth < _DEEPEST else {"type": "text", "text": ""}


def _within(value: object, depth: int) -> object:
    if depth >= _DEEPEST:
        return None
    if isinstance(value, list):
        return [without_media(item, depth + 1) if isinstance(item, dict) else item for item in value]
    return without_media(value, depth + 1) if isinstance(value, dict) else value


def _has_bytes(value: object, depth: int) -> bool:
    """Whether a string somewhere in it is an address with its bytes, or long base64."""
    match value:
        case str(text):
            if text[:5].lower() == "data:" and ";base64," in text[:300].lower():
                return True
            return len(text) >= LONG and max(map(len, text.split()), default=0) >= _LINE and are_bytes(text)
        case dict(fields) if depth < _DEEP:
            return any(_has_bytes(part, depth + 1) for part in fields.values())
        case list(items) if depth < _DEEP:
            return any(_has_bytes(part, depth + 1) for part in items)
    return False


_DEEP, _DEEPEST = 8, 40


def _is_part(path: Path) -> bool:
    """Whether a part of a message's content stands here; what looks like one in arguments or in JSON is text."""
    if len(path) < 3 or path[0] != "messages":
        return False
    at = 2
    while at < len(path):
        if path[at] == "source":  # of a document that is a list of parts
            at += 1
        name, *number = path[at : at + 2] or ("",)
        if name == "content" and not number:  # the one part, without a list
            return True
        if name != "content" or not number or not isinstance(number[0], int):
            return False
        at += 2
    return True


def _unseen(text: str) -> bool:
    """Whether a text passes for the bytes of a picture: a number of a card is base64 as well, and so is a token."""
    return (len(text) >= LONG or _DATA_URL.match(text) is not None) and are_bytes(text)


def are_bytes(text: str) -> bool:
    """Whether a text is base64 that decodes, by itself or as a ``data:`` address of the common form."""
    head = _DATA_URL.match(text)
    said = "".join(text[head.end() if head else 0 :].split())
    if not said or not said.isascii():
        return False
    said = said.translate(_STANDARD).rstrip("=")
    try:
        binascii.a2b_base64(said + "=" * (-len(said) % 4), strict_mode=True)
    except binascii.Error:
        return False
    return True


_STANDARD = str.maketrans("-_", "+/")
