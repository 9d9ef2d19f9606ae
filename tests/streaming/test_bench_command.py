"""`manage.py bench`: the table, the file, and an exit status that says whether a target was missed."""

from __future__ import annotations

import gc
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from django.core.management import CommandError, ManagementUtility, call_command

from streaming.providers.base import available
from tests.bench import anchors, classifiers, gate_hold, gate_speed, gate_worst, registry
from tests.bench.clock import feed_all, peak_growth
from tests.bench.registry import SkipBench, at_least, at_most, bench, context
from tests.bench.rules import TWELVE, many, policy_of
from tests.bench.texts import chunks, mixed


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Benchmarks that measure nothing."""
    registry.benchmarks()
    monkeypatch.setattr(registry, "_BENCHMARKS", {})
    monkeypatch.setattr(registry, "pkgutil", type("NoModules", (), {"iter_modules": staticmethod(lambda _: [])}))

    @bench("good")
    def good():
        """All is well."""
        yield at_most("a", "a figure", 1.2345, 2, "µs", "2.5 µs")
        yield context("b", "another", 12345.6, "characters")

    @bench("bad")
    def bad():
        """It is not."""
        yield at_least("c", "a third", 1, 5, "x")

    @bench("absent")
    def absent():
        """Cannot be measured."""
        raise SkipBench("no such file")


def run(*names: str, **options: object) -> tuple[str, str]:
    out, err = io.StringIO(), io.StringIO()
    call_command("bench", *names, stdout=out, stderr=err, **options)
    return out.getvalue(), err.getvalue()


def test_it_works(fakes: None) -> None:
    out, _ = run("good")
    assert "a figure" in out
    assert "1.23 µs" in out
    assert "<= 2 µs" in out
    assert "12,346 characters" in out


def test_to_know_the_benchmarks_offers_no_provider_of_theirs() -> None:
    assert {"gate_cpu", "memory"} <= registry.benchmarks().keys()
    assert "stamped" not in available()


def test_missed_target_is_named_and_fails_the_run_after_the_file_is_written(fakes: None, tmp_path: Path) -> None:
    path = tmp_path / "new" / "bench.json"
    with pytest.raises(CommandError, match="1 of 3 rows miss their target: c") as failed:
        run(json_file=path)
    assert failed.value.returncode == 1
    listed = json.loads(path.read_text())
    assert all(list(row) == ["name", "measured", "unit", "target", "ok", "anchor"] for row in listed)
    rows = {row["name"]: row for row in listed}
    assert {name: row["ok"] for name, row in rows.items()} == {"a": True, "b": None, "c": False}
    assert rows["a"]["anchor"] == "2.5 µs"
    assert (rows["c"]["measured"], rows["c"]["unit"], rows["c"]["target"]) == (1, "x", ">= 5 x")


def test_what_cannot_be_measured_is_said_and_does_not_fail(fakes: None) -> None:
    _, err = run("absent", "good")
    assert "absent: not measured: no such file" in err


def test_unknown_name_is_refused_with_the_known_ones(fakes: None) -> None:
    with pytest.raises(CommandError, match="good, bad, absent") as refused:
        run("nope")
    assert refused.value.returncode == 2


def test_usage_errors_exit_with_2(fakes: None, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        ManagementUtility(["manage.py", "bench", "good", "--jason", "x"]).execute()
    assert refused.value.code == 2
    assert "--jason" in capsys.readouterr().err


def test_file_that_cannot_be_written_is_refused_before_anything_is_measured(fakes: None, tmp_path: Path) -> None:
    out, err = io.StringIO(), io.StringIO()
    with pytest.raises(CommandError) as refused:
        call_command("bench", "good", json_file=tmp_path, stdout=out, stderr=err)
    assert refused.value.returncode == 2
    assert str(tmp_path) in str(refused.value)
    assert (out.getvalue(), err.getvalue()) == ("", "")


def test_a_terminal_gets_a_bar_and_every_benchmark_runs_once(
    fakes: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    err = io.StringIO()
    monkeypatch.setattr(err, "isatty", lambda: True, raising=False)
    out = io.StringIO()
    call_command("bench", "good", "good", stdout=out, stderr=err)
    assert out.getvalue().count("a figure") == 1
    assert "good …" not in err.getvalue()
    assert "1/1" in capsys.readouterr().err


def test_every_benchmark_runs_and_no_two_rows_share_a_name(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """On texts too short to mean anything: whether a target is met is not asked here."""
    monkeypatch.setattr(gate_speed, "SIZE", 4000)
    monkeypatch.setattr(gate_worst, "SIZE", 1000)
    monkeypatch.setattr(gate_hold, "SIZE", 2000)
    monkeypatch.setattr(classifiers, "CALLS", 2)
    # what the test run itself has piled up need not be searched at each of some hundred collections
    gc.freeze()
    request.addfinalizer(gc.unfreeze)
    known = registry.benchmarks()
    rows = []
    for name in ("gate_cpu", "rules_growth", "rule_pack", "length_growth", "adversarial", "hold", "classifiers"):
        try:
            mine = list(known[name]())
        except SkipBench:  # no rule pack beside this checkout
            assert name == "rule_pack"
            continue
        assert mine
        rows += mine
    assert len({row.name for row in rows}) == len(rows)
    for row in rows:
        assert row.measured >= 0
        assert (row.ok is None) == (not row.target)


def test_every_benchmark_says_what_it_measures() -> None:
    out, _ = run(list_only=True)
    listed = dict(line.split(": ", 1) for line in out.splitlines())
    assert set(listed) >= {"gate_cpu", "rules_growth", "rule_pack", "length_growth", "adversarial", "hold"}
    assert all(listed.values())


def test_texts_and_rules_are_the_same_in_every_run() -> None:
    assert mixed(5000) == mixed.__wrapped__(5000)
    assert "".join(chunks(mixed(5000))) == mixed(5000)
    assert many(20) == many(20)


def forty_megabytes() -> Callable[[], object]:
    return lambda: b"x" * 40_000_000


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory of a process is read from /proc")
def test_growth_of_a_process_is_seen_although_its_parent_is_larger() -> None:
    ballast = b"y" * 120_000_000
    grown = peak_growth("tests.streaming.test_bench_command:forty_megabytes")
    del ballast
    assert 39e6 < grown < 60e6


def test_anchors_find_what_the_gate_finds() -> None:
    """A comparison with an engine that overlooks the values would be worth nothing."""
    planted = " 219-09-9999 joe@mail.example.org 10.20.30.40 AKIAQ4XYZ7LMNOP2RSTU Project Blue Heron "
    text = planted.join(["plain words"] * 21)
    pieces = chunks(text)
    gate = feed_all(policy_of(TWELVE), pieces)
    assert gate.counters.withheld == sum(map(len, planted.split())) * 20 + 2 * 20
    assert anchors.re_once(TWELVE, text) == 100
    assert anchors.partial_all(TWELVE, [*pieces, " "]).found == 100
    assert len(anchors.scan_all(anchors.hyperscan_stream(TWELVE), [piece.encode() for piece in pieces])) >= 100
