"""The table of what is caught in which disguise is measured, and the page says what was measured."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError

from guardrails.findings import AppliesTo
from guardrails.policy import compile_policy
from streaming import disguises
from streaming.core.gate import gate_text

PAGE = Path(__file__).resolve().parents[2] / "docs" / "gateway-limits.md"
PII = compile_policy({"policy": "p", "guardrails": [{"name": "pii", "kind": "pii", "action": "block"}]})


def test_it_works() -> None:
    page = PAGE.read_text("utf-8")
    assert disguises.filled_in(page) == page, "run: manage.py gateway_limits --write docs/gateway-limits.md"
    for name in disguises.starters():
        assert f"`{name}`" in page
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ") and " of " in line]
    assert len(rows) == len(disguises.DISGUISES)
    plain, encoded = ([cell.split() for cell in row[1:]] for row in rows[:2])
    assert all(caught == looked_for for caught, _, looked_for, *_ in plain)
    assert all(int(looked_for) - int(caught) == 1 for caught, _, looked_for, *_ in encoded), "all but the code name"


def test_a_value_counts_only_when_all_of_it_is_hidden() -> None:
    text = "to joe@example.com now"
    assert disguises.hidden(PII, text, 3, 18)
    assert disguises.hidden(PII, text, 3, 22), "nothing is shown behind a block"
    assert not disguises.hidden(PII, text, 2, 18)
    assert not disguises.hidden(compile_policy({"policy": "p", "guardrails": []}), text, 3, 18)
    assert not disguises.caught(PII, ["joe@exam", "ple.com"])


def test_every_disguise_changes_what_is_written() -> None:
    for label, disguise in disguises.DISGUISES[1:]:
        changed = [value for value in disguises.VALUES if disguise(value) != [value]]
        assert len(changed) >= 2, label
    base = disguises.starters()["basic"]
    assert all(disguises.caught(base, [value]) for value in disguises.VALUES)
    assert gate_text(base, disguises.SENTENCE, applies_to=AppliesTo.RESPONSE).findings == []


def test_the_command_prints_or_writes_the_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(disguises, "table", lambda: "| a table |")
    out = StringIO()
    call_command("gateway_limits", stdout=out)
    assert out.getvalue() == "| a table |\n"
    page = tmp_path / "page.md"
    page.write_text(f"before {disguises.BEGIN} stale {disguises.END} after", "utf-8")
    call_command("gateway_limits", write=page, stdout=out)
    assert page.read_text("utf-8") == f"before {disguises.BEGIN}\n| a table |\n{disguises.END} after"
    page.write_text("no marks", "utf-8")
    with pytest.raises(CommandError, match="no marks for the table"):
        call_command("gateway_limits", write=page)
