"""`manage.py rules`: what it says, and its exit status."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

RULE = {"id": "r", "pattern": "[0-9]{3}-[0-9]{2}", "must_match": ["123-45"], "must_not_match": ["12-34"]}


def policy_file(folder: Path, **rule: object) -> Path:
    path = folder / "policy.json"
    entry = {"name": "g", "kind": "regex", "action": "block", "config": {"rules": [{**RULE, **rule}]}}
    path.write_text(json.dumps({"policy": "p", "guardrails": [entry]}))
    return path


def run(*args: object) -> str:
    out = io.StringIO()
    call_command("rules", *map(str, args), stdout=out, stderr=out)
    return out.getvalue()


def test_it_works(tmp_path: Path) -> None:
    said = run("lint", policy_file(tmp_path))
    assert "g (regex): INSTANT, IMMEDIATE, BLOCK block, 1 rule" in said
    assert "r: holds at most 6 characters (102 with ignorable ones between them), examples 2 of 2 right" in said
    assert "a session holds, response: at most 6 characters, 102 with ignorable ones between them" in said


def test_an_example_that_comes_out_wrong_fails(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="1 example not as written") as failed:
        run("lint", policy_file(tmp_path, must_match=["12"]))
    assert failed.value.returncode == 1


def test_a_refused_rule_fails_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"guardrails\[0\]\.config\.rules\[0\]\.pattern: .*look-ahead") as failed:
        run("lint", policy_file(tmp_path, pattern="a(?=b)"))
    assert failed.value.returncode == 1


def test_a_trimmed_rule_is_shown_as_it_runs(tmp_path: Path) -> None:
    said = run("lint", policy_file(tmp_path, pattern=r"\w{0,5}?x[0-9]", must_match=[], must_not_match=[]))
    assert r"runs as x\d (cut from its left: up to 5 characters)" in said


def test_lint_as_json(tmp_path: Path) -> None:
    report = json.loads(run("lint", policy_file(tmp_path), "--json"))
    assert report["guardrails"][0]["rules"][0]["holds"] == 6
    assert report["failures"] == []


def test_lint_of_a_rule_pack_lists_what_was_not_taken(tmp_path: Path) -> None:
    pack = tmp_path / "pack.toml"
    pack.write_text("""[[rules]]\nid = "a"\nregex = 'k-[0-9]{4}'\n[[rules]]\nid = "b"\nregex = 'a(?=b)'\n""")
    said = run("lint", pack)
    assert "policy pack" in said
    assert "not taken: b: the rule: not accepted (look-ahead) at position 1" in said
    assert json.loads(run("lint", pack, "--json"))["not_taken"]


@pytest.mark.parametrize("args", [("lint",), (), ("no-such-verb",), ("lint", "a", "b")])
def test_wrong_usage(args: tuple[str, ...]) -> None:
    with pytest.raises(CommandError):
        run(*args)


def test_a_missing_file_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="No such file") as missing:
        run("lint", tmp_path / "no.json")
    assert missing.value.returncode == 2


def test_docs_are_written_into_a_page_with_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "x\n"
        + "".join(f"<!-- generated: {n} -->\n<!-- end of generated: {n} -->\n" for n in ("decision table", "kinds"))
    )
    run("docs", "--write", page)
    assert "### `regex`" in page.read_text("utf-8")
    assert "### `regex`" in run("docs")
    page.write_text("no marks")
    with pytest.raises(CommandError, match="no marks"):
        run("docs", "--write", page)
