"""A block in one channel stops the others: what they hold is never released."""

from __future__ import annotations

from streaming.core.gate import FOUND, RELEASE, Gate
from tests.streaming.drive import regex_policy

POLICY = regex_policy(("redact", [("name", "abcd")]), ("warn", [("seen", "xy.{0,5}z")]))


def test_it_works() -> None:
    gate = Gate(POLICY)
    assert gate.feed("hello ab") == [(RELEASE, "hello ")]
    assert gate.stop() == []
    assert gate.finish() == []
    assert (gate.blocked, gate.held) == (True, 0)


def test_what_comes_behind_the_stop_is_not_shown() -> None:
    gate = Gate(POLICY)
    gate.feed("ab")
    gate.stop()
    assert gate.feed("xyz and more") == []
    assert gate.finish() == []


def test_a_finding_that_began_before_the_stop_is_still_recorded() -> None:
    gate = Gate(POLICY)
    gate.feed("see xy12")
    effects = [*gate.stop(), *gate.feed("3z"), *gate.finish()]
    assert [(e[0], e[1].start, e[1].end, e[1].exposed) for e in effects] == [(FOUND, 4, 10, 4)]


def test_state_survives_the_stop() -> None:
    gate = Gate(POLICY)
    gate.feed("see xy12")
    gate.stop()
    restored = Gate.restore(POLICY, gate.state())
    assert [e[0] for e in (*restored.feed("3z"), *restored.finish())] == [FOUND]
