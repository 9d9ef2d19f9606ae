"""`manage.py gate`: a line in, a line out, whatever the line."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from streaming.core.cases import BadCase, parse_case

POLICY = {
    "policy": "p",
    "guardrails": [
        {"kind": "pii", "config": {"entities": {"ssn": True, "email": True}}},
        {
            "name": "phrase",
            "kind": "regex",
            "action": "block",
            "config": {"rules": [{"id": "heron", "pattern": "blue heron"}]},
        },
        {"name": "words", "kind": "keywords", "action": "warn", "keywords": ["acme"]},
        {"name": "watch", "kind": "keywords", "mode": "MONITOR", "keywords": ["zebra"]},
        {"name": "prompts", "kind": "keywords", "applies_to": ["prompt"], "keywords": ["order"]},
    ],
}


@pytest.fixture
def policy_file(tmp_path: Path) -> Path:
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(POLICY))
    return path


def gate(path: Path, lines: bytes, monkeypatch: pytest.MonkeyPatch) -> tuple[list[dict[str, object]], str]:
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    call_command("gate", str(path), stdout=out, stderr=err)
    return [json.loads(line) for line in out.getvalue().splitlines()], err.getvalue()


def case(*chunks: str, **more: object) -> bytes:
    return json.dumps({"id": "c", "chunks": list(chunks), **more}).encode() + b"\n"


def test_it_works(policy_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (result,), _ = gate(policy_file, case("SSN 123-4", "5-6789 ok"), monkeypatch)
    assert result["id"] == "c"
    assert result["action"] == "redact"
    assert result["visible"] == "SSN [SSN] ok"
    assert result["error"] is None
    emissions, held = result["emissions"], result["held"]
    assert isinstance(emissions, list)
    assert isinstance(held, list)
    assert len(emissions) == 3
    assert "".join(emissions) == result["visible"]
    assert "1" not in emissions[0]
    assert len(held) == 2
    assert held[0] == 5


@pytest.mark.parametrize(
    ("text", "action", "visible"),
    [
        ("plain", "allow", "plain"),
        ("an acme thing", "warn", "an acme thing"),
        ("a zebra", "allow", "a zebra"),
        ("mail a@b.example, acme", "redact", "mail [EMAIL], acme"),
        ("a@b.example saw a blue heron", "block", "[EMAIL] saw a "),
        ("an order", "allow", "an order"),
        ("", "allow", ""),
    ],
)
def test_actions(policy_file: Path, monkeypatch: pytest.MonkeyPatch, text: str, action: str, visible: str) -> None:
    for chunks in ([text], list(text), [text, "", ""]):
        (result,), _ = gate(policy_file, case(*chunks), monkeypatch)
        assert (result["action"], result["visible"]) == (action, visible)


def test_findings_are_numbered_and_monitor_says_what_it_would_have_done(
    policy_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (result,), _ = gate(policy_file, case("zebra acme"), monkeypatch)
    findings = result["findings"]
    assert isinstance(findings, list)
    assert [(f["n"], f["guardrail"], f["would_have"], f["exposed"]) for f in findings] == [
        (1, "watch", "blocked", 5),
        (2, "words", None, 4),
    ]


def test_applies_to_chooses_the_guardrails(policy_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (result,), _ = gate(policy_file, case("an order", applies_to="prompt"), monkeypatch)
    assert (result["action"], result["visible"]) == ("block", "an ")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"nonsense", "not JSON"),
        (b"", "not JSON"),
        (b"[]", "a case is a JSON object"),
        (b"\xff", "not UTF-8"),
        (b'{"chunks": []}', "id:"),
        (b'{"id": null, "chunks": []}', "id:"),
        (b'{"id": 1}', "chunks: must be a list"),
        (b'{"id": 1, "chunks": "text"}', "chunks: must be a list"),
        (b'{"id": 1, "chunks": ["a", 2]}', "chunks[1]: must be text"),
        (b'{"id": 1, "chunks": ["a\\ud83d"]}', "chunks[0]: holds half"),
        (b'{"id": 1, "chunks": [], "applies_to": "poem"}', "applies_to: must be one of prompt"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_a_line_that_is_no_case_gets_an_error_line_and_the_run_goes_on(
    policy_file: Path, monkeypatch: pytest.MonkeyPatch, line: bytes, message: str
) -> None:
    first, wrong, last = gate(policy_file, case("one") + line + b"\n" + case("two"), monkeypatch)[0]
    assert (first["visible"], last["visible"]) == ("one", "two")
    assert wrong["error"].startswith("line 2: ")  # type: ignore[attr-defined]
    assert message in str(wrong["error"])
    assert wrong["visible"] is None
    assert wrong.keys() == first.keys()


def test_a_wrong_line_keeps_its_id() -> None:
    with pytest.raises(BadCase) as refused:
        parse_case(b'{"id": "x7", "chunks": 1}')
    assert refused.value.id == "x7"


def test_characters_outside_ascii_and_nul_pass_through(policy_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "é\x00\u2028\U0001f600"
    (result,), _ = gate(policy_file, case(*text), monkeypatch)
    assert result["visible"] == text


def test_guardrails_that_are_not_immediate_are_named_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "policy.json"
    judge = {"name": "harm", "kind": "ai_judge", "mode": "BLOCK", "rubric": "r"}
    path.write_text(json.dumps({**POLICY, "guardrails": [*POLICY["guardrails"], judge]}))  # type: ignore[misc]
    (result,), said = gate(path, case("a text"), monkeypatch)
    assert result["visible"] == "a text"
    assert "not run: harm (ai_judge, DEFERRED)" in said


def test_a_toml_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "policy.toml"
    path.write_text('policy = "p"\n[[guardrails]]\nkind = "keywords"\nkeywords = ["acme"]\n')
    (result,), _ = gate(path, case("acme"), monkeypatch)
    assert result["action"] == "block"


def test_exit_status(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="No such file") as missing:
        call_command("gate", str(tmp_path / "no.json"))
    assert missing.value.returncode == 2
    refused_file = tmp_path / "bad.json"
    refused_file.write_text(
        '{"policy": "p", "guardrails": [{"kind": "regex", "rules": [{"id": "a", "pattern": "("}]}]}'
    )
    with pytest.raises(CommandError, match=r"guardrails\[0\].*pattern") as refused:
        call_command("gate", str(refused_file))
    assert refused.value.returncode == 1
