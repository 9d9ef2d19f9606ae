"""Personal data: numbers by their plausible groupings, addresses by their form, the rest by the words before them.

Protects the rule that a value is found wherever it stands. Each number kind lists the groupings in which it is
written, with one kind of separator, so that an expiry date, a quantity or another number beside it cannot join the
match and spoil its check digit. Kinds without a form of their own (passports, licences, accounts, birth dates) need a
word before them, and only the value is hidden, never the word.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

from pydantic import Field, field_validator, model_validator

from guardrails.kinds.base import Config, Example, Kind
from guardrails.patterns import validators
from guardrails.patterns.behind import BACKSLASH, ESCAPE, PERCENT, found_behind
from guardrails.patterns.rule import Rule, Validator
from guardrails.performance import Family, PerformanceCharacteristics, PerformanceClass

SPACE = r"(?:[ \u00a0\u2007\u2009\u202f]|%20|\\u00[2Aa]0)"
"""The blanks that stand inside numbers: plain, no-break, figure, thin, narrow no-break; percent-encoded, escaped."""
DASH = r"(?:[-\u2010-\u2015\u2212]|%2[Dd]|\\u(?:002[Dd]|201[0-5]|2212))"
"""Hyphens, dashes and the minus sign, all of which models write between groups of digits; encoded, escaped."""
SEPARATORS = (SPACE, DASH, r"\.")
FILLERS = "no|nr|num|number|nos|id|code|is|was|are|my|your|the|of|on|holder"
GAP = (
    rf"(?:(?:[\s.:#=,'\"(/-]{{1,3}}|[.:]?{PERCENT})(?:{FILLERS})){{0,4}}"
    rf"(?:[\s.:#=,'\"(-]{{1,4}}|[.:]?{ESCAPE}(?:{ESCAPE})?)"
)
"""What may stand between a word ("passport") and its value: a few filler words, then punctuation or blanks."""

DATE = (
    r"[0-9]{1,2}SEP[0-9]{1,2}SEP(?:19|20)?[0-9]{2}|(?:19|20)[0-9]{2}DASH[0-9]{1,2}DASH[0-9]{1,2}"
    r"|[0-9]{1,2}(?:st|nd|rd|th)?\.?BLANK(?:ofBLANK)?(?:MONTH)\.?,?BLANK(?:19|20)[0-9]{2}"
    r"|(?:MONTH)\.?BLANK[0-9]{1,2}(?:st|nd|rd|th)?,?BLANK(?:19|20)[0-9]{2}"
)
for _word, _means in (
    ("SEP", "(?:[ ./-]|%2[0DF])"),
    ("DASH", "(?:[./-]|%2[DF])"),
    ("BLANK", r"(?:\s|%20)"),
    ("MONTH", "jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?"
              "|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?"),
):  # fmt: skip
    DATE = DATE.replace(_word, _means)
EMAIL_LETTER = "A-Za-z0-9\u0370-\u052f"
"""Letters and digits of mail addresses; Latin letters with accents fold to these, Greek and Cyrillic do not."""


def _each(form: str) -> str:
    """``form`` once for every kind of separator, written ``~`` in it."""
    return "|".join(form.replace("~", separator) for separator in SEPARATORS)


def _after(words: str, value: str) -> str:
    return rf"\b(?:{_blanks(words)}){GAP}({value})"


def _blanks(words: str) -> str:
    return words.replace(r"\s", r"(?:\s|%20)")


def _ssn() -> Rule:
    forms = _each("[0-9]{3}~[0-9]{2}~[0-9]{4}")
    words = r"ssns?|social\ssecurity(?:\s(?:no|nr|number|num))?|itin|tax\sid"
    return Rule(
        id="ssn",
        pattern=rf"({forms})|{_after(words, '[0-9]{9}')}",
        ignore_case=True,
        secret_group=-1,
        not_after="0-9",
        not_before="0-9",
        validator=validators.ssn,
    )


def _card(luhn: bool) -> Rule:
    # 2[2-7]: Mastercard has issued 2221 to 2720 since 2017; with sixteen digits only.
    forms = _each("(?:[3-6][0-9]|2[2-7])[0-9]{2}~[0-9]{4}~[0-9]{4}~[0-9]{4}|3[0-9]{3}~[0-9]{6}~[0-9]{4,5}")
    return Rule(
        id="credit_card",
        pattern=rf"[3-6][0-9]{{12,18}}|2[2-7][0-9]{{14}}|{forms}",
        not_after="0-9",
        not_before="0-9",
        validator=validators.luhn if luhn else None,
        must_match=("4111 1111 1111 1111",),
    )


def _email() -> Rule:
    part = rf"[{EMAIL_LETTER}_-]{{1,63}}"
    return Rule(
        id="email",
        pattern=rf"[{EMAIL_LETTER}_][{EMAIL_LETTER}_.+%'-]{{0,63}}(?:[@\uff20]|%40|\\u0040)(?:{part}\.){{1,6}}[A-Za-z\u0370-\u052f]{{2,24}}",
    )


def _phone() -> Rule:
    sep = f"(?:{SPACE}|{DASH}|\\.)"
    gap = "(?:[ \u00a0\u2007\u2009\u202f\u2010-\u2015\u2212.()-]{0,PLAIN}|(?:%2[089D]|[()]){1,ENCODED})"
    wide, narrow = (gap.replace("PLAIN", most).replace("ENCODED", codes) for most, codes in (("3", "2"), ("2", "1")))
    area = rf"(?:\(|%28)[2-9][0-9]{{2}}(?:\)|%29){SPACE}{{0,2}}|[2-9][0-9]{{2}}{sep}"
    north = rf"(?:1{sep})?(?:{area})[0-9]{{3}}{sep}[0-9]{{4}}"
    world = rf"(?:\+|%2B)[1-9](?:{wide}[0-9]){{6,14}}"
    local = rf"\+?\(?[0-9](?:{narrow}[0-9]){{6,14}}"
    words = r"(?:tele)?phone|tel|mobile|cell|handy|fax|call|dial|(?:text|message)\s(?:me|us)|sms|whatsapp|ph"
    link = (
        rf"(?:(?:[\s.:#(=-]{{1,3}}|[.:]?{PERCENT})(?:me|us|him|her|them|at|on|is|no|nr|number|now)){{0,4}}"
        rf"(?:[\s.:#=-]{{0,3}}|[.:]?{ESCAPE}(?:{ESCAPE})?)"
    )
    return Rule(
        id="phone",
        pattern=rf"({north})|({world})|\b(?:{_blanks(words)}){link}({local})",
        ignore_case=True,
        secret_group=-1,
        not_after="0-9+",
        not_before="0-9",
        validator=validators.phone,
    )


def _ip_address() -> Rule:
    return Rule(
        id="ip_address",
        pattern=(
            r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}"
            r"|(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}"
            r"|(?:[0-9A-Fa-f]{0,4}:){2,6}[0-9]{1,3}(?:\.[0-9]{1,3}){3}"
        ),
        not_after=r"\w.",
        not_before=r"\w",
        validator=validators.ip_address,
    )


def _iban() -> Rule:
    groups = _each("(?:~[A-Z0-9]{4}){2,7}(?:~[A-Z0-9]{1,3})?")
    return Rule(
        id="iban",
        pattern=rf"[A-Z]{{2}}[0-9]{{2}}(?:[A-Z0-9]{{11,30}}|{groups})",
        ignore_case=True,
        not_after="A-Za-z0-9",
        not_before="A-Za-z0-9",
        validator=validators.iban,
        must_match=("DE89 3704 0044 0532 0130 00", "GB82WEST12345698765432"),
        must_not_match=("DE88 3704 0044 0532 0130 00",),
    )


def _worded(name: str, words: str, value: str, validator: Validator, example: str) -> Rule:
    """``example``: a text that it finds, for clients to try; what is made of the pattern seldom passes the check."""
    return Rule(
        id=name,
        pattern=_after(words, value),
        ignore_case=True,
        secret_group=1,
        not_before="A-Za-z0-9",
        validator=validator,
        must_match=(example,),
    )


def _passport() -> Rule:
    words = "passports?|reisepass|passeport"
    return _worded("passport", words, "[A-Z0-9]{6,9}", validators.HasDigits(4), "passport no. X1234567")


def _driver_license() -> Rule:
    words = r"driv(?:er|ing)(?:(?:['\u2019]|%27)?s)?(?:\s|-|%2D)licen[cs]e|dl|fuhrerschein"
    value = "[A-Z0-9]{5,18}|[A-Z0-9]{1,5}(?:(?:[ -]|%2[0D])[0-9]{2,6}){1,4}"
    return _worded("driver_license", words, value, validators.HasDigits(4), "driver's license D1234567")


def _bank_account() -> Rule:
    words = r"accounts?|acct|a/c|kontonummer|(?:aba|routing)(?:\s(?:no|number|code))?|sort\scode"
    value = "[0-9](?:(?:[ -]|%2[0D])?[0-9]){5,16}"
    return _worded("bank_account", words, value, validators.not_a_date, "account number: 12345678")


def _date_of_birth() -> Rule:
    words = r"dob|d\.o\.b|date\sof\sbirth|birth\s?date|birthday|born|geboren(?:\sam)?|nee?\sle"
    return _worded("date_of_birth", words, DATE, validators.plausible_date, "date of birth: 21 March 1984")


RULES: dict[str, Callable[[], Rule]] = {
    "ssn": _ssn,
    "email": _email,
    "phone": _phone,
    "ip_address": _ip_address,
    "iban": _iban,
    "passport": _passport,
    "driver_license": _driver_license,
    "bank_account": _bank_account,
    "date_of_birth": _date_of_birth,
}
"""The rule of each entity that has no options of its own."""


class CardOptions(Config):
    """Options of `credit_card`."""

    luhn: bool = Field(default=True, description="Require a valid check digit.")


class Entities(Config):
    """Which kinds of personal data are looked for; what is left out is off."""

    ssn: bool = Field(default=False, description="US social security numbers and ITINs.")
    credit_card: bool | CardOptions = Field(default=False, description="Payment card numbers, 13 to 19 digits.")
    email: bool = Field(default=False, description="Mail addresses.")
    phone: bool = Field(default=False, description="North American and international telephone numbers.")
    ip_address: bool = Field(default=False, description="IPv4 and IPv6 addresses.")
    iban: bool = Field(default=False, description="International bank account numbers.")
    passport: bool = Field(default=False, description="Passport numbers, after a word that says so.")
    driver_license: bool = Field(default=False, description="Driving licence numbers, after a word that says so.")
    bank_account: bool = Field(default=False, description="Account, routing and sort codes, after such a word.")
    date_of_birth: bool = Field(default=False, description="Birth dates, after a word that says so.")

    @model_validator(mode="after")
    def _something(self) -> Entities:
        if not any(getattr(self, name) for name in type(self).model_fields):
            raise ValueError("every kind of personal data is off: name at least one")
        return self


ALL = Entities(**dict.fromkeys(Entities.model_fields, True))


class PiiConfig(Config):
    """Parameters of the `pii` kind."""

    entities: Entities = Field(default=ALL, description="What to look for; all of it when left out.")

    @field_validator("entities", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        """A plain list of names is accepted for the mapping, as earlier systems wrote it."""
        return dict.fromkeys(value, True) if isinstance(value, list) else value


class PiiKind(Kind[PiiConfig]):
    """Personal data."""

    name = "pii"
    family = Family.PATTERN
    description = "Personal data: numbers with check digits, addresses, and values named by the words before them."
    performance = PerformanceCharacteristics(
        PerformanceClass.INSTANT, 0.01, 0.2, 2.0, cacheable=True, cache_seconds=3600, supports_streaming=True
    )
    Config = PiiConfig
    examples: ClassVar[tuple[Example, ...]] = (
        Example(
            {},
            hits=(
                "SSN 123-45-6789",
                "4111 1111 1111 1111 12/27",
                "2223 0031 2200 3222",
                "mail joe.bloggs@example.com",
                "(212) 555-0123",
                "10.0.0.1",
                "DE89 3704 0044 0532 0130 00",
                "passport no. X1234567",
                "driver's license D1234567",
                "account number: 12345678",
                "date of birth: 21 March 1984",
            ),
            passes=(
                "4111 1111 1111 1112",
                "2923 0031 2200 3225",
                "000-12-3456",
                "12:34:56",
                "version 3.14",
                "a passport photo",
            ),
        ),
        Example(
            {"entities": {"credit_card": {"luhn": False}}},
            hits=("4111 1111 1111 1112",),
            passes=("123-45-6789", "4111 11 11"),
        ),
    )

    def rules(self) -> tuple[Rule, ...]:
        """One rule an entity that is on, placeholder ``[ENTITY]``."""
        entities = self.config.entities
        rules = [make() for name, make in RULES.items() if getattr(entities, name)]
        if card := entities.credit_card:
            rules.insert(0, _card(luhn=card is True or card.luhn))
        # a mail address takes what is glued to it, also what is percent-encoded, but not half of an escape of JSON
        behind = {"email": BACKSLASH}
        return tuple(named(found_behind(rule, behind.get(rule.id, ESCAPE))) for rule in rules)


def named(rule: Rule) -> Rule:
    """The rule with what all entities share: category, placeholder, and folding, whatever its pattern names."""
    return replace(rule, fold=True, category=rule.id, placeholder=f"[{rule.id.upper()}]")
