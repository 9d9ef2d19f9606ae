"""Personal data is found wherever it stands, whole, and nothing beside it is taken with it."""

from __future__ import annotations

import random

import pytest

from .conftest import Hits, build

CARD = "4111 1111 1111 1111"


def test_it_works(hits: Hits) -> None:
    assert hits("pii", "My SSN is 123-45-6789, mail me at joe@example.com") == [
        ("ssn", "123-45-6789"),
        ("email", "joe@example.com"),
    ]


@pytest.mark.parametrize("separator", [" ", "-", ".", "", "\u2011", "\u00a0"])
@pytest.mark.parametrize(
    "text", ["~", "~ 12/27", "~ 123", "~ 4242", "2 ~", "2024-11-21 ~", "~,", "~。", "~😀", "卡号~是"]
)
def test_card_is_found_whatever_stands_beside_it(hits: Hits, separator: str, text: str) -> None:
    card = CARD.replace(" ", separator)
    assert ("credit_card", card) in hits("pii", text.replace("~", card))


@pytest.mark.parametrize(
    "card",
    ["3782 822463 10005", "378282246310005", "3056 930902 5904", "6011111111111117", "5555-5555-5555-4444",
     "4222222222222", "6304000000000000000"],
)  # fmt: skip
def test_every_grouping_of_cards_is_known(hits: Hits, card: str) -> None:
    assert hits("pii", f"pay with {card}.", {"entities": {"credit_card": True}}) == [("credit_card", card)]


@pytest.mark.parametrize(
    "text", ["4111 1111 1111 1112", "94111111111111111", "4111-1111 1111-1111", "7111111111111111"]
)
def test_what_is_no_card_passes(hits: Hits, text: str) -> None:
    assert hits("pii", text, {"entities": {"credit_card": True}}) == []


def test_full_width_and_zero_width_do_not_hide_a_card(hits: Hits) -> None:
    wide = "".join(chr(ord(char) + 0xFEE0) for char in "4111111111111111")
    assert hits("pii", wide) == [("credit_card", wide)]
    spread = "\u200b".join("4111111111111111")
    assert hits("pii", spread) == [("credit_card", spread)]


def test_luhn_can_be_turned_off(hits: Hits) -> None:
    assert hits("pii", "4111 1111 1111 1112", {"entities": {"credit_card": {"luhn": False}}})


def test_random_digit_tables_rarely_look_like_cards(hits: Hits) -> None:
    rows = random.Random(7)
    tables = [" ".join(str(rows.randrange(10**6)) for _ in range(12)) for _ in range(1_000)]
    alarms = sum(bool(hits("pii", row, {"entities": {"credit_card": True}})) for row in tables)
    assert alarms <= 20  # 2 %; every sub-span that passes Luhn would be more than half of them


@pytest.mark.parametrize("ssn", ["123-45-6789", "900-12-3456", "123 45 6789", "123.45.6789", "123\u201345\u20136789"])
def test_ssn_forms_and_areas(hits: Hits, ssn: str) -> None:
    assert hits("pii", f"({ssn})") == [("ssn", ssn)]


@pytest.mark.parametrize(
    "text", ["000-12-3456", "666-12-3456", "123-00-6789", "123-45-0000", "1123-45-6789", "123-45.6789"]
)
def test_impossible_ssns_pass(hits: Hits, text: str) -> None:
    assert hits("pii", text, {"entities": {"ssn": True}}) == []


def test_bare_nine_digits_are_an_ssn_only_after_the_word(hits: Hits) -> None:
    only = {"entities": {"ssn": True}}
    assert hits("pii", "SSN: 123456789", only) == [("ssn", "123456789")]
    assert hits("pii", "social security number is 123456789", only) == [("ssn", "123456789")]
    assert hits("pii", "order 123456789", only) == []


@pytest.mark.parametrize(
    "address", ["joe@example.com", "joe.o'neil+tag@mail.example.co.uk", "иван@пример.рф", "JOSÉ@example.com"]
)
@pytest.mark.parametrize("text", ["~", "mail ~.", "<~>", "~,", "~。", "~😀", "好~好", "'~'"])
def test_mail_address_at_any_edge(hits: Hits, address: str, text: str) -> None:
    assert hits("pii", text.replace("~", address), {"entities": {"email": True}}) == [("email", address)]


@pytest.mark.parametrize("text", ["joe@localhost", "@example.com", "joe at example.com", "a@b"])
def test_what_is_no_mail_address_passes(hits: Hits, text: str) -> None:
    assert hits("pii", text, {"entities": {"email": True}}) == []


@pytest.mark.parametrize(
    "number",
    ["(212) 555-0123", "212-555-0123", "212.555.0123", "212 555 0123", "+1 212 555 0123", "+12125550123",
     "1-800-555-0199", "999-555-0100", "+44 (0)20 7946 0958", "+49 30 901820", "+33 1 23 45 67 89"],
)  # fmt: skip
def test_phone_forms(hits: Hits, number: str) -> None:
    assert hits("pii", f"Ring {number}, please", {"entities": {"phone": True}}) == [("phone", number)]


def test_local_phone_numbers_need_a_word(hits: Hits) -> None:
    only = {"entities": {"phone": True}}
    assert hits("pii", "call me at 2125550123", only) == [("phone", "2125550123")]
    assert hits("pii", "tel. 07700 900123", only) == [("phone", "07700 900123")]
    assert hits("pii", "order 2125550123", only) == []
    assert hits("pii", "123-555-0123", only) == []
    assert hits("pii", "text me at 2125550123", only) == [("phone", "2125550123")]
    assert hits("pii", "shared=3313664, text=2310144", only) == []


@pytest.mark.parametrize(
    "address", ["10.0.0.1", "255.255.255.255", "fe80::1", "2001:db8::ff00:42:8329", "::ffff:10.0.0.1"]
)
def test_ip_addresses(hits: Hits, address: str) -> None:
    assert hits("pii", f"from {address}, port 80", {"entities": {"ip_address": True}}) == [("ip_address", address)]


@pytest.mark.parametrize("text", ["999.1.1.1", "v1.2.3.4", "12:34:56", "std::string", "::", "00:1a:2b:3c:4d:5e"])
def test_what_is_no_ip_address_passes(hits: Hits, text: str) -> None:
    assert hits("pii", text, {"entities": {"ip_address": True}}) == []


def test_address_with_port_is_found_without_it(hits: Hits) -> None:
    assert hits("pii", "10.0.0.1:8080") == [("ip_address", "10.0.0.1")]


@pytest.mark.parametrize("separator", [" ", "-", ".", ""])
@pytest.mark.parametrize("text", ["~", "~ 12/27", "~ 5", "~。", "IBAN:~,"])
@pytest.mark.parametrize(
    "iban", ["DE89 3704 0044 0532 0130 00", "AT61 1904 3002 3457 3201", "gb82 west 1234 5698 7654 32"]
)
def test_iban_in_every_spacing(hits: Hits, separator: str, text: str, iban: str) -> None:
    written = iban.replace(" ", separator)
    assert hits("pii", text.replace("~", written), {"entities": {"iban": True}}) == [("iban", written)]


def test_iban_with_a_wrong_check_digit_passes(hits: Hits) -> None:
    assert hits("pii", "DE88 3704 0044 0532 0130 00", {"entities": {"iban": True}}) == []


@pytest.mark.parametrize(
    ("text", "rule", "value"),
    [
        ("passport no. X1234567.", "passport", "X1234567"),
        ("Passport number is C01X00T47", "passport", "C01X00T47"),
        ("my driver's license is D1234567", "driver_license", "D1234567"),
        ("driving licence: MORGA657054SM9IJ", "driver_license", "MORGA657054SM9IJ"),
        ("driver\u2019s license D123-4567-8901", "driver_license", "D123-4567-8901"),
        ("account number: 12345678", "bank_account", "12345678"),
        ("sort code 20-00-00", "bank_account", "20-00-00"),
        ("routing no. 021000021", "bank_account", "021000021"),
        ("DOB: 1984-03-21", "date_of_birth", "1984-03-21"),
        ("born on 21.03.1984", "date_of_birth", "21.03.1984"),
        ("date of birth is March 21st, 1984", "date_of_birth", "March 21st, 1984"),
    ],
)
def test_only_the_value_is_hidden_not_the_word_before_it(hits: Hits, text: str, rule: str, value: str) -> None:
    assert hits("pii", text) == [(rule, value)]


@pytest.mark.parametrize(
    "text",
    ["passport number required", "a passport photo of 2024", "account was opened on 2024-11-21", "born in 1984",
     "driver's license office", "birthday on 99/99/1999"],
)  # fmt: skip
def test_the_word_alone_is_no_hit(hits: Hits, text: str) -> None:
    assert hits("pii", text) == []


def test_text_that_is_already_redacted_stays_unchanged(hits: Hits) -> None:
    placeholders = [rule.placeholder for rule in build("pii", {}).rules()]
    assert "[SSN]" in placeholders
    assert "[CREDIT_CARD]" in placeholders
    for before in ("SSN ", "passport no. ", "phone: ", "born on ", "account number "):
        for placeholder in placeholders:
            assert hits("pii", f"{before}{placeholder}.") == []


def test_what_is_left_out_is_off(hits: Hits) -> None:
    text = "123-45-6789 joe@example.com"
    assert hits("pii", text, {"entities": {"email": True}}) == [("email", "joe@example.com")]
    assert hits("pii", text, {"entities": ["ssn"]}) == [("ssn", "123-45-6789")]
    with pytest.raises(ValueError, match="every kind of personal data is off"):
        build("pii", {"entities": {"ssn": False}})
