"""What a rule is before it is compiled: a pattern, where its secret stands, and what else must hold.

Kinds produce ``Rule`` objects; ``guardrails.patterns.compiler`` turns them into automaton positions. Protects the
promise that a rule means the same everywhere: everything that narrows a match is named here, as data or as a
validator on candidates, and nothing narrows it later.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

DEFAULT_CAP = 512
"""Characters an open repeat (``{n,}``, ``*``, ``+``) may take (design: gate.md, "Bounded")."""

PEM_CAP = 16_384
"""The cap for PEM blocks: a 4096-bit RSA key is about 3,300 characters, chains and annotations are longer."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """What a validator judges: the secret's text, the whole match, and the match with its left context.

    All three are *folded* text if the rule folds. ``context`` is the match preceded by up to the trimmed width of
    the characters before it (allow-lists are judged on that).
    """

    secret: str
    match: str
    context: str


Validator = Callable[[Candidate], bool]


@dataclass(frozen=True, slots=True)
class Rule:
    """One pattern of a guardrail.

    ``secret_group``: None or 0, the span is the match; n, the span is capture group n; -1, the first non-empty
    group (imported rules without a declared one).
    ``fold``: apply the folding table to the text before matching; None means "yes, unless the pattern names a
    non-ASCII character".
    ``not_after`` / ``not_before``: the match is void where the (folded) character before / after it is in this
    set, written as the inside of a character class, e.g. ``"0-9"``; ``"\\w"`` means ASCII word characters and the
    special value ``"unicode-word"`` the word characters of the folding table.
    ``escaped``: a second form of the pattern, beginning with ``%`` or a backslash, to which ``not_after`` does not
    apply: for values right behind a character that is written so (``behind.py``). Its groups count behind those of
    ``pattern``.
    ``cap``: characters an open repeat may take. ``validator``: judges candidates, see gate.md, "Validators".
    ``must_match`` / ``must_not_match``: texts that publication runs.
    """

    id: str
    pattern: str
    ignore_case: bool = False
    secret_group: int | None = None
    fold: bool | None = None
    cap: int = DEFAULT_CAP
    not_after: str = ""
    not_before: str = ""
    escaped: str = ""
    validator: Validator | None = None
    placeholder: str = "[REDACTED]"
    category: str = ""
    score: float = 1.0
    client: bool = False
    must_match: tuple[str, ...] = field(default_factory=tuple)
    must_not_match: tuple[str, ...] = field(default_factory=tuple)
