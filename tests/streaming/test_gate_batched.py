"""BATCHED guardrails as effects: a deciding sentence is held, order is text order, every cut gives the same ends."""

from __future__ import annotations

from typing import ClassVar

import pytest

from guardrails.findings import Verdict
from guardrails.kinds import base
from guardrails.kinds.base import Config, Kind, all_kinds
from guardrails.performance import Family, PerformanceCharacteristics, PerformanceClass
from guardrails.policy import Policy, compile_policy
from streaming.core.gate import BLOCKED, CHECK, FOUND, REDACTED, RELEASE, Gate
from tests.streaming.drive import every_cut, random_cut

TEXT = "One is fine. Two is bad! He said etc. and left. Three, then."


@pytest.fixture(autouse=True, scope="module")
def slow_kind():
    """A stand-in for local machine learning, registered for this module only; the tests give the verdicts."""

    class SlowKind(Kind[Config]):
        name = "test_slow"
        family = Family.LOCAL_ML
        Config: ClassVar[type[Config]] = Config
        performance = PerformanceCharacteristics(PerformanceClass.MODERATE, 100, 200, 300)

    all_kinds()
    yield
    base._REGISTRY.pop("test_slow")


def policy(action: str = "block", mode: str = "BLOCK", on_error: str = "block", *more: dict[str, object]) -> Policy:
    slow = {"name": "slow", "kind": "test_slow", "mode": mode, "action": action, "on_error": on_error}
    return compile_policy({"policy": "p", "guardrails": [slow, *more]})


SECRET = {
    "name": "r", "kind": "regex", "config": {"rules": [{"id": "id", "pattern": r"\d{3}", "placeholder": "[ID]"}]},
}  # fmt: skip


class Reader:
    """Takes effects and answers checks as told."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.shown = ""
        self.asked = []
        self.findings = []
        self.blocked = False

    def take(self, effects) -> None:
        for effect in effects:
            match effect[0]:
                case "release" | "redacted":
                    self.shown += effect[1]
                case "check":
                    self.asked.append(effect[1])
                case "found":
                    self.findings.append(effect[1])
                case "blocked":
                    self.blocked = True

    def answer(self, verdict=None) -> None:
        while self.asked:
            check = self.asked.pop(0)
            for name in check.guardrails:
                self.take(self.gate.verdict(check.id, name, verdict or Verdict(hit="bad" in check.text, score=0.9)))


def run(chosen: Policy, chunks: list[str], verdict: Verdict | None = None, restore: bool = False) -> Reader:
    reader = Reader(Gate(chosen))
    for chunk in chunks:
        reader.take(reader.gate.feed(chunk))
        reader.answer(verdict)
        if restore:
            reader.gate = Gate.restore(chosen, reader.gate.state())
    reader.take(reader.gate.finish())
    reader.answer(verdict)
    return reader


def test_it_works() -> None:
    reader = run(policy("redact"), list(TEXT))
    assert reader.shown == "One is fine. [SLOW]He said etc. and left. Three, then."
    assert [(f.start, f.end, f.score) for f in reader.findings] == [(13, 25, 0.9)]


def test_a_sentence_is_held_until_it_has_passed() -> None:
    gate = Gate(policy())
    reader = Reader(gate)
    reader.take(gate.feed("One is fine. Two"))
    assert reader.shown == ""
    assert gate.hold is not None
    assert (gate.hold.guardrail, gate.hold.rule, gate.held) == ("slow", "sentence", 16)
    reader.answer()
    assert reader.shown == "One is fine. "
    assert gate.held == 3


def test_block_stops_before_its_sentence() -> None:
    for chunks in (list(TEXT), [TEXT], random_cut(TEXT, 4)):
        reader = run(policy(), chunks)
        assert (reader.shown, reader.blocked) == ("One is fine. ", True)


def test_monitor_and_warn_hold_nothing_and_tell_what_was_exposed() -> None:
    for mode, action in (("MONITOR", "block"), ("BLOCK", "warn")):
        gate = Gate(policy(action, mode))
        reader = Reader(gate)
        reader.take(gate.feed("Two is bad! And"))
        assert reader.shown == "Two is bad! And"
        reader.answer()
        reader.take(gate.finish())
        reader.answer()
        assert [(f.start, f.end, f.exposed) for f in reader.findings] == [(0, 12, 12)]
        assert reader.findings[0].would_have == ("blocked" if mode == "MONITOR" else None)


def test_sentences_are_the_same_for_every_cut() -> None:
    text = "He said etc. and left. Ok? Yes"
    want = None
    for chunks in [[text], list(text), *([text[:i], text[i:]] for i in range(1, len(text)))]:
        gate = Gate(policy())
        checks = [e[1] for c in chunks for e in gate.feed(c) if e[0] == CHECK]
        checks += [e[1] for e in gate.finish() if e[0] == CHECK]
        found = [(c.start, c.end, c.text) for c in checks]
        want = want or found
        assert found == want
    assert [text[start:end] for start, end, _ in want] == ["He said etc. and left. ", "Ok? ", "Yes"]


def test_an_end_without_a_letter_behind_it_counts_after_64_characters_or_at_finish() -> None:
    gate = Gate(policy())
    assert [e for e in gate.feed("He said etc. " + "1" * 63) if e[0] == CHECK] == []
    assert [e[1].text for e in gate.feed("1") if e[0] == CHECK] == ["He said etc. "]


def test_a_sentence_is_at_most_600_characters() -> None:
    gate = Gate(policy())
    checks = [e[1] for c in random_cut("word " * 500, 2) for e in gate.feed(c) if e[0] == CHECK]
    assert checks
    assert all(len(check.text) <= 600 for check in checks)


def test_checks_get_the_raw_text_and_findings_stay_in_text_order() -> None:
    reader = run(policy("redact", "BLOCK", "block", SECRET), list("Call 123 now. Two is bad! And 456."))
    assert reader.shown == "Call [ID] now. [SLOW]And [ID]."
    gate = Gate(policy("redact", "BLOCK", "block", SECRET))
    asked = [e[1].text for e in gate.feed("Call 123 now. Then") if e[0] == CHECK]
    assert asked == ["Call 123 now. "]


def test_the_gate_goes_on_accepting_and_says_how_many_are_unanswered() -> None:
    gate = Gate(policy())
    gate.feed("A one. " * 12 + "B")
    assert gate.unanswered == 12
    assert gate.waiting
    assert gate.held == 85


def test_verdicts_may_come_in_any_order() -> None:
    gate = Gate(policy("redact"))
    reader = Reader(gate)
    reader.take(gate.feed("First one. Second one. Third"))
    second = reader.asked.pop(1)
    reader.take(gate.verdict(second.id, "slow", Verdict(hit=True)))
    assert reader.shown == ""
    reader.answer()
    assert reader.shown == "First one. [SLOW]"


def test_unknown_and_repeated_verdicts_are_refused() -> None:
    gate = Gate(policy())
    check = next(e[1] for e in gate.feed("First one. Second") if e[0] == CHECK)
    gate.verdict(check.id, "slow", Verdict(hit=False))
    for id_ in (check.id, 99):
        with pytest.raises(KeyError):
            gate.verdict(id_, "slow", Verdict(hit=False))


@pytest.mark.parametrize(
    ("on_error", "shown", "blocked", "actions"),
    [("block", "", True, ["block"]), ("allow", "Fine. ", False, []), ("warn", "Fine. ", False, ["warn"])],
)
def test_a_failing_check_obeys_on_error(on_error: str, shown: str, blocked: bool, actions: list[str]) -> None:
    gate = Gate(policy("block", "BLOCK", on_error))
    reader = Reader(gate)
    reader.take(gate.feed("Fine. And"))
    reader.answer(Verdict(hit=False, error="time limit"))
    assert (reader.shown, reader.blocked) == (shown, blocked)
    reader.take(gate.finish())
    reader.answer(Verdict(hit=False))
    assert [str(f.action) for f in reader.findings if f.rule == "error"] == actions


def test_state_survives_with_sentences_open() -> None:
    for chunks in (list(TEXT), random_cut(TEXT, 9)):
        assert run(policy("redact"), chunks, restore=True).shown == run(policy("redact"), [TEXT]).shown
    gate = Gate(policy("redact"))
    check = next(e[1] for e in gate.feed("Two is bad! And") if e[0] == CHECK)
    restored = Gate.restore(policy("redact"), gate.state())
    effects = restored.verdict(check.id, "slow", Verdict(hit=True))
    assert [e[0] for e in effects] == [REDACTED, FOUND]


def test_a_judge_that_decides_holds_the_whole_answer() -> None:
    judge = {"name": "judge", "kind": "ai_judge", "mode": "BLOCK", "config": {"provider": "scripted", "rubric": "r"}}
    chosen = compile_policy({"policy": "p", "guardrails": [judge]})
    gate = Gate(chosen)
    assert gate.feed("All of this waits. ") + gate.feed("This too.") == []
    assert gate.held == 28
    assert str(chosen.bound("response")).endswith("the whole answer")  # type: ignore[arg-type]
    check = next(e[1] for e in gate.finish() if e[0] == CHECK)
    assert (check.text, check.whole) == ("All of this waits. This too.", True)
    assert gate.waiting
    passed = Gate.restore(chosen, gate.state())
    assert [e for e in passed.verdict(check.id, "judge", Verdict(hit=False)) if e[0] == RELEASE] == [
        (RELEASE, "All of this waits. This too.")
    ]
    assert [e[0] for e in gate.verdict(check.id, "judge", Verdict(hit=True))] == [FOUND, BLOCKED]


def test_every_cut_of_a_short_text_shows_the_same() -> None:
    text = "Ok. Bad bad? No."
    want = run(policy("redact"), [text])
    for chunks in every_cut(text[:12]):
        assert run(policy("redact"), [*chunks, text[12:]]).shown == want.shown
