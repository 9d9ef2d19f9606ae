"""Topics are touched where one of their words stands."""

from __future__ import annotations

import pytest

from guardrails.kinds.topics import KNOWN_TOPICS

from .conftest import Hits, build


def test_it_works(hits: Hits) -> None:
    assert hits("topics", "Place a bet at the casino!", {"deny": ["gambling"]}) == [
        ("gambling", "Place a bet"),
        ("gambling", "casino"),
    ]


@pytest.mark.parametrize(("topic", "term"), [(topic, term) for topic, terms in KNOWN_TOPICS.items() for term in terms])
def test_every_built_in_word_is_found(hits: Hits, topic: str, term: str) -> None:
    assert (topic, term.upper()) in hits("topics", f"– {term.upper()}.", {"deny": [topic]})


def test_allowed_topics_leave_every_other_known_one_denied(hits: Hits) -> None:
    config = {"allow": ["gambling", "alcohol"]}
    assert hits("topics", "beer in the casino, far from politics", config) == []
    assert [rule for rule, _ in hits("topics", "vote for cocaine", config)] == ["politics", "drugs"]


def test_denied_wins_over_allowed(hits: Hits) -> None:
    config = {"allow": ["gambling"], "deny": ["gambling"]}
    assert hits("topics", "casino", config) == [("gambling", "casino")]


def test_a_word_of_an_allowed_topic_is_no_hit_of_another(hits: Hits) -> None:
    config = {"allow": ["bars"], "topics": {"bars": ["whisky", "pub"]}}
    assert hits("topics", "whisky", config) == []
    assert hits("topics", "vodka", config) == [("alcohol", "vodka")]


def test_whole_words_only(hits: Hits) -> None:
    assert hits("topics", "beers unscathed, murderball", {"deny": ["alcohol", "violence"]}) == []


@pytest.mark.parametrize(
    ("config", "message"),
    [({}, "deny"), ({"deny": ["weather"]}, "unknown topic 'weather'"), ({"allow": ["weather"]}, "unknown topic"),
     ({"deny": ["x"], "topics": {"x": []}}, "at least one word"),
     ({"deny": ["x"], "topics": {"x": [" "]}}, "no empty one")],
)  # fmt: skip
def test_what_cannot_be_built_is_refused(config: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("topics", config)
