"""Chunks whose names have been looked at are not looked at again, and no others are spared."""

from __future__ import annotations

import pytest

from guardrails.findings import AppliesTo
from streaming.gateway.gates import Gates
from streaming.gateway.known import Known
from streaming.gateway.walker import MAX_DEPTH, Json
from tests.streaming.gateway.test_walkers import CARD, openai
from tests.streaming.gateway.walked import REDACTING, WALKERS


def taught(*names: str) -> Known:
    known = Known(4, 10)
    for name in names:
        known.learn(name, name)
    return known


def test_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk like the one before is looked at for its text alone."""
    looked: list[str] = []
    plain = Gates.plain

    def noting(self: Gates, text: str, applies_to: AppliesTo = AppliesTo.RESPONSE, *rest: str, **more: bool) -> str:
        looked.append(text)
        return plain(self, text, applies_to, *rest, **more)

    monkeypatch.setattr(Gates, "plain", noting)
    walker = WALKERS["openai"](Gates(REDACTING))
    shown: list[Json] = []
    for word in ("all ", "is ", "well "):
        looked.clear()
        walker.take(openai({"content": word}))
        shown += walker.drain()
    assert looked == ["content"]
    assert [chunk["choices"][0]["delta"]["content"] for chunk in shown] == ["all ", "is ", "well "]  # type: ignore[index]
    assert shown[-1]["id"] == "c-1"


@pytest.mark.parametrize("late", [{CARD: "x"}, {"said": [{CARD: 1}]}, {"a": {"b": {CARD: None}}}])
def test_a_name_that_comes_behind_chunks_that_are_known_is_looked_at(late: Json) -> None:
    walker = WALKERS["openai"](Gates(REDACTING))
    chunks = [
        openai({"content": "so "}),
        openai({"content": "it "}),
        {**openai({"content": "is"}), **late},
        openai({}, "stop"),
    ]
    shown: list[Json] = []
    for chunk in chunks:
        walker.take(chunk)
        shown += walker.drain()
    walker.finish()
    assert CARD not in str([*shown, *walker.drain()])


@pytest.mark.parametrize("field", ["id", "model", "system_fingerprint"])
def test_what_is_said_around_the_choices_stays_what_was_said_first(field: str) -> None:
    """Also behind a chunk that was like the one before; a piece of a card number is no other name."""
    walker = WALKERS["openai"](Gates(REDACTING))
    said = ["first", "first", CARD[:8], CARD[8:], "first"]
    shown: list[Json] = []
    for word in said:
        walker.take({**openai({"content": "so "}), field: word})
        shown += walker.drain()
    assert [chunk[field] for chunk in shown] == ["first"] * len(said)


def test_only_what_is_known_for_certain_is_covered() -> None:
    known = taught("a", "index")
    assert known.covers({"a": [{"a": 1}, "x"], "index": 9})
    for number in (10, -1, True, 1.0, "0", None):
        assert not known.covers({"a": [{"index": number}]}), number
    assert not known.covers({"a": {"b": 1}})
    assert known.covers({"a": {"a": {"a": {"a": 1}}}})
    assert not known.covers({"a": {"a": {"a": {"a": {"a": 1}}}}})


def test_a_name_that_was_changed_is_never_known() -> None:
    known = taught()
    assert known.learn(CARD, "[CARD]") == "[CARD]"
    assert not known.covers({CARD: 1})


def test_what_is_nested_too_deep_is_cut_off_however_well_its_names_are_known() -> None:
    walker = WALKERS["openai"](Gates(REDACTING))
    deep: object = "below"
    for _ in range(MAX_DEPTH + 2):
        deep = {"a": deep}
    for value in ({"a": "above"}, deep):
        walker.take({**openai({"content": "so "}), "a": value})
    assert "below" not in str(walker.drain())
