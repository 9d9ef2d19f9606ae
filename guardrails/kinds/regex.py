"""Patterns of the administrator's own: the `regex` kind, and the rule form that other kinds accept as well.

Protects the rule that a rule is data: everything that narrows a pattern (secret group, validator, entropy,
allow-list, caps, edges) stands in the policy document, is digested, signed and shown, and means the same everywhere.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, Strict, field_validator, model_validator

from guardrails.kinds.base import Config, Example, Kind, Texts
from guardrails.patterns.rule import DEFAULT_CAP, PEM_CAP, Rule
from guardrails.patterns.validators import NAMED, Contains, MinEntropy, NotAllowed, ValidatorName, all_of, searcher
from guardrails.performance import Family, PerformanceCharacteristics, PerformanceClass

RuleId = Annotated[str, Field(pattern=r"^[\w.:-]{1,100}$")]
Placeholder = Annotated[str, Field(min_length=1, max_length=64)]


class Allow(Config):
    """An allow-list: what it names is no hit."""

    regexes: Texts = Field(default=(), description="Regular expressions (RE2 syntax), searched in the target.")
    stopwords: Texts = Field(default=(), description="Words sought in the secret, whatever their case.")
    target: Literal["secret", "match"] = Field(
        default="secret", description="What the regexes look at: the secret, or the match with what was trimmed off."
    )
    require_all: bool = Field(default=False, description="Both a regex and a stop word must be found, not just one.")

    @field_validator("regexes")
    @classmethod
    def _usable(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in value:
            searcher(pattern)
        return value

    @model_validator(mode="after")
    def _not_empty(self) -> Allow:
        if not self.regexes and not self.stopwords:
            raise ValueError("an allow-list names at least one regex or stop word")
        return self

    def validator(self) -> NotAllowed:
        """The allow-list as a validator of candidates."""
        stopwords = tuple(word.lower() for word in self.stopwords)
        return NotAllowed(self.regexes, stopwords, self.target, self.require_all)


class PatternRule(Config):
    """One pattern of a policy file, with all that narrows it and the texts that prove it."""

    id: RuleId = Field(description="Name of the rule in findings.")
    pattern: str = Field(min_length=1, max_length=10_000, description="Regular expression, RE2 subset.")
    ignore_case: bool = Field(default=False, description="ASCII letters match in both cases.")
    secret_group: int | None = Field(
        default=None, ge=-1, le=99, description="Capture group to hide; 0: the match; -1: the first non-empty group."
    )
    placeholder: Placeholder = Field(default="[REDACTED]", description="What the reader sees instead.")
    category: str = Field(default="", max_length=64, description="Category in findings.")
    validator: ValidatorName | None = Field(default=None, description="Check that a candidate must pass.")
    entropy: float | None = Field(default=None, ge=0, le=8, description="Bits per character to be exceeded.")
    keywords: Texts = Field(default=(), description="One of these must occur in the match, whatever its case.")
    allow: Annotated[tuple[Allow, ...], Strict(False)] = Field(default=(), description="Allow-lists.")
    cap: int = Field(default=DEFAULT_CAP, ge=1, le=PEM_CAP, description="Characters an open repeat may take.")
    fold: bool | None = Field(default=None, description="Fold look-alikes and ignorables before matching.")
    not_after: str = Field(default="", max_length=200, description="Void after one of these (inside of a class).")
    not_before: str = Field(default="", max_length=200, description="Void before one of these (inside of a class).")
    must_match: Texts = Field(default=(), description="Texts that publication requires to be hit.")
    must_not_match: Texts = Field(default=(), description="Texts that publication requires to pass.")

    def rule(self, category: str = "") -> Rule:
        """The rule to compile; ``category`` is the guardrail's own, used when the rule names none."""
        return Rule(
            id=self.id,
            pattern=self.pattern,
            ignore_case=self.ignore_case,
            secret_group=self.secret_group,
            fold=self.fold,
            cap=self.cap,
            not_after=self.not_after,
            not_before=self.not_before,
            validator=all_of(
                NAMED[self.validator] if self.validator else None,
                Contains(tuple(word.lower() for word in self.keywords)) if self.keywords else None,
                None if self.entropy is None else MinEntropy(self.entropy),
                *(allow.validator() for allow in self.allow),
            ),
            placeholder=self.placeholder,
            category=self.category or category,
            must_match=self.must_match,
            must_not_match=self.must_not_match,
        )


PatternRules = Annotated[tuple[PatternRule, ...], Strict(False)]


def refuse_duplicates(rules: tuple[PatternRule, ...]) -> tuple[PatternRule, ...]:
    """The rules as given; ``ValueError`` when two share an id (findings could not tell them apart)."""
    seen: set[str] = set()
    for rule in rules:
        if rule.id in seen:
            raise ValueError(f"two rules have the id {rule.id!r}")
        seen.add(rule.id)
    return rules


class RegexConfig(Config):
    """Parameters of the `regex` kind: full rules, or the short form with one set of switches for all patterns."""

    rules: PatternRules = Field(default=(), description="Rules in full.")
    patterns: Texts = Field(default=(), description="Short form: patterns that share the switches below.")
    case_sensitive: bool = Field(default=True, description="Short form: letters match in their own case only.")
    validator: ValidatorName | None = Field(default=None, description="Short form: check for candidates.")
    secret_group: int | None = Field(default=None, ge=-1, le=99, description="Short form: capture group to hide.")
    placeholder: Placeholder = Field(default="[REDACTED]", description="Short form: what the reader sees instead.")

    _unique = field_validator("rules")(refuse_duplicates)

    @model_validator(mode="after")
    def _not_empty(self) -> RegexConfig:
        if not self.rules and not self.patterns:
            raise ValueError("give `rules`, or `patterns` in the short form: without any, nothing is checked")
        if any(not pattern for pattern in self.patterns):
            raise ValueError("an entry of `patterns` is empty")
        taken = {rule.id for rule in self.rules} & {rule.id for rule in self.short_rules()}
        if taken:
            raise ValueError(f"the rule id {min(taken)!r} belongs to the short form")
        return self

    def short_rules(self) -> tuple[PatternRule, ...]:
        """The short form written out: ``pattern-1``, ``pattern-2``, … with the shared switches."""
        return tuple(
            PatternRule(
                id=f"pattern-{n}",
                pattern=pattern,
                ignore_case=not self.case_sensitive,
                secret_group=self.secret_group,
                validator=self.validator,
                placeholder=self.placeholder,
            )
            for n, pattern in enumerate(self.patterns, 1)
        )


class RegexKind(Kind[RegexConfig]):
    """Regular expressions of the administrator's own."""

    name = "regex"
    family = Family.PATTERN
    description = "Regular expressions of your own, with secret groups, validators, entropy and allow-lists."
    performance = PerformanceCharacteristics(
        PerformanceClass.INSTANT, 0.01, 0.1, 1.0, cacheable=True, cache_seconds=3600, supports_streaming=True
    )
    Config = RegexConfig
    examples: ClassVar[tuple[Example, ...]] = (
        Example(
            {"rules": [{"id": "heron", "pattern": r"project\s+blue\s+heron", "ignore_case": True}]},
            hits=("This is Project Blue  Heron.",),
            passes=("two blue herons",),
        ),
        Example(
            {"rules": [{"id": "ticket", "pattern": r"ticket=([0-9]{6})", "secret_group": 1, "not_before": "0-9"}]},
            hits=("ticket=123456",),
            passes=("ticket=1234567", "ticket=12345"),
        ),
        Example(
            {"patterns": ["[0-9]{16}"], "validator": "luhn"},
            hits=("4111111111111111",),
            passes=("4111111111111112",),
        ),
    )

    def rules(self) -> tuple[Rule, ...]:
        """One compiled-ready rule for each entry."""
        return tuple(rule.rule() for rule in (*self.config.rules, *self.config.short_rules()))
