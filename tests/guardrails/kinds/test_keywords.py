"""Keywords mean what a reader sees."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from .conftest import Hits, build


def test_it_works(hits: Hits) -> None:
    assert hits("keywords", "Buy ACME now", {"keywords": ["acme"]}) == [("acme", "ACME")]


@pytest.mark.parametrize("text", ["assisting", "class", "mass.", "ass_", "assä", "1ass"])
def test_a_word_inside_a_longer_word_passes(hits: Hits, text: str) -> None:
    assert hits("keywords", text, {"keywords": ["ass"]}) == []


@pytest.mark.parametrize("text", ["ass", "an ass.", "(ass)", "ass-like", "ass\nx", "“ass”"])
def test_whole_word_at_every_edge(hits: Hits, text: str) -> None:
    assert hits("keywords", text, {"keywords": ["ass"]}) == [("ass", "ass")]


def test_whole_words_outside_ascii(hits: Hits) -> None:
    assert hits("keywords", "das ist über alles", {"keywords": ["über"]}) == [("über", "über")]
    assert hits("keywords", "ÜBER", {"keywords": ["über"]}) == [("über", "ÜBER")]
    assert hits("keywords", "überall", {"keywords": ["über"]}) == []
    assert hits("keywords", "ПРИВЕТ, мир", {"keywords": ["привет"]}) == [("привет", "ПРИВЕТ")]
    assert hits("keywords", "STRASSE straße", {"keywords": ["straße"]}) == [("straße", "STRASSE"), ("straße", "straße")]


def test_special_letters_fold_without_shifting_what_follows(hits: Hits) -> None:
    assert hits("keywords", "ßßİ\u212a acme", {"keywords": ["acme"]}) == [("acme", "acme")]
    assert hits("keywords", "\u212aey", {"keywords": ["key"]}) == [("key", "\u212aey")]


def test_look_alikes_and_zero_width_characters_do_not_hide_a_word(hits: Hits) -> None:
    for text in ("асme", "a\u200bc\u200bme", "ácmé", "ａｃｍｅ"):
        assert hits("keywords", text, {"keywords": ["acme"]}) == [("acme", text)], text
        assert hits("keywords", text, {"keywords": ["acme"], "fold": False}) == [], text


def test_without_folding_other_alphabets_still_ignore_case(hits: Hits) -> None:
    assert hits("keywords", "Über", {"keywords": ["über"], "fold": False}) == [("über", "Über")]
    assert hits("keywords", "uber", {"keywords": ["über"], "fold": False}) == []
    assert hits("keywords", "Über", {"keywords": ["über"], "fold": False, "case_sensitive": True}) == []


def test_phrase_spacing_is_free(hits: Hits) -> None:
    config = {"keywords": ["blue  heron"]}
    assert hits("keywords", "the blue\n heron", config) == [("blue heron", "blue\n heron")]
    assert hits("keywords", "blueheron", config) == []


def test_words_with_punctuation_are_literal(hits: Hits) -> None:
    assert hits("keywords", "I use C++ and c#.", {"keywords": ["c++", "c#"]}) == [("c++", "C++"), ("c#", "c#")]
    assert hits("keywords", "ccc", {"keywords": ["c+"]}) == []


def test_substring_search_and_case(hits: Hits) -> None:
    assert hits("keywords", "assisting", {"keywords": ["ass"], "whole_word": False}) == [("ass", "ass")]
    assert hits("keywords", "join us", {"keywords": ["US"], "case_sensitive": True}) == []


def test_word_file_becomes_part_of_the_version(tmp_path: Path, hits: Hits) -> None:
    words = tmp_path / "words.txt"
    words.write_text("# a comment\n\nacme\n  blue heron  \n#another\nc#\n", "utf-8")
    kind = build("keywords", {"keywords": ["first"], "file": str(words)})
    assert kind.config.model_dump()["keywords"] == ("first", "acme", "blue heron", "c#")
    assert kind.config.model_dump()["file"] is None
    words.unlink()  # what was saved does not change with the file
    assert hits("keywords", "acme", kind.config.model_dump(mode="json")) == [("acme", "acme")]


@pytest.mark.parametrize(
    ("config", "field", "message"),
    [
        ({}, (), "give `keywords`"),
        ({"keywords": []}, (), "give `keywords`"),
        ({"keywords": [" "]}, ("keywords",), "empty"),
        ({"keywords": ["\u200b"]}, (), "folding removes"),
        ({"keywords": ["x" * 201]}, ("keywords",), "longer than"),
        ({"keywords": "acme"}, ("keywords",), "tuple"),
        ({"keywords": ["a"], "file": "/nowhere/words.txt"}, ("file",), "cannot be read: No such file"),
        ({"keywords": ["a"], "whole_word": "yes"}, ("whole_word",), "boolean"),
        ({"keywords": ["a"], "wholeword": True}, ("wholeword",), "not permitted"),
    ],
)
def test_what_cannot_be_built_is_refused_with_the_field(
    config: dict[str, object], field: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValidationError, match=message) as refused:
        build("keywords", config)
    assert refused.value.errors()[0]["loc"] == field


def test_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    binary = tmp_path / "words.bin"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValidationError, match="not UTF-8"):
        build("keywords", {"file": str(binary)})


def test_two_spellings_of_one_word_are_one_rule() -> None:
    assert [rule.id for rule in build("keywords", {"keywords": ["Acme", "acme", "ácme"]}).rules()] == ["Acme"]
