"""Benchmarks of real web processes run, on numbers too small to mean anything, and say all that they promise."""

from __future__ import annotations

import pytest

from tests.bench import first_token, gateway, guardrails, memory, readers, stamps
from tests.bench.registry import Row, benchmarks


def rows(name: str) -> dict[str, Row]:
    found = {row.name: row for row in benchmarks()[name]()}
    for row in found.values():
        assert (row.ok is None) == (not row.target)
        assert row.ok in (True, False, None)
    return found


@pytest.mark.parametrize("moment", [0.0, 35_130.0933, 127_999.9])
def test_it_works(moment: float) -> None:
    """A token says when it was sent, to the tenth of a millisecond, also over the turn of its letters."""
    token = stamps.stamp(moment)
    assert (len(token), token[-1]) == (stamps.SIZE, " ")
    for late in (0.0, 0.0004, 1.25, 300):
        assert stamps.late_ms(token, moment + late) == pytest.approx(late * 1000, abs=0.11)


def test_updates_with_and_without_guardrails_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guardrails, "MESSAGES", 2)
    found = rows("rest_update")
    assert set(found) == {"rest_update_p99", "rest_update_p50"}
    assert found["rest_update_p99"].figure.startswith("40 REST updates")
    assert "empty and empty differ by" in found["rest_update_p99"].anchor


@pytest.mark.long
def test_streams_with_and_without_guardrails_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"STREAMS": 6, "TOKENS": 40, "FULL_TOKENS": 20, "ROUNDS": 1}.items():
        monkeypatch.setattr(guardrails, name, value)
    found = rows("guardrails_on_off")
    assert set(found) - {"guardrails_unstreamed"} == {
        "guardrails_cpu_saturated",
        "guardrails_saturated",
        "guardrails_cpu_paced",
        "guardrails_p99",
    }
    assert found["guardrails_saturated"].measured > 0


@pytest.mark.long
def test_first_words_are_timed_for_every_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ANSWERS", "WARM_UP"):
        monkeypatch.setattr(first_token, name, 1)
    found = rows("first_token")
    ours, ends = {"gate", "held", "policy"}, {"scripted", *first_token.ADAPTERS}
    assert set(found) == {f"first_token_{name}" for name in ours | ends}
    assert all(found[f"first_token_{name}"].measured > 0 for name in ("gate", *ends))


def test_the_gates_share_counts_what_is_held() -> None:
    policy = readers.starter(readers.STARTER)
    at_once, held = (first_token._gates_share(policy, chunks)[1] for chunks in (["A lock "], ["536-", "22", " is"]))
    assert (at_once, held) == (0, 2)


@pytest.mark.long
def test_open_sessions_are_weighed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SESSIONS": 12, "WARM_UP": 4, "SHORT_S": 3}.items():
        monkeypatch.setattr(memory, name, value)
    found = rows("memory")
    left = {"memory_rest_left_web", "memory_rest_left_store"}
    assert set(found) == {"memory_rest", "memory_sockets", "memory_sockets_idle", "memory_sockets_store", *left}
    assert found["memory_rest_left_store"].ok, found["memory_rest_left_store"]
    assert found["memory_rest_left_web"].target, "what is left is judged, not only told"
    assert found["memory_sockets_store"].measured > 0.1, "every answer has a log in the store"


@pytest.mark.long
def test_the_gateway_is_compared_with_the_way_past_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"STREAMS": 6, "LENGTH": 20, "FULL_LENGTH": 40, "FULL_ROUNDS": 1, "ANSWERS": 2}.items():
        monkeypatch.setattr(gateway, name, value)
    found = rows("gateway")
    assert set(found) == {"gateway_throughput", "gateway_first", "gateway_first_p99", "gateway_saturated"}
    assert found["gateway_throughput"].measured > 0
    assert found["gateway_saturated"].measured > 0
    assert found["gateway_first"].measured > 0, "the gateway looks at the prompt first"
