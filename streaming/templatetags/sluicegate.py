"""Filters for text that came from a model or a visitor.

Exists so that no template decides by itself how such text becomes HTML. Protects the rule that what is shown reads
back as exactly the characters that were released.
"""

from __future__ import annotations

from django import template
from django.utils.html import format_html
from django.utils.safestring import SafeString

from streaming.fragments import visible as exactly

register = template.Library()


@register.filter
def visible(text: str) -> SafeString:
    """``text`` as HTML, character by character."""
    return exactly(text)


@register.filter
def chip(label: str) -> SafeString:
    """A placeholder as the inside of a chip: brackets stay in the text (for copying) and out of sight."""
    if (inside := bare(label)) != label:
        return format_html('<span class="bracket">[</span>{}<span class="bracket">]</span>', exactly(inside))
    return exactly(label)


@register.filter
def bare(label: str) -> str:
    """A placeholder without its brackets: what a screen reader says of a chip."""
    return label[1:-1] if len(label) > 2 and label[0] == "[" and label[-1] == "]" else label
