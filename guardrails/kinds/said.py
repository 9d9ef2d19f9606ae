"""What a check may pass on of words that it did not write itself: names of categories, and faults of an answer's form.

Exists because whoever judges a text has read it, and may repeat it anywhere in its answer. Protects the rule that no
name carries withheld text to readers, rows or logs: a category that nobody declared is kept only if it is a short name
of letters without a word of the judged text, and a fault of form names our own fields alone.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from pydantic import ValidationError

NAME_CHARS = 40
"""The longest category that is kept without having been declared."""
_NAME = re.compile(r"[A-Za-z]+(?:[ _/-][A-Za-z]+)*")
_WORD = re.compile(r"[a-z]{3,}")
_OTHER = re.compile(r"[^a-z]+")


def category_of(said: str, text: str, declared: Collection[str] = ()) -> str:
    """The category as it may be shown and stored; empty when it might be a piece of the judged ``text``."""
    if said in declared:
        return said
    if len(said) > NAME_CHARS or not _NAME.fullmatch(said):
        return ""
    name, judged = said.lower(), text.lower()
    if any(word in judged for word in _WORD.findall(name)) or _OTHER.sub("", name) in _OTHER.sub("", judged):
        return ""
    return said


def fault_of(error: ValidationError, *fields: str) -> str:
    """Where an answer is not of its form, and why, in our words: keys that the answer made up are not named."""
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    known = [str(part) if isinstance(part, int) or part in fields else "(another key)" for part in first["loc"]]
    return f"{'.'.join(known) or 'the answer'}: {first['msg']}"
