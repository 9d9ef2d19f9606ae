"""A rule's second form: the same value right behind a character that is written by its number or its letter.

Exists because texts hold other texts: an address within a query (``?q=%20203.0.113.9``), a string within code or JSON
(``"\\n203.0.113.9"``). Protects the rule that a value is found there too: what stands before it then is a digit or a
letter to look at, and yet the end of something else. The hit is the value alone, so that what is left of the address
or the string still is one.
"""

from __future__ import annotations

import re
from dataclasses import replace

from guardrails.patterns.rule import Rule
from guardrails.patterns.syntax import MAX_LENGTH

PERCENT = "%[0-9A-Fa-f]{2}"
"""A character as addresses write it."""
BACKSLASH = r"\\(?:[bfnrt]|u[0-9A-Fa-f]{4})"
"""A character as JSON and program code write it, where the last sign of that is a letter or a digit."""
ESCAPE = f"(?:{PERCENT}|{BACKSLASH})"
BEGINS = ("%", "\\")
"""What an escape begins with, and so the second form; and nothing else does."""


_BORDER = re.compile(r"(\\[^b]|\[\^?\]?(?:[^\]\\]|\\.)*\])|\\b", re.DOTALL)
"""A word's border. Another escape (of a backslash before a ``b``, say) and a set of characters are taken as a whole."""


def found_behind(rule: Rule, escape: str = ESCAPE) -> Rule:
    """The rule with its second form, behind ``escape``; as it is where both forms are too long for one pattern.

    A rule whose secret is a group must have exactly one in each of its branches, and no groups within.
    """
    pattern = _BORDER.sub(lambda found: found[1] or "", rule.pattern)
    if rule.secret_group is None:
        second = replace(rule, pattern=f"({rule.pattern})", escaped=f"{escape}({pattern})", secret_group=-1)
    else:
        second = replace(rule, escaped=f"{escape}(?:{pattern})", secret_group=-1)
    return second if len(second.pattern) + 1 + len(second.escaped) <= MAX_LENGTH else rule
