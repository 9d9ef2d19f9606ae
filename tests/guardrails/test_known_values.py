"""Values that are known: found in any text of the request, in any spelling of the same words, and in no longer word."""

from __future__ import annotations

import time

import pytest

from guardrails.findings import Action, Finding, Mode
from guardrails.known_values import KnownValues
from guardrails.masking import Masker

KEY = b"a key of this installation, long enough"


def replaced(text: str, *values: str, apart: tuple[tuple[int, int], ...] = ()) -> str:
    return KnownValues((value, "DATA") for value in values).replaced(text, apart, lambda said, sort: "~")


def test_it_works() -> None:
    assert replaced("noted 123456789, thanks", "123456789") == "noted ~, thanks"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("123456789", "123456789"), ("no.123456789.", "123456789"), ("x_123456789_y", "123456789"),
        ("?id=%20123456789%20", "123456789"), ("50%123456789", "123456789"), ("%31%32%33456789", "123456789"),
        ("１２３４５６７８９", "123456789"), ("d1234567", "D1234567"), ("12 34 56 78", "12-34-56-78"),
        ("12%2D34%2D56%2D78", "12-34-56-78"), ("12-34-56-78", "12%2D34%2D56%2D78"),
        ("ann%40exam34.com", "ann@exam34.com"),
               ("blue+heron", "Blue Heron"), ("BLUE%20HERON", "Blue Heron"), ("Jos%C3%A9 Ruiz", "José Ruiz"),
    ],
)  # fmt: skip
def test_the_same_words_are_the_value_whatever_stands_between_and_around(text: str, value: str) -> None:
    shown = replaced(text, value)
    assert "~" in shown
    assert "34" not in shown


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1123456789", "123456789"), ("1234567890", "123456789"), ("a123456789", "123456789"),
        ("12, 34, 56, 78", "12-34-56-78"), ("12 34", "12-34-56-78"), ("1234", "1234"), ("", "123456789"),
    ],
)  # fmt: skip
def test_another_word_and_short_values_stay(text: str, value: str) -> None:
    assert replaced(text, value) == text


def test_the_longest_value_wins_and_a_shorter_one_is_found_elsewhere() -> None:
    assert replaced("12345 67890 then 12345", "12345", "12345 67890") == "~ then ~"


def test_what_is_apart_stays() -> None:
    assert replaced("heron heron", "heron", apart=((0, 5),)) == "heron ~"


def test_many_values_cost_what_the_text_costs() -> None:
    """20,000 values and a text full of them: no pairs are compared."""
    values = [f"value {number}" for number in range(20_000)]
    began = time.process_time()
    assert replaced(" ; ".join(values), *values) == " ; ".join("~" for _ in values)
    assert time.process_time() - began < 30


def test_values_that_begin_alike_are_told_apart_in_one_pass() -> None:
    values = ["a." * many + "a@x.de" for many in range(120)]
    began = time.process_time()
    text = "a." * 20_000 + "a@x.de"
    assert replaced(text, *values) == "a." * (20_000 - 119) + "~"
    assert time.process_time() - began < 20


@pytest.mark.timeout(60)
@pytest.mark.parametrize("before", ["", "a", "\\u0061", "\\n"])
def test_a_million_backslashes_that_are_no_escape_cost_what_the_text_costs(before: str) -> None:
    text = before + "\\" * 1_000_000 + " heron"
    assert replaced(text, "heron") == text[:-5] + "~"
    assert replaced("heron", text[:-6]) == "heron", "nor in a value that is looked for"


@pytest.mark.parametrize("how_often", [1, 2, 3, 4, 9])
def test_an_escape_that_was_escaped_any_number_of_times_is_read(how_often: int) -> None:
    by = "\\" * how_often
    assert replaced(f"a{by}nheron{by}tb", "heron") == f"a{by}n~{by}tb"
    assert replaced(f"her{by}u006fn", "heron") == "~"
    assert replaced(f"{by}x68er{by}u006fn{by}", "heron") == f"~{by}"
    assert replaced(f"blue{by}u0020heron", "blue heron") == "~"


def test_values_come_back_as_each_was_written_and_placeholders_are_left_alone() -> None:
    masker = Masker([KEY], caller="a", conversation="c")
    found = Finding("pii", "pii", "driver_license", "driver_license", 3, 11, Mode.BLOCK, Action.MASK)
    masked = masker.mask("dl D1234567", [found], [(3, "[DL]")], masking=frozenset({"pii"}))
    swept = masker.swept(f"{masked} and d1234567")
    first, second = swept.removeprefix("dl ").split(" and ")
    assert (masker.restored(first), masker.restored(second)) == ("D1234567", "d1234567")
    assert "-DRIV-" in second
    assert masker.swept(swept) == swept


def test_what_only_looked_like_a_placeholder_is_no_value() -> None:
    masker = Masker([KEY], caller="a", conversation="c")
    forged = "MASK-MAIL-BCDFG-HJKLM-NPQRS-TVW"
    sent = masker.mask(f"say {forged}")
    assert masker.swept(sent) == sent
