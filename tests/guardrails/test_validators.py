"""Validators answer for every candidate, whatever it holds."""

from __future__ import annotations

import pytest

from guardrails.kinds.pii import PiiConfig, PiiKind
from guardrails.kinds.secrets import SecretsConfig, SecretsKind
from guardrails.patterns.rule import Candidate
from guardrails.patterns.validators import (
    NAMED,
    AllOf,
    Contains,
    MinEntropy,
    NotAllowed,
    all_of,
    as_data,
    entropy_of,
    iban,
    iban_forms,
    ip_address,
    luhn,
    phone,
    searcher,
    ssn,
)


def candidate(secret: str, match: str | None = None, context: str | None = None) -> Candidate:
    match = secret if match is None else match
    return Candidate(secret, match, match if context is None else context)


def test_it_works() -> None:
    assert luhn(candidate("4111 1111 1111 1111"))
    assert not luhn(candidate("4111 1111 1111 1112"))


@pytest.mark.parametrize(
    ("number", "good"),
    [("123-45-6789", True), ("900-12-3456", True), ("999999999", True), ("000-12-3456", False), ("666-12-3456", False),
     ("123-00-6789", False), ("123-45-0000", False), ("12345678", False)],
)  # fmt: skip
def test_ssn_areas(number: str, good: bool) -> None:
    assert ssn(candidate(number)) is good


@pytest.mark.parametrize(
    ("number", "good"),
    [("DE89370400440532013000", True), ("gb82 west 1234 5698 7654 32", True), ("DE88370400440532013000", False),
     ("ZZ89370400440532013000", False), ("DE8937040044053201300", False)],
)  # fmt: skip
def test_iban_mod_97(number: str, good: bool) -> None:
    assert iban(candidate(number)) is good


@pytest.mark.parametrize(
    ("number", "good"),
    [("+1 212 555 0123", True), ("+1 212 555 012", False), ("+1 112 555 0123", False), ("212-555-0100", True),
     ("+44 20 7946 0958", True), ("123456", False), ("0000000", False), ("1234567890123456", False)],
)  # fmt: skip
def test_phone_lengths(number: str, good: bool) -> None:
    assert phone(candidate(number)) is good


@pytest.mark.parametrize(
    ("address", "good"),
    [("10.0.0.1", True), ("010.001.000.001", True), ("256.0.0.1", False), ("::1", True), ("::", False),
     ("12:34:56", False), ("1:2:3:4:5:6:7:8", True), ("1::2::3", False)],
)  # fmt: skip
def test_ip_addresses(address: str, good: bool) -> None:
    assert ip_address(candidate(address)) is good


def test_entropy_in_bits_per_character() -> None:
    assert entropy_of("") == 0
    assert entropy_of("aaaa") == 0
    assert entropy_of("abcd") == 2
    assert not MinEntropy(2.0)(candidate("abcd"))  # more than, not at least
    assert MinEntropy(1.9)(candidate("abcd"))


def test_allow_list_targets_and_conditions() -> None:
    found = candidate("s3cret", "key=s3cret", "primary_key=s3cret")
    assert not NotAllowed(regexes=("^s3",))(found)
    assert NotAllowed(regexes=("primary",))(found)
    assert not NotAllowed(regexes=("primary",), target="match")(found)
    assert not NotAllowed(stopwords=("cret",))(found)
    both = NotAllowed(regexes=("^s3",), stopwords=("other",), require_all=True)
    assert both(found)
    assert not NotAllowed(regexes=("^s3",), stopwords=("cret",), require_all=True)(found)


@pytest.mark.parametrize("count", [3, 1_500])
def test_long_stop_word_lists_mean_the_same_as_short_ones(count: int) -> None:
    words = tuple(f"w{n}.x" for n in range(count))
    assert not NotAllowed(stopwords=words)(candidate("xxW1.Xxx"))
    assert NotAllowed(stopwords=words)(candidate("w1zx"))


def test_contains_looks_at_what_was_trimmed_too() -> None:
    assert Contains(("primary",))(candidate("a", "a", "PRIMARY a"))
    assert not Contains(("primary",))(candidate("primary", "a", "a"))


def test_conjunction() -> None:
    assert all_of(None, None) is None
    assert all_of(luhn, None) is luhn
    both = all_of(luhn, MinEntropy(0.1))
    assert isinstance(both, AllOf)
    assert both(candidate("4111111111111111"))
    assert not both(candidate("0000000000000000"))


def test_an_allow_list_that_is_no_pattern_says_why() -> None:
    with pytest.raises(ValueError, match="missing"):
        searcher("(a")
    with pytest.raises(ValueError, match="not a usable allow-list"):
        searcher("(?=a)")


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize(
    "text", ["", "\x00", "\ud800", "x" * 10_000, "１２３", "::::", "1.2.3.4.5.6", "+", "9" * 5_000, "é"]
)
def test_a_validator_never_raises(name: str, text: str) -> None:
    assert NAMED[name](candidate(text)) in (True, False)
    assert searcher("a")(text) in (True, False)


def test_every_check_of_the_kinds_that_clients_may_run_can_be_written_as_data() -> None:
    for rule in (*PiiKind(PiiConfig()).rules(), *SecretsKind(SecretsConfig()).rules()):
        assert as_data(rule.validator) is not None, rule.id
    assert as_data(lambda _: True) is None


def test_the_forms_of_ibans_are_those_that_the_check_itself_goes_by() -> None:
    forms = iban_forms()
    assert len(forms) > 70
    assert forms["DE"] == "8!n10!n"
    assert "XX" not in forms
