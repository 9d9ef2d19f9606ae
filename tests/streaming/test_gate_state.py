"""What a gate keeps between two chunks belongs to one policy version and one engine, and does not grow with the text.

What the automaton keeps is bounded too, and how often it forgets changes nothing that is shown.
"""

from __future__ import annotations

import json
import random

import pytest

from guardrails.policy import Policy, compile_policy
from streaming.core.gate import FOUND, REDACTED, RELEASE, Gate
from streaming.core.snapshot import FORMAT, GateState, StateError
from tests.streaming.drive import drive, random_cut
from tests.streaming.oracle import expected

SSN, CARD = "219-09-9999", "4111 1111 1111 1111"
DOCUMENT: dict[str, object] = {"policy": "kept", "guardrails": [{"name": "pii", "kind": "pii"}]}
PROSE = "The quick brown fox has 12 plates, asks jo at noon, and pays 41 for 9-ish. "
TINY = 40_000
"""Bytes: a cache of a few dozen states."""


def policy_of(*, version: int = 1, digest: str = "sha256:one", name: str = "kept") -> Policy:
    return compile_policy({**DOCUMENT, "policy": name}, version=version, digest=digest)


POLICY = policy_of()


def stored(gate: Gate) -> GateState:
    """The state as another process reads it."""
    state: GateState = json.loads(json.dumps(gate.state()))
    return state


def test_it_works() -> None:
    gate = Gate(POLICY)
    gate.feed("My number is 219-0")
    again = Gate.restore(POLICY, stored(gate))
    assert next(effect[1] for effect in again.feed("9-9999, ok") if effect[0] != FOUND) == "[SSN]"


# -- whose it is -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "other",
    [policy_of(digest="sha256:two"), policy_of(digest=""), policy_of(name="another")],
    ids=["another digest", "never published", "another name"],
)
def test_a_state_of_another_policy_is_refused(other: Policy) -> None:
    gate = Gate(POLICY)
    gate.feed("My number is 219-0")
    with pytest.raises(StateError, match="another policy version") as refused:
        Gate.restore(other, stored(gate))
    assert refused.value.permanent  # trying again cannot help


@pytest.mark.parametrize("written", [0, FORMAT + 1, None, "1"])
def test_a_state_of_another_format_is_refused(written: object) -> None:
    state = stored(Gate(POLICY))
    state["format"] = written  # type: ignore[typeddict-item]
    with pytest.raises(StateError, match="state format"):
        Gate.restore(POLICY, state)


def test_a_state_without_a_format_is_refused() -> None:
    with pytest.raises(StateError, match="state format"):
        Gate.restore(POLICY, {})  # type: ignore[typeddict-item]


# -- how large it is ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", ["", f"{SSN} and {CARD}. "], ids=["prose", "findings"])
@pytest.mark.parametrize("held", ["", "219-09-99"], ids=["nothing held", "a number held"])
def test_a_state_has_the_same_size_after_a_hundred_thousand_characters(more: str, held: str) -> None:
    sizes = []
    for length in (1_000, 100_000):
        turns = length // len(PROSE + more)
        gate = Gate(POLICY)
        for chunk in random_cut((PROSE + more) * turns, 5):
            gate.feed(chunk)
        gate.feed(held)
        state = stored(gate)
        assert state["tail"].endswith(held)
        sizes.append(len(json.dumps({key: 0 if isinstance(value, int) else value for key, value in state.items()})))
        # offsets get longer with the text, by a digit or two each
        assert len(json.dumps(state)) < 2_000
    few, many = sizes
    assert many <= few + 8 * len("100000")


# -- what is cached ----------------------------------------------------------------------------------------------


def test_a_tiny_cache_shows_what_a_large_one_shows() -> None:
    documents = {**DOCUMENT, "guardrails": [
        {"name": "pii", "kind": "pii"}, {"name": "secrets", "kind": "secrets"},
        {"name": "gap", "kind": "regex", "config": {"rules": [
            {"id": "gap", "pattern": "fox.{0,40}owl", "placeholder": "[GAP]"}]}}]}  # fmt: skip
    large, tiny = compile_policy(documents), compile_policy(documents)
    scanners = [lane.scanner for lane in Gate(tiny)._plan.lanes]
    for scanner in scanners:
        scanner.budget = TINY
    chance = random.Random(3)
    parts = [
        "The fox saw an owl. ", f"{SSN} ", f"card {CARD}, ", "jo.doe@mail.example.org ", "ghp_" + "a1B2c3D4e5F6" * 3,
        "漢字\u200b", "ｆｏｘ １２３-45-6789 ", "password = 'q8Zr4Lw9Xb2' ", "\U0001f642 2024-11-21 ", "fox fox ",
    ]  # fmt: skip
    for seed in range(6):
        text = "".join(chance.choice(parts) for _ in range(8))
        want = expected(large, text)
        for chunks in (list(text), random_cut(text, seed), [text]):
            for policy in (large, tiny):
                got = drive(policy, chunks, visible=want.visible)
                assert (got.visible, got.findings) == (want.visible, want.findings), (text, chunks)
    assert sum(scanner.flushes for scanner in scanners) > 10, "the cache was never full, so nothing was shown"
    assert all(lane.scanner.flushes == 0 for lane in Gate(large)._plan.lanes)


def test_a_tiny_cache_stays_tiny_whatever_comes() -> None:
    policy = compile_policy(DOCUMENT)
    gate = Gate(policy)
    scanners = [lane.scanner for lane in gate._plan.lanes]
    for scanner in scanners:
        scanner.budget = TINY
    chance = random.Random(9)
    text = "".join(chance.choice("ab1-@. 4\u200b漢é") for _ in range(3_000))
    shown = ""
    for chunk in random_cut(text, 2):
        shown += "".join(effect[1] for effect in gate.feed(chunk) if effect[0] in (RELEASE, REDACTED))
        # one step may go beyond it: it is what makes the scanner forget
        assert all(scanner.used < 3 * TINY for scanner in scanners)
    shown += "".join(effect[1] for effect in gate.finish() if effect[0] in (RELEASE, REDACTED))
    assert shown == drive(compile_policy(DOCUMENT), [text]).visible
