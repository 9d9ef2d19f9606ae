"""A mark on a text never lies: findings are carried over only where placeholders and hits fit one to one."""

from __future__ import annotations

import random

import pytest

from streaming.audit.screens.overlay import Hit, Overlay, Segment, overlay

ORIGINAL = "call 123-45-6789 or mail a@b.example today"
VISIBLE = "call [SSN] or mail [EMAIL] today"
CHIPS = [(5, "[SSN]"), (19, "[EMAIL]")]
SSN, MAIL = Hit(1, 5, 16, hidden=True), Hit(2, 25, 36, hidden=True)


def runs(found: Overlay) -> list[tuple[str, tuple[int, ...], bool]]:
    return [(one.text, one.numbers, one.chip) for one in found.segments]


def test_it_works() -> None:
    today = Hit(3, ORIGINAL.index("today"), len(ORIGINAL), hidden=False)
    found = overlay(VISIBLE, CHIPS, [SSN, MAIL, today])
    assert found.placed
    assert runs(found) == [
        ("call ", (), False),
        ("[SSN]", (1,), True),
        (" or mail ", (), False),
        ("[EMAIL]", (2,), True),
        (" ", (), False),
        ("today", (3,), False),
    ]


def test_a_hit_over_a_placeholder_and_beyond_covers_it() -> None:
    found = overlay(VISIBLE, CHIPS, [SSN, MAIL, Hit(3, 0, 20, hidden=False)])
    assert runs(found)[:3] == [("call ", (3,), False), ("[SSN]", (1, 3), True), (" or ", (3,), False)]


def test_overlapping_hidden_hits_share_one_placeholder() -> None:
    found = overlay("a [X] b", [(2, "[X]")], [Hit(1, 2, 8, hidden=True), Hit(2, 6, 10, hidden=True)])
    assert runs(found) == [("a ", (), False), ("[X]", (1, 2), True), (" b", (), False)]


def test_what_was_never_shown_is_beyond_the_text() -> None:
    found = overlay("shown", [], [Hit(1, 5, 40, hidden=False), Hit(2, 50, 60, hidden=True)])
    assert found.placed
    assert (found.segments, found.beyond) == ([Segment("shown")], [1, 2])


@pytest.mark.parametrize(
    "chips",
    [[(6, "[SSN]")], [(5, "[SSN]"), (19, "[EMAIL]"), (27, "today")], [(5, "[CARD]"), (19, "[EMAIL]")]],
    ids=["wrong place", "one too many", "wrong words"],
)
def test_placeholders_that_do_not_fit_leave_the_text_without_marks(chips: list[tuple[int, str]]) -> None:
    found = overlay(VISIBLE, chips, [SSN, MAIL])
    assert not found.placed
    assert "".join(one.text for one in found.segments) == VISIBLE
    assert not any(one.numbers for one in found.segments)


def test_no_text_has_no_runs() -> None:
    assert overlay("", [], []).segments == []
    assert overlay("", [(0, "[X]"), (-1, "x")], [Hit(1, 0, 5, hidden=True)]).segments == []


def test_any_text_with_any_hits_is_told_as_it_is() -> None:
    """Hidden spans are replaced as the gate does it; what is marked must be what the hit had covered."""
    rng = random.Random(4)
    for _ in range(2_000):
        original = "".join(rng.choice("abcdefgh") for _ in range(rng.randint(1, 40)))
        visible, chips, hits, done = "", [], [], 0
        while rng.random() < 0.7 and done < len(original):
            start = rng.randint(done, len(original) - 1)
            end = rng.randint(start + 1, len(original))
            label = rng.choice(["[A]", "[LONGER]"])
            visible += original[done:start]
            chips.append((len(visible), label))
            visible += label
            hits.append(Hit(len(hits) + 1, start, end, hidden=True))
            done = end
        visible += original[done:]
        start = rng.randint(0, len(original) - 1)
        seen = Hit(99, start, rng.randint(start + 1, len(original)), hidden=False)
        found = overlay(visible, chips, [*hits, seen])
        assert found.placed
        assert "".join(one.text for one in found.segments) == visible
        assert [one.text for one in found.segments if one.chip] == [label for _, label in chips]
        hidden = {place for hit in hits for place in range(hit.start, hit.end)}
        wanted = "".join(letter for i, letter in enumerate(original) if seen.start <= i < seen.end and i not in hidden)
        assert "".join(one.text for one in found.segments if 99 in one.numbers and not one.chip) == wanted
