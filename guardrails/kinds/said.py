"""What a check may pass on of words that it did not write itself: names of categories, and faults of an answer's form.

Exists because whoever judges a text has read it, and may repeat it anywhere in its answer, spelled in any way. Protects
the rule that no name carries withheld text to readers, rows or logs: a category is one that was declared or one that
everybody knows, and a fault of form names our own fields alone.
"""

from __future__ import annotations

from collections.abc import Collection

from pydantic import ValidationError

PUBLISHED = frozenset({
    "harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent", "self-harm",
    "self-harm/instructions", "self-harm/intent", "sexual", "sexual/minors", "violence", "violence/graphic",
})  # fmt: skip
"""The categories that OpenAI published for its moderation endpoint."""
KNOWN = PUBLISHED | {
    "abuse", "advice", "bias", "bullying", "child safety", "copyright", "crime", "dangerous", "deception",
    "defamation", "discrimination", "disclosure", "drugs", "extremism", "financial advice", "fraud", "gambling", "harm",
    "illegal", "insult", "jailbreak", "legal", "legal advice", "malware", "manipulation", "medical advice",
    "misinformation", "obscenity", "off topic", "other", "personal data", "phishing", "politics", "privacy",
    "profanity", "prompt injection",
    "racism", "religion", "scam", "secrets", "security", "sexism", "spam", "suicide", "terrorism", "threat", "toxicity",
    "unsafe", "weapons",
}  # fmt: skip
"""Categories that need no declaration: a fixed list, so that which of them is named says next to nothing of a text."""


def category_of(said: str, declared: Collection[str] = ()) -> str:
    """The category as it may be shown and stored; empty where it is neither declared nor known.

    Of a known one case does not matter, nor whether blanks, hyphens or underscores part its words.
    """
    if said in declared:
        return said
    return _KNOWN.get(_compared(said), "")


def _compared(name: str) -> str:
    return name.casefold().replace("_", " ").replace("-", " ") if len(name) <= 40 else ""


_KNOWN = {_compared(name): name for name in sorted(KNOWN)}


def fault_of(error: ValidationError, *fields: str) -> str:
    """Where an answer is not of its form, and why, in our words: keys that the answer made up are not named."""
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    known = [str(part) if isinstance(part, int) or part in fields else "(another key)" for part in first["loc"]]
    return f"{'.'.join(known) or 'the answer'}: {first['msg']}"
