"""The folding table: per code point, total, idempotent, with a way back to whole original characters."""

from __future__ import annotations

import random
import sys
import unicodedata

import pytest

from guardrails.patterns.charset import SENTINEL
from guardrails.patterns.folding import MAX_RUN, fold_plain, fold_text, joined, table, without_head


def test_it_works() -> None:
    assert fold_plain("Ｓｅсrеt １２３ ｅ\u0301") == "Secret 123 e"


def test_ascii_folds_to_itself() -> None:
    assert not [char for char in map(chr, range(128)) if char in table().fold]


def test_folding_twice_is_folding_once() -> None:
    for target in set(table().fold.values()):
        assert fold_plain(target) == target


@pytest.mark.parametrize(("a", "b"), [("0", "O"), ("1", "l"), ("rn", "m"), ("|", "l"), ("5", "S")])
def test_digits_and_letters_never_fold_into_each_other(a: str, b: str) -> None:
    assert fold_plain(a) != fold_plain(b)


def test_decimal_digits_fold_by_value_and_letters_only_to_letters() -> None:
    for char, target in table().fold.items():
        if unicodedata.category(char) == "Nd":
            assert target == str(unicodedata.decimal(char))
        elif target and char != SENTINEL:
            assert all(unicodedata.category(piece).startswith("L") for piece in target), (char, target)


def test_composed_and_decomposed_spelling_fold_alike() -> None:
    for code in range(0xC0, 0x250):
        decomposed = unicodedata.normalize("NFD", chr(code))
        assert fold_plain(chr(code)) == fold_plain(decomposed), chr(code)


def test_a_run_of_ignorables_becomes_one_sentinel() -> None:
    for count in (0, 1, MAX_RUN, MAX_RUN + 1, MAX_RUN + 2, 100):
        text = fold_text("a" + "\u200b" * count + "b").text
        assert text == ("ab" if count <= MAX_RUN else f"a{SENTINEL}b")


def test_the_sentinel_itself_is_no_way_in() -> None:
    assert fold_text(f"a{SENTINEL}b").text == "a\ufffdb"


def test_offsets_lead_back_to_whole_characters() -> None:
    folded = fold_text("xßy\u200bz", base=10)
    assert folded.text == "xssyz"
    assert [folded.start(i) for i in range(6)] == [10, 11, 11, 12, 14, 15]
    assert [folded.end(i) for i in range(1, 6)] == [11, 12, 12, 13, 15]


def test_growing_and_cutting_is_the_same_as_folding_at_once() -> None:
    chance = random.Random(3)
    alphabet = "aß\u200b\u0301é漢1１ "
    for _ in range(300):
        text = "".join(chance.choice(alphabet) for _ in range(chance.randint(0, 40)))
        at, drop = sorted((chance.randint(0, len(text)), chance.randint(0, len(text))))[::-1]
        grown = joined(fold_text(text[:at]), text[at:])
        whole = fold_text(text)
        assert (grown.text, grown.run) == (whole.text, whole.run)
        assert [grown.start(i) for i in range(len(grown.text))] == [whole.start(i) for i in range(len(whole.text))]
        cut = without_head(grown, drop)
        run = fold_text(text[:drop]).run
        rest = fold_text(text[drop:], base=drop, run=run)
        assert cut.text == rest.text
        assert [cut.start(i) for i in range(len(cut.text))] == [rest.start(i) for i in range(len(rest.text))]


def test_the_table_knows_every_combining_mark_of_this_python() -> None:
    missing = [
        code
        for code in range(sys.maxunicode)
        if unicodedata.category(chr(code)) == "Mn" and chr(code) not in table().fold
    ]
    assert len(missing) < 100  # newer Unicode versions add a few; the table is versioned and stays
