"""`manage.py rules import` and the verbs of a version's life, each with its exit status."""

from __future__ import annotations

import io
import json
import tomllib
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from guardrails import selectors
from guardrails.models import Policy, PolicyVersion
from guardrails.policy import normalise
from streaming.core.gate import gate_text

pytestmark = pytest.mark.django_db

DOCUMENT = {"policy": "desk", "description": "one", "guardrails": [{"kind": "keywords", "keywords": ["acme"]}]}


def write(folder: Path, **more: object) -> Path:
    path = folder / "desk.json"
    path.write_text(json.dumps({**DOCUMENT, **more}))
    return path


def run(*args: object) -> str:
    out = io.StringIO()
    call_command("rules", *map(str, args), stdout=out, stderr=out)
    return out.getvalue()


def fails(*args: object) -> tuple[int, str]:
    with pytest.raises(CommandError) as failed:
        run(*args)
    return failed.value.returncode, str(failed.value)


def test_it_works(tmp_path: Path) -> None:
    said = run("import", write(tmp_path), "--publish", "--sign", "--activate")
    assert "desk: draft with 1 guardrail" in said
    assert "published version 1, sha256:" in said
    assert "version 1 is active (serial 1)" in said
    policy = selectors.active_policy("desk")
    assert (policy.version, [guardrail.kind for guardrail in policy.guardrails]) == (1, ["keywords"])


TOML = """
policy = "desk"
description = "one"

[[guardrails]]
name = "words"
kind = "keywords"
action = "redact"
[guardrails.config]
keywords = ["acme", "z\u00fcrich"]

[[guardrails]]
name = "keys"
kind = "regex"
action = "block"
[guardrails.config]
[[guardrails.config.rules]]
id = "key"
pattern = '''\\bkey-([0-9]{4})\\b'''
secret_group = 1
must_match = ["key-1234"]
"""


def test_a_policy_in_toml_is_imported_published_and_at_work(tmp_path: Path) -> None:
    path = tmp_path / "desk.toml"
    path.write_text(TOML, "utf-8")
    said = run("import", path, "--publish", "--sign", "--activate")
    assert "desk: draft with 2 guardrails" in said
    assert "version 1 is active" in said
    policy = selectors.active_policy("desk")
    assert gate_text(policy, "In Zürich, key-1234.").action == "block"
    assert gate_text(policy, "In Zürich, key-12345.").action == "redact"


def test_a_policy_means_the_same_in_toml_and_in_json(tmp_path: Path) -> None:
    drafts = []
    for suffix, text in ((".toml", TOML), (".json", json.dumps(tomllib.loads(TOML)))):
        path = (tmp_path / "desk").with_suffix(suffix)
        path.write_text(text, "utf-8")
        run("import", path)
        drafts.append(Policy.objects.get(name="desk").draft)
    assert drafts[0] == drafts[1]
    assert normalise(tomllib.loads(TOML)) == normalise(drafts[0])


def test_a_mistake_in_toml_is_refused_with_its_place_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "desk.toml"
    path.write_text(TOML.replace("secret_group = 1", "secret_group = = 1"), "utf-8")
    code, said = fails("import", path)
    assert "line" in said
    path.write_text(TOML.replace("secret_group = 1", "secret_groups = 1"), "utf-8")
    assert (code, fails("import", path)[0]) == (1, 1)
    assert "guardrails[1].config.rules[0]" in fails("import", path)[1]
    assert not Policy.objects.exists()


def test_without_flags_only_the_draft_is_stored(tmp_path: Path) -> None:
    run("import", write(tmp_path), "--as", "other")
    policy = Policy.objects.get(name="other")
    assert policy.draft is not None
    assert policy.draft["policy"] == "other"
    assert policy.versions.count() == 0
    assert "other, has a draft" in run("list")


@pytest.mark.parametrize("flags", [["--sign"], ["--activate"], ["--publish", "--activate"]])
def test_a_step_that_is_left_out_is_wrong_usage_and_changes_nothing(tmp_path: Path, flags: list[str]) -> None:
    assert fails("import", write(tmp_path), *flags)[0] == 2
    assert not Policy.objects.exists()


def test_a_refused_document_changes_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, guardrails=[{"kind": "nose"}])
    status, said = fails("import", path, "--publish")
    assert (status, "guardrails[0].kind" in said) == (1, True)
    assert not Policy.objects.exists()


def test_examples_that_come_out_wrong_are_not_published(tmp_path: Path) -> None:
    rule = {"id": "r", "pattern": "a", "must_match": ["b"]}
    path = write(tmp_path, guardrails=[{"kind": "regex", "config": {"rules": [rule]}}])
    status, said = fails("import", path, "--publish")
    assert (status, "guardrails[0].config.rules[0].must_match[0]: regex/r must match" in said) == (1, True)
    assert Policy.objects.get().versions.count() == 0


def test_a_rule_pack_becomes_a_policy_that_runs(tmp_path: Path) -> None:
    pack = tmp_path / "pack.toml"
    pack.write_text("""[[rules]]\nid = "a"\nregex = 'k-([0-9]{4})'\n[[rules]]\nid = "b"\nregex = 'a(?=b)'\n""")
    said = run("import", pack, "--as", "secrets", "--publish", "--sign", "--activate")
    assert "secrets: draft with 1 guardrail, 1 rule" in said
    assert "not taken: b: the rule: not accepted (look-ahead)" in said
    (guardrail,) = selectors.active_policy("secrets").guardrails
    assert [rule.rule.id for rule in guardrail.rules] == ["a"]


def test_a_rule_pack_of_the_usual_size_can_be_signed_and_run(tmp_path: Path) -> None:
    words = ", ".join(f'"word-number-{n}"' for n in range(6_000))
    pack = tmp_path / "pack.toml"
    pack.write_text(f"""[[rules]]\nid = "a"\nregex = 'k-([0-9]{{4}})'\n[[rules.allowlists]]\nstopwords = [{words}]\n""")
    assert pack.stat().st_size > 100_000
    run("import", pack, "--publish", "--sign", "--activate")
    assert selectors.active_policy("pack").version == 1


def test_a_versions_life_step_by_step(tmp_path: Path) -> None:
    run("import", write(tmp_path), "--publish")
    assert fails("activate", "desk")[0] == 1
    assert "unsigned" in run("list")
    run("sign", "desk")
    assert fails("sign", "desk")[0] == 1
    run("activate", "desk", 1)
    run("import", write(tmp_path, description="two"))
    run("publish", "desk")
    assert fails("publish", "desk")[0] == 1
    run("sign", "desk", 2)
    run("activate", "desk")
    assert selectors.active_policy("desk").version == 2
    assert "2  sha256:" in run("list")
    assert "(serial 3)" in run("rollback", "desk")
    assert selectors.active_policy("desk").version == 1
    assert fails("rollback", "desk", 2)[0] == 1


def test_what_is_exported_is_what_was_imported(tmp_path: Path) -> None:
    run("import", write(tmp_path), "--publish", "--sign", "--activate")
    assert json.loads(run("export", "desk")) == normalise(DOCUMENT)
    assert json.loads(run("export", "desk", 1)) == normalise(DOCUMENT)


@pytest.mark.parametrize(
    "args", [("publish", "no"), ("sign", "no"), ("activate", "no", "1"), ("rollback", "no"), ("export", "no")]
)
def test_an_unknown_policy_is_said(args: tuple[str, ...]) -> None:
    assert fails(*args) == (1, "there is no policy 'no'")


def test_an_unknown_version_is_said(tmp_path: Path) -> None:
    run("import", write(tmp_path))
    assert fails("sign", "desk") == (1, "desk: there is no version; its draft is not published")
    assert fails("export", "desk", 7) == (1, "desk: there is no version 7")
    assert fails("rollback", "desk")[0] == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"colour": "red"}, "colour: unknown key"),
        ({"guardrails": [{"kind": "keywords", "keywords": ["a"], "colour": 1}]}, "guardrails[0].colour: unknown key"),
        ({"guardrails": [{"kind": "keywords", "config": {"keywords": ["a"], "colour": 1}}]},
         "guardrails[0].config.colour: unknown key"),
        ({"guardrails": [{"kind": "regex", "config": {"rules": [{"id": "a", "pattern": "b", "colour": 1}]}}]},
         "guardrails[0].config.rules[0].colour: unknown key"),
        ({"guardrails": [{"kind": "ai_judge", "rubric": "r", "client": True}]},
         "guardrails[0].client: kind 'ai_judge' cannot be sent to clients"),
        ({"guardrails": [{"kind": "regex", "config": {"rules": [
            {"id": "a", "pattern": "b", "must_match": ["c"]}]}}]},
         "guardrails[0].config.rules[0].must_match[0]: regex/a must match, but does not: 'c'"),
    ],
    ids=range(6),
)  # fmt: skip
def test_what_must_not_be_published_is_refused_with_its_place(
    changes: dict[str, object], said: str, tmp_path: Path
) -> None:
    status, words = fails("import", write(tmp_path, **changes), "--publish", "--sign", "--activate")
    assert status == 1
    assert said in words
    assert not PolicyVersion.objects.exists()


def test_steps_out_of_order_are_refused_with_the_reason(tmp_path: Path) -> None:
    run("import", write(tmp_path), "--publish")
    assert fails("activate", "desk") == (1, "desk v1 is not signed")
    assert fails("rollback", "desk") == (1, "desk has no active version to roll back from")
    assert fails("bundle", "desk")[0] == 1
    assert fails("rollout", "desk", "--percent", 5)[0] == 1
    run("sign", "desk")
    run("activate", "desk")
    assert fails("rollback", "desk") == (1, "no version of desk older than version 1 was ever active")
    run("import", write(tmp_path, description="two"))
    assert fails("sign", "desk") == (1, "desk v1 is signed already")  # the draft is no version
