"""What a pattern cannot say: check digits, number areas, entropy, allow-lists.

Exists so that a rule may be wide enough never to miss a value and still narrow enough to be useful. Protects the rule
that validators judge *candidates* (every end the automaton accepts, longest first), never the one greedy match, so
each of them is a pure function of one candidate. All of them are total: whatever the text, they answer, never raise.
"""

from __future__ import annotations

import functools
import ipaddress
import math
import re
import string
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import re2
from stdnum import iban as stdnum_iban
from stdnum import luhn as stdnum_luhn
from stdnum import numdb

from guardrails.patterns.rule import Candidate, Validator

_NOT_DIGIT = re.compile(r"[^0-9]")
_ESCAPE = re.compile(r"%(?:u([0-9A-Fa-f]{4})|([0-9A-Fa-f]{2}))")
_OCTET = re.compile(r"[0-9]{1,3}")
_NOT_ALNUM = re.compile(r"[^0-9A-Za-z]")


def plain(text: str) -> str:
    """The text with what is percent-encoded decoded, character by character: ``%20`` is a blank and no twenty.

    As ECMAScript's ``unescape`` does it, which clients use; ``\\u0020``, as JSON writes it, is read as ``%u0020``.
    """
    text = text.replace("\\u", "%u")
    return _ESCAPE.sub(lambda found: chr(int(found[1] or found[2], 16)), text) if "%" in text else text


def digits_of(text: str) -> str:
    """The ASCII digits of ``text``, in order."""
    return _NOT_DIGIT.sub("", plain(text))


def numbers_of(text: str) -> list[str]:
    """The runs of ASCII digits in ``text``."""
    return re.findall(r"[0-9]+", plain(text))


def luhn(candidate: Candidate) -> bool:
    """The digits pass the Luhn check."""
    return bool(stdnum_luhn.is_valid(digits_of(candidate.secret)))


def iban(candidate: Candidate) -> bool:
    """Country, length, structure and the mod 97 check of an IBAN; national check digits are not judged."""
    return bool(stdnum_iban.is_valid(_NOT_ALNUM.sub("", plain(candidate.secret)).upper(), check_country=False))


def ssn(candidate: Candidate) -> bool:
    """A US social security number or ITIN: area not 000 or 666, group not 00, serial not 0000.

    Areas 900-999 are accepted: they are ITINs and the values that documents and tests use.
    """
    digits = digits_of(candidate.secret)
    return len(digits) == 9 and digits[:3] not in ("000", "666") and digits[3:5] != "00" and digits[5:] != "0000"


def phone(candidate: Candidate) -> bool:
    """A dialable number: eleven digits after +1, else 7 to 15 digits."""
    digits = digits_of(candidate.secret)
    if "+" in plain(candidate.secret) and digits.startswith("1"):
        return len(digits) == 11 and digits[1] >= "2"
    return 7 <= len(digits) <= 15 and len(set(digits)) > 1


def ip_address(candidate: Candidate) -> bool:
    """An IPv4 address (leading zeros allowed) or an IPv6 address that names at least one group."""
    text = candidate.secret
    if ":" not in text:
        parts = text.split(".")
        return len(parts) == 4 and all(_OCTET.fullmatch(part) and int(part) <= 255 for part in parts)
    try:
        return int(ipaddress.IPv6Address(text)) != 0
    except ValueError:
        return False


def entropy_of(text: str) -> float:
    """Shannon entropy of ``text`` in bits per character; 0 for the empty text."""
    if not text:
        return 0.0
    size = len(text)
    return -sum(n / size * math.log2(n / size) for n in Counter(text).values())


NAMED: dict[str, Validator] = {"luhn": luhn, "iban": iban, "ssn": ssn, "phone": phone, "ip_address": ip_address}
"""The validators that a rule in a policy file may name."""

ValidatorName = Literal["luhn", "iban", "ssn", "phone", "ip_address"]
"""The keys of ``NAMED``, for pydantic models."""


def plausible_date(candidate: Candidate) -> bool:
    """Day, month and year of a numeric date are possible in some order; a date with a month's name always is."""
    parts = [int(part) for part in numbers_of(candidate.secret)]
    if any(char.isalpha() for char in plain(candidate.secret)):
        return all(1 <= part <= 31 or part >= 1900 for part in parts)
    first, second, third = parts
    day, month = (second, third) if first > 31 else (first, second)
    return (1 <= day <= 31 and 1 <= month <= 12) or (1 <= month <= 31 and 1 <= day <= 12)


def not_a_date(candidate: Candidate) -> bool:
    """Not year, month, day: an account was opened on a date more often than it is written like one."""
    groups = [int(part) for part in numbers_of(candidate.secret)]
    return not (len(groups) == 3 and 1900 <= groups[0] < 2100 and groups[1] <= 12 and groups[2] <= 31)


_BUILT_IN: dict[str, Validator] = {**NAMED, "plausible_date": plausible_date, "not_a_date": not_a_date}


@dataclass(frozen=True, slots=True)
class HasDigits:
    """Accepts a secret with at least ``least`` ASCII digits."""

    least: int

    def __call__(self, candidate: Candidate) -> bool:
        """Whether there are so many."""
        return len(digits_of(candidate.secret)) >= self.least


@dataclass(frozen=True, slots=True)
class Matches:
    """Accepts a secret in which ``pattern`` is found. Python and JavaScript must read the pattern alike."""

    pattern: str

    def __call__(self, candidate: Candidate) -> bool:
        """Whether it is found."""
        return re.search(self.pattern, candidate.secret) is not None


@dataclass(frozen=True, slots=True)
class Lacks:
    """Rejects a secret in which ``pattern`` is found, whatever the case. Python and JavaScript must read it alike."""

    pattern: str

    def __call__(self, candidate: Candidate) -> bool:
        """Whether it is nowhere."""
        return re.search(self.pattern, candidate.secret, re.IGNORECASE) is None


@dataclass(frozen=True, slots=True)
class AllOf:
    """Accepts what every one of ``validators`` accepts; cheap ones go first."""

    validators: tuple[Validator, ...]

    def __call__(self, candidate: Candidate) -> bool:
        """Whether every validator accepts."""
        return all(validator(candidate) for validator in self.validators)


@dataclass(frozen=True, slots=True)
class MinEntropy:
    """Accepts a secret with *more* than ``bits`` bits of Shannon entropy per character."""

    bits: float

    def __call__(self, candidate: Candidate) -> bool:
        """Whether the secret is random enough."""
        return entropy_of(candidate.secret) > self.bits


@dataclass(frozen=True, slots=True)
class Contains:
    """Accepts a match that contains one of ``words`` (lower case), its left context included, whatever the case."""

    words: tuple[str, ...]

    def __call__(self, candidate: Candidate) -> bool:
        """Whether a word occurs."""
        return any_word(self.words)(candidate.context.lower())


Target = Literal["secret", "match"]
"""What an allow-list is judged on: the secret's text, or the whole match with its left context."""


@dataclass(frozen=True, slots=True)
class NotAllowed:
    """Rejects what an allow-list names.

    ``regexes`` (RE2) are searched in the target, ``stopwords`` (lower case) are sought in the secret. With
    ``require_all`` the list applies only if one of each given sort is found, else if any is.
    """

    regexes: tuple[str, ...] = ()
    stopwords: tuple[str, ...] = ()
    target: Target = "secret"
    require_all: bool = False

    def __call__(self, candidate: Candidate) -> bool:
        """Whether the allow-list leaves the candidate standing."""
        answers: list[bool] = []
        if self.regexes:
            text = candidate.secret if self.target == "secret" else candidate.context
            answers.append(any(search(text) for search in map(searcher, self.regexes)))
        if self.stopwords:
            answers.append(any_word(self.stopwords)(candidate.secret.lower()))
        return not (all(answers) if self.require_all else any(answers))


def all_of(*validators: Validator | None) -> Validator | None:
    """The conjunction of those given; None if none is."""
    given = tuple(validator for validator in validators if validator is not None)
    if len(given) > 1:
        return AllOf(given)
    return given[0] if given else None


@functools.lru_cache(maxsize=4096)
def searcher(pattern: str) -> Callable[[str], bool]:
    """A linear-time search for ``pattern``; raises ``ValueError`` with the reason when it is not RE2 syntax.

    Lone surrogates, which RE2 cannot be given, are replaced before the search: they can match no allow-list.
    """
    options = re2.Options()
    options.log_errors = False
    options.max_mem = 8 << 20
    try:
        compiled = re2.compile(pattern, options)
    except re2.error as error:
        raise ValueError(f"not a usable allow-list pattern: {_reason(error)}") from None

    def search(text: str) -> bool:
        return compiled.search(text.encode("utf-8", "replace").decode()) is not None

    return search


@functools.lru_cache(maxsize=1024)
def any_word(words: tuple[str, ...]) -> Callable[[str], bool]:
    """A search for any of ``words``: one pass, however many there are (imported lists name more than a thousand)."""
    if len(words) > 8:
        return searcher("|".join(map(re2.escape, words)))
    return lambda text: any(word in text for word in words)


def _reason(error: BaseException) -> str:
    reason = error.args[0] if error.args else "unknown"
    return reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)


def as_data(validator: Validator | None) -> list[dict[str, object]] | None:
    """A validator as a list of named checks that must all accept, for engines elsewhere; None if it has no such form.

    All have one but allow-lists with regular expressions, and functions that are defined elsewhere.
    """
    match validator:
        case None:
            return []
        case AllOf(validators):
            parts = [as_data(one) for one in validators]
            return None if None in parts else [data for part in parts for data in part or []]
        case MinEntropy(bits):
            return [{"name": "min_entropy", "bits": bits}]
        case Contains(words):
            return [{"name": "contains", "words": list(words)}]
        case NotAllowed(regexes=(), stopwords=stopwords):
            return [{"name": "not_allowed", "stopwords": list(stopwords)}]
        case HasDigits(least):
            return [{"name": "has_digits", "least": least}]
        case Matches(pattern):
            return [{"name": "matches", "pattern": pattern}]
        case Lacks(pattern):
            return [{"name": "lacks", "pattern": pattern}]
        case _ if validator is iban:
            return [{"name": "iban", "countries": iban_forms()}]
        case _:
            names = [name for name, named in _BUILT_IN.items() if named is validator]
            return [{"name": names[0]}] if names else None


@functools.cache
def iban_forms() -> dict[str, str]:
    """What follows the check digits in each country's IBAN, in the registry's words: ``{"DE": "8!n10!n", …}``."""
    registry = numdb.get("iban")
    forms: dict[str, str] = {}
    for first in string.ascii_uppercase:
        for second in string.ascii_uppercase:
            found = registry.info(first + second)[0][1]
            if found:
                forms[first + second] = str(found["bban"])
    return forms
