"""Words and phrases that must not be said: the `keywords` kind.

Protects the rule that a keyword means what a reader sees: whole words by Unicode word boundaries ("assisting" is not
its first three letters, `über` is found between spaces), look-alikes folded, spacing free. A word file is read when
the policy is saved and its words become part of the version, so that a signed version never changes under its digest.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar, cast

from pydantic import Field, field_validator, model_validator

from guardrails.kinds.base import Config, Example, Kind, Texts
from guardrails.patterns.behind import found_behind
from guardrails.patterns.folding import fold_plain
from guardrails.patterns.rule import Rule
from guardrails.performance import Family, PerformanceCharacteristics, PerformanceClass

MAX_FILE_BYTES = 1 << 20
MAX_LENGTH = 200
MOST_BEHIND = 500
"""Words up to which a list is also looked for right behind escapes: every one of them begins with each backslash."""


def phrase_pattern(phrase: str, *, fold: bool, ignore_case: bool) -> str:
    """The pattern of one phrase: literal text, any run of one to four blanks where the phrase has blanks.

    ``ignore_case`` covers ASCII through the rule's flag; other letters are spelled out in both cases here, because
    the flag of a rule means ASCII in every engine. Raises ``ValueError`` for a phrase of which folding leaves nothing.
    """
    words = (fold_plain(phrase) if fold else phrase).split()
    if not words:
        raise ValueError(f"keyword {phrase!r} is empty, or made only of characters that folding removes")
    return r"\s{1,4}".join("".join(_letter(char, fold, ignore_case) for char in word) for word in words)


def _letter(char: str, fold: bool, ignore_case: bool) -> str:
    if char.isascii() or not ignore_case:
        return re.escape(char)
    cases = (char, char.lower(), char.upper())
    variants = {fold_plain(case) if fold else case for case in cases}
    singles = sorted(variant for variant in variants if len(variant) == 1)
    return re.escape(singles[0]) if len(singles) == 1 else f"[{''.join(singles)}]"


def read_words(path: str) -> tuple[str, ...]:
    """The words of a file: UTF-8, one a line, blank lines and what follows a ``#`` at a line's start left out."""
    with Path(path).open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"larger than {MAX_FILE_BYTES} bytes")
    lines = (line.strip() for line in data.decode("utf-8-sig").splitlines())
    return tuple(line for line in lines if line and not line.startswith("#"))


class KeywordsConfig(Config):
    """Parameters of the `keywords` kind."""

    keywords: Texts = Field(default=(), description="Words and phrases.")
    file: str | None = Field(
        default=None, description="File with more of them, one a line, `#` comments; read when the policy is saved."
    )
    whole_word: bool = Field(default=True, description="Only whole words (Unicode word boundaries), no parts of words.")
    fold: bool = Field(default=True, description="See through look-alike letters, accents, zero-width characters.")
    case_sensitive: bool = Field(default=False, description="Letters match in their own case only.")

    @model_validator(mode="before")
    @classmethod
    def _take_in_file(cls, data: object) -> object:
        if not isinstance(data, dict) or not isinstance(data.get("file"), str):
            return data
        listed = data.get("keywords", ())
        if not isinstance(listed, list | tuple):
            return data
        try:
            words = read_words(cast(str, data["file"]))
        except (OSError, ValueError):
            return data  # the field's own validator says why, with the field's name
        return {**data, "keywords": list(dict.fromkeys([*listed, *words])), "file": None}

    @field_validator("file")
    @classmethod
    def _readable(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                read_words(value)
            except OSError as error:
                raise ValueError(f"cannot be read: {error.strerror}") from None
            except UnicodeDecodeError:
                raise ValueError("is not UTF-8 text") from None
        return value

    @field_validator("keywords")
    @classmethod
    def _usable(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for word in value:
            if not word.strip():
                raise ValueError("a keyword is empty")
            if len(word) > MAX_LENGTH:
                raise ValueError(f"a keyword is longer than {MAX_LENGTH} characters")
        return value

    @model_validator(mode="after")
    def _something(self) -> KeywordsConfig:
        if not self.keywords:
            raise ValueError("give `keywords`, or a `file` that holds some")
        for word in self.keywords:
            phrase_pattern(word, fold=self.fold, ignore_case=not self.case_sensitive)
        return self


class KeywordsKind(Kind[KeywordsConfig]):
    """A list of words and phrases."""

    name = "keywords"
    family = Family.LISTED
    description = "Words and phrases, whole or as parts of words, with look-alike letters seen through."
    performance = PerformanceCharacteristics(
        PerformanceClass.FAST, 0.01, 0.1, 1.0, cacheable=True, cache_seconds=3600, supports_streaming=True
    )
    Config = KeywordsConfig
    examples: ClassVar[tuple[Example, ...]] = (
        Example(
            {"keywords": ["acme corp", "über"]},
            hits=("Ask ACME  Corp.", "das ist über alles", "асme corp"),
            passes=("acmecorp", "überall", "acme incorporated"),
        ),
        Example({"keywords": ["ass"], "whole_word": False}, hits=("assisting",), passes=("as",)),
        Example({"keywords": ["US"], "case_sensitive": True}, hits=("the US.",), passes=("join us",)),
        Example({"keywords": ["acme"], "fold": False}, hits=("Acme",), passes=("асme",)),
    )

    def rules(self) -> tuple[Rule, ...]:
        """One rule a keyword, named by it; spellings that come to the same pattern are one rule."""
        config = self.config
        edge = "unicode-word" if config.whole_word else ""
        rules: dict[str, Rule] = {}
        for word in config.keywords:
            pattern = phrase_pattern(word, fold=config.fold, ignore_case=not config.case_sensitive)
            key = pattern if config.case_sensitive else pattern.lower()
            rules.setdefault(
                key,
                Rule(
                    id=" ".join(word.split()),
                    pattern=pattern,
                    ignore_case=not config.case_sensitive,
                    fold=config.fold,
                    not_after=edge,
                    not_before=edge,
                    category="keyword",
                ),
            )
        found = tuple(rules.values())
        return tuple(map(found_behind, found)) if config.whole_word and len(found) <= MOST_BEHIND else found
