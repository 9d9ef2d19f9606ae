"""Placeholders: what goes upstream instead of a value, and the way back for this request alone.

Exists because a model can work with a name for a value as well as with the value. Protects the rule that what a user
typed reaches no vendor, and that nobody can make the value come back who did not send it: a placeholder carries a tag
of its conversation and a checksum, both its tag and its name are HMACs under a key of this installation, this caller
and this conversation, and the restore map holds the values of one request, nothing else. Nothing is stored.

A placeholder is 31 characters, ``MASK-MAIL-BCDFG-HJKLM-NPQRS-TVW``: what sort of value it is, the conversation's tag
(5), the value's name (10), the checksum of all before it (3). It has no digits and no vowels behind the sort, so that
no rule for numbers, keys or words finds anything in it. Models change the case and the dashes of such things; the
grammar lists what is taken for a dash, any case is read, and whatever is written otherwise is plain text.

Text that comes in and has that form is masked like a value: a forged placeholder goes upstream under a name of ours
and comes back as what it was.

How a front uses it, once for every request::

    masker = Masker(mask_keys(), caller=api_key_id, conversation=conversation_id)  # streaming/mask_keys.py
    # every text of the request, checked by the policy; ``checked`` is a streaming.checks.CheckedText
    upstream_text = masker.mask(text, checked.findings, checked.redactions, masking=masking_guardrails(policy))
    # strings that no guardrail looked at still have to be escaped; JSON within a string whose own strings went through
    # ``mask`` one by one is given with ``again=True``
    upstream_text = masker.mask(text)
    # then, when all of them have been through, what stands somewhere without the words that made a rule find it
    upstream_text = masker.swept(upstream_text)
    # all texts go through before the first answer is read; then, for each channel of the answer, behind its gate:
    restorer = Restorer(masker)  # text, thinking, refusals: streaming/core/restore.py
    channel = JsonChannel(masker if name in policy.restore_in_tools else None)  # arguments: streaming/core/json_text.py

Pure: no clock, no settings, no Django.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from guardrails.findings import HIDING, Action, Finding, Mode
from guardrails.known_values import KnownValues
from guardrails.policy import Policy, compile_policy

SORTS = {
    "ssn": "SSNO",
    "credit_card": "CARD",
    "email": "MAIL",
    "phone": "PHON",
    "ip_address": "IPAD",
    "iban": "IBAN",
    "passport": "PASS",
    "driver_license": "DRIV",
    "bank_account": "ACCT",
    "date_of_birth": "BORN",
    "": "DATA",
}
"""What a placeholder says of its value, by the category of the finding; the last one for all others."""

ESCAPED = "TEXT"
"""The sort of what only looked like a placeholder."""

LETTERS = "BCDFGHJKLMNPQRSTVWXZ"
"""Digits of tags, names and checksums: no vowels, so that they are no words, and no numerals."""

DASHES = "-_ \u00a0\u2010\u2011\u2013"
"""What may stand for a dash, one of them and no other: models write hyphens in all of these ways."""

LENGTH = 31
"""Characters of a placeholder."""

_LETTER = "[" + LETTERS + LETTERS.lower() + "]"
_DASH = "[_ \u00a0\u2010\u2011\u2013-]"
_ANY_SORT = "|".join(
    "".join(f"[{letter}{letter.lower()}]" for letter in sort) for sort in sorted({*SORTS.values(), ESCAPED})
)
GRAMMAR = (
    f"[Mm][Aa][Ss][Kk]{_DASH}(?:{_ANY_SORT}){_DASH}{_LETTER}{{5}}{_DASH}{_LETTER}{{5}}{_DASH}{_LETTER}{{5}}"
    f"{_DASH}{_LETTER}{{3}}"
)
"""The grammar as one regular expression, the same for the gate and for whole texts."""

PLACEHOLDERS: Policy = compile_policy(
    {
        "policy": "placeholders",
        "description": "The grammar of placeholders, as one rule: what may still become one is held like any match.",
        "guardrails": [
            {
                "name": "placeholders",
                "kind": "regex",
                "action": "redact",
                "config": {"rules": [{"id": "placeholder", "pattern": GRAMMAR, "fold": False}]},
            }
        ],
    }
)
"""The one static rule of which ``streaming.core.restore`` makes its gate."""

_SHAPED = re.compile(GRAMMAR)
_REDACTED = "redacted "
"""Before what stands for a value that was redacted, in the place of a sort."""
_LONGEST = 256
"""Characters of a value that was redacted and is looked for in other texts; more than that is no value, but a text."""
_KEY_LABEL = b"sluicegate mask 1"


@dataclass(frozen=True, slots=True)
class _Region:
    """What is kept back of a text: a half-open range of code points, and how."""

    start: int
    end: int
    sort: str
    placeholder: str | None
    learned: bool = False
    """It was redacted, and is in other texts, too."""


def masking_guardrails(policy: Policy) -> frozenset[str]:
    """Names of the guardrails whose hits are masked: they decide, say ``mask``, and can say where their hit stands.

    A guardrail that judges sentences or answers hides what it judged; its ``mask`` stays what ``redact`` is.
    """
    return frozenset(g.name for g in policy.guardrails if g.decides and g.action is Action.MASK and g.rules)


def redacting_guardrails(policy: Policy) -> frozenset[str]:
    """Names of the guardrails whose hits are redacted, of those that decide and can say where their hit stands."""
    return frozenset(g.name for g in policy.guardrails if g.decides and g.action is Action.REDACT and g.rules)


def canonical(shaped: str) -> str:
    """The one spelling of a text that has the form of a placeholder."""
    return re.sub(_DASH, "-", shaped).upper()


def _letters(number: int, count: int) -> str:
    out = []
    for _ in range(count):
        number, digit = divmod(number, len(LETTERS))
        out.append(LETTERS[digit])
    return "".join(out)


def _checksum(head: str) -> str:
    return _letters(int.from_bytes(hashlib.sha256(head.encode()).digest()[:8], "big"), 3)


def well_formed(shaped: str) -> bool:
    """Has the text the form of a placeholder, and is its checksum right? Says nothing of whose it is."""
    if not _SHAPED.fullmatch(shaped):
        return False
    written = canonical(shaped)
    return _checksum(written[:-4]) == written[-3:]


class Masker:
    """The placeholders of one request, with the way back. Give every text of the request to ``mask``.

    ``keys``: secrets of this installation, the newest first; placeholders are made with the newest. An older one needs
    no remembering, because no placeholder outlives its request: the same texts make new ones under the new key.
    ``caller`` and ``conversation`` are part of the key: the same value has another placeholder elsewhere.
    Raises ``ValueError`` without a key of at least 16 bytes.
    """

    __slots__ = ("_key", "_known", "_made", "_redacted", "_values", "put_back", "tag")

    def __init__(self, keys: Sequence[bytes], *, caller: str, conversation: str) -> None:
        if not keys or len(keys[0]) < 16:
            raise ValueError("masking needs a key of at least 16 bytes")
        self._key = hmac.digest(keys[0], _parts(_KEY_LABEL, caller.encode(), conversation.encode()), "sha256")
        self.tag = _letters(self._number(b"tag"), 5)
        self._values: dict[str, str] = {}  # placeholder -> value, and back
        self._made: dict[str, str] = {}
        self._known, self._redacted = KnownValues(), KnownValues()
        self.put_back = 0
        """How often a value was put back; whoever does it counts here."""

    def __len__(self) -> int:
        """How many values have a placeholder by now."""
        return len(self._values)

    def __repr__(self) -> str:
        return f"Masker({len(self._values)} values)"

    def placeholder(self, value: str, category: str = "") -> str:
        """The placeholder of a value, entered in the restore map. The same value has the same one."""
        return self._enter(value, SORTS.get(category, SORTS[""]))

    def restored(self, shaped: str) -> str | None:
        """The value that a text stands for, or None: of another conversation or caller, forged, or mistyped."""
        written = canonical(shaped)
        return self._values.get(written) if well_formed(written) else None

    def mask(
        self,
        text: str,
        findings: Iterable[Finding] = (),
        redactions: Sequence[tuple[int, str]] = (),
        *,
        masking: frozenset[str] = frozenset(),
        redacting: frozenset[str] = frozenset(),
        again: bool = False,
    ) -> str:
        """The text as it may go upstream.

        ``findings`` are those of the policy's gate over the whole text, ``redactions`` what it showed instead, in text
        order (as in ``CheckedText``); ``masking`` names the guardrails whose hits are masked, those of all others stay
        redacted. What has the form of a placeholder is masked in any case. A text that was blocked must not be given.
        ``redacting`` names those of which ``swept`` redacts in other texts what they have found in this one.

        ``again``: the text is made of texts that were masked before (JSON within a string, say, whose strings were
        masked one by one), so that placeholders of this request are our own and stay.
        """
        out: list[str] = []
        at = 0
        for region in self._regions(text, findings, redactions, masking, redacting):
            if again and region.sort == ESCAPED and self.restored(text[region.start : region.end]) is not None:
                continue
            out.append(text[at : region.start])
            value = text[region.start : region.end]
            out.append(region.placeholder if region.placeholder is not None else self._enter(value, region.sort))
            if region.learned and len(value) <= _LONGEST:
                self._redacted.add(value, f"{_REDACTED}{region.placeholder}")
            at = region.end
        out.append(text[at:])
        return "".join(out)

    def swept(self, text: str, *, redacted: bool = True) -> str:
        """A text that went through ``mask``, without any value that was masked or redacted by now.

        For when all texts of the request have been masked: a value that was found beside a word that says what it is
        stands in other texts without it. Values of five characters and more are looked for; what is written another
        way gets a placeholder of its own, so that it comes back as it was. ``redacted``: values that were redacted
        are, too.
        """
        if len(self._known):
            text = self._known.replaced(text, [m.span() for m in _SHAPED.finditer(text)], self._again)
        if redacted and len(self._redacted):
            text = self._redacted.replaced(text, [m.span() for m in _SHAPED.finditer(text)], _label)
        return text

    def _again(self, value: str, sort: str) -> str:
        return self._enter(value, sort, found_again=True)  # and known already

    def _regions(
        self,
        text: str,
        findings: Iterable[Finding],
        redactions: Sequence[tuple[int, str]],
        masking: frozenset[str],
        redacting: frozenset[str],
    ) -> Iterator[_Region]:
        """Regions in text order, apart from each other. What joins a redacted region is redacted with it."""
        hidden = [f for f in findings if f.mode is Mode.BLOCK and f.action in HIDING]
        regions: list[_Region] = []
        for first, last, group in _merged(hidden, len(text)):
            masked = all(f.guardrail in masking for f in group)
            shown = redactions[len(regions)][1] if len(regions) < len(redactions) else "[REDACTED]"
            sort = SORTS.get(group[0].category, SORTS[""])
            learned = not masked and all(f.guardrail in masking | redacting and f.kind != "length" for f in group)
            regions.append(_Region(first, last, sort, None if masked else shown, learned))
        spans = [_Region(m.start(), m.end(), ESCAPED, None) for m in _SHAPED.finditer(text)]
        merged: list[_Region] = []
        for region in sorted([*regions, *spans], key=lambda r: (r.start, -r.end)):
            if merged and region.start < merged[-1].end:
                before = merged[-1]
                joined = before.placeholder if before.placeholder is not None else region.placeholder
                learned = before.learned or region.learned
                merged[-1] = _Region(before.start, max(before.end, region.end), before.sort, joined, learned)
            else:
                merged.append(region)
        yield from merged

    def _enter(self, value: str, sort: str, *, found_again: bool = False) -> str:
        if value in self._made:
            return self._made[value]
        for attempt in range(64):
            named = _letters(self._number(b"value", value.encode("utf-8", "surrogatepass"), bytes([attempt])), 10)
            head = f"MASK-{sort}-{self.tag}-{named[:5]}-{named[5:]}"
            made = f"{head}-{_checksum(head)}"
            if made not in self._values:
                self._values[made] = value
                self._made[value] = made
                if sort != ESCAPED and not found_again:
                    self._known.add(value, sort)
                return made
        raise RuntimeError("64 values of one request have the same name under this key")

    def _number(self, *parts: bytes) -> int:
        return int.from_bytes(hmac.digest(self._key, _parts(*parts), "sha256")[:16], "big")


def _merged(findings: Iterable[Finding], length: int) -> Iterator[tuple[int, int, list[Finding]]]:
    """Findings whose spans overlap, as the gate merges them: one region each, in text order.

    What is over a length limit stays away to the end of the text, whatever the finding names.
    """
    group: list[Finding] = []
    first = last = 0
    for finding in sorted(findings, key=lambda f: (f.start, f.end)):
        end = length if finding.kind == "length" else finding.end
        if group and finding.start < last:
            group.append(finding)
            last = max(last, end)
            continue
        if group:
            yield first, last, group
        first, last, group = finding.start, end, [finding]
    if group:
        yield first, last, group


def _label(value: str, sort: str) -> str:
    return sort.removeprefix(_REDACTED)


def _parts(*parts: bytes) -> bytes:
    """The parts with their lengths, so that no two lists of parts read the same."""
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)
