"""Filters for the audit pages.

Exists because an auditor has to see what was hidden in a text: characters that take no place, or turn the direction of
what follows. Protects the rule that such a character is shown by its name and does nothing.
"""

from __future__ import annotations

import re
import unicodedata

from django import template
from django.utils.html import escape
from django.utils.safestring import SafeString, mark_safe

register = template.Library()
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e"
    "\u2060-\u206f\u3164\ufeff\uffa0\ufff0-\ufffb\ud800-\udfff\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)


@register.filter
def laid_open(text: object) -> SafeString:
    """``text`` as HTML; what cannot be seen, or turns the writing round, as its code point with its name."""
    return mark_safe(_UNSEEN.sub(_named, escape(str(text))))  # noqa: S308 - escaped in the same expression


def _named(found: re.Match[str]) -> str:
    letter = found[0]
    name = unicodedata.name(letter, "control character").lower()
    return f'<span class="unseen-char" title="{name}">U+{ord(letter):04X}</span>'
