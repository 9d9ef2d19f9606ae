"""What leaves the server is what its author offered, in a form that means the same in the client's engine."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import pytest

from guardrails.client import subset as subset_module
from guardrails.client.subset import Subset, client_subset, folding_digest
from guardrails.findings import Mode
from guardrails.kinds.base import all_kinds
from guardrails.patterns import folding
from guardrails.patterns.validators import iban_forms
from guardrails.performance import Family
from guardrails.policy import PolicyError, compile_policy

SCRIPT = Path(__file__).with_name("client_spans.js")
STARTERS = Path(subset_module.__file__).parents[1] / "starters"
Json = dict[str, Any]


def subset(*guardrails: Json) -> Subset:
    return client_subset(compile_policy({"policy": "p", "guardrails": list(guardrails)}), version=3, digest="sha256:d")


def guardrails_of(found: Subset) -> list[Json]:
    return cast("list[Json]", found.payload["guardrails"])


def rules_of(found: Subset) -> list[Json]:
    return [rule for guardrail in guardrails_of(found) for rule in guardrail["rules"]]


def regex(*patterns: str, **more: object) -> Json:
    return {"kind": "regex", "client": True, "patterns": list(patterns), **more}


def reasons(found: Subset) -> str:
    return "\n".join(map(str, found.left_out))


def test_it_works() -> None:
    found = subset(regex("k-[0-9]{4}", "b(a+)r", secret_group=None), {"kind": "length", "max_chars": 5})
    assert found.failures == ()
    assert (found.payload["policy"], found.payload["version"], found.payload["digest"]) == ("p", 3, "sha256:d")
    assert found.payload["folding"] == {"version": 1, "digest": folding_digest()}
    (guardrail,) = guardrails_of(found)
    assert (guardrail["name"], guardrail["action"]) == ("regex", "redact")
    assert guardrail["applies_to"] == ["prompt", "response"]
    first, second = guardrail["rules"]
    assert (first["id"], first["pattern"], first["flags"], first["bound"]) == (
        "pattern-1",
        r"[k][\u{2d}][0-9]{4,4}",
        "u",
        6,
    )
    assert any(vector["spans"] for vector in first["vectors"])
    assert any(not vector["spans"] for vector in first["vectors"])
    assert (second["left"], second["right"]) == (0, 0)
    assert found.rules == 2


def test_digest_of_the_folding_table_is_that_of_its_file() -> None:
    path = Path(folding.__file__).with_name("folding_v1.json")
    assert folding_digest() == "sha256:" + sha256(path.read_bytes()).hexdigest()


def test_what_is_not_offered_is_not_sent_and_not_even_named() -> None:
    found = subset(regex("a1", client=False, name="own"), regex("b2"))
    assert "own" not in json.dumps(found.payload)
    assert "a1" not in json.dumps(found.payload)
    assert found.left_out == ()


@pytest.mark.parametrize(
    ("guardrail", "why"),
    [
        ({"kind": "url", "client": True, "config": dict(all_kinds()["url"].examples[0].config)}, "kind url"),
        ({"kind": "length", "client": True, "max_chars": 9}, "kind length"),
        ({"kind": "keywords", "client": True, "keywords": ["acme"], "mode": "MONITOR"}, "in mode MONITOR"),
        ({"kind": "keywords", "client": True, "keywords": ["acme"], "mode": "DISABLED"}, "in mode DISABLED"),
        (
            {"kind": "regex", "client": True, "config": {"rules": [
                {"id": "r", "pattern": "k[0-9]{4}", "allow": [{"regexes": ["0000"]}]}]}},
            "no form that clients know",
        ),
        (regex("a[0-9]{12}", validator="iban"), "give it an example"),
        (regex("|".join(f"w{n}x" for n in range(1_500))), "takes more than 20,000 characters"),
    ],
)  # fmt: skip
def test_what_a_client_cannot_run_to_the_letter_stays_and_the_report_says_why(guardrail: Json, why: str) -> None:
    found = subset(guardrail)
    assert rules_of(found) == []
    assert why in reasons(found)


@pytest.mark.parametrize("kind", [kind for kind in all_kinds().values() if kind.family in (Family.AI, Family.EXTERNAL)])
def test_ai_or_external_guardrail_cannot_be_offered_at_all(kind: Any) -> None:
    with pytest.raises(PolicyError, match="cannot be sent to clients"):
        compile_policy({"policy": "p", "guardrails": [{"kind": kind.name, "client": True, **kind.examples[0].config}]})


def test_checks_are_sent_by_name() -> None:
    found = subset(
        {"kind": "pii", "client": True},
        {"kind": "regex", "name": "r", "client": True, "config": {"rules": [{
            "id": "r", "pattern": "key=([a-z0-9]{8})", "secret_group": 1, "entropy": 1.5, "keywords": ["KEY"],
            "allow": [{"stopwords": ["Example"]}], "must_match": ["key=a1b2c3d4"]}]}},
    )  # fmt: skip
    checks = {rule["id"]: rule["validators"] for rule in rules_of(found)}
    assert checks["credit_card"] == [{"name": "luhn"}]
    assert checks["iban"] == [{"name": "iban", "countries": iban_forms()}]
    assert checks["r"] == [
        {"name": "contains", "words": ["key"]},
        {"name": "min_entropy", "bits": 1.5},
        {"name": "not_allowed", "stopwords": ["example"]},
    ]
    assert checks["passport"] == [{"name": "has_digits", "least": 4}]
    assert all(any(vector["spans"] for vector in rule["vectors"]) for rule in rules_of(found))


def test_listed_words_share_one_class_of_word_characters() -> None:
    found = subset({"kind": "keywords", "client": True, "keywords": ["blue heron", "acme"]})
    assert set(cast("Json", found.payload["classes"])) == {"{{word}}"}
    assert all("{{word}}" in rule["pattern"] and len(rule["pattern"]) < 300 for rule in rules_of(found))
    assert [rule["right"] for rule in rules_of(found)] == [1, 1]


def test_a_long_list_is_cut_and_the_report_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subset_module, "MOST_RULES", 2)
    found = subset({"kind": "keywords", "client": True, "keywords": ["one", "two", "three"]})
    assert (found.rules, found.payload["covers"]) == (2, {"prompt": False, "response": False})
    assert "keywords/three: a bundle holds at most 2 rules" in reasons(found)


@pytest.mark.parametrize(
    ("others", "covered"),
    [
        ([], True),
        ([{"kind": "keywords", "name": "k", "keywords": ["x"], "action": "warn"}], True),
        ([{"kind": "keywords", "name": "k", "keywords": ["x"], "mode": "MONITOR"}], True),
        ([{"kind": "keywords", "name": "k", "keywords": ["x"], "applies_to": ["prompt"]}], True),
        ([{"kind": "keywords", "name": "k", "keywords": ["x"]}], False),
        ([{"kind": "toxicity", "action": "block"}], False),
        ([{"kind": "ai_judge", "mode": "BLOCK", "provider": "scripted", "rubric": "r"}], False),
        ([{"kind": "pii", "client": True}], True),
        ([{"kind": "pii", "client": False}], False),
    ],
)
def test_bundle_says_whether_its_word_is_enough_for_an_answer(others: list[Json], covered: bool) -> None:
    found = subset(regex("k-[0-9]{4}"), *others)
    assert cast("Json", found.payload["covers"])["response"] is covered


def test_engines_that_disagree_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subset_module, "finder_in_re2", lambda compiled: lambda text: [(0, 0)])
    found = subset(regex("disagree-[0-9]{4}"))
    assert any("regex/pattern-1: RE2 finds [(0, 0)]" in failure for failure in found.failures)


def test_the_same_document_gives_the_same_bytes() -> None:
    document = [{"kind": "pii", "client": True}, regex("k-[0-9]{4}")]
    first = subset(*document)
    subset_module._client_rule.cache_clear()
    assert subset(*document).payload == first.payload


# -- any policy ---------------------------------------------------------------------------------------------------


def random_guardrail(chance: random.Random, n: int) -> Json:
    kind = chance.choice(list(all_kinds().values()))
    config = dict(chance.choice(kind.examples).config) if kind.examples else {}
    entry: Json = {"kind": kind.name, "name": f"g{n}-{kind.name}", "config": config}
    if chance.random() < 0.7:
        entry["client"] = chance.random() < 0.7
    if chance.random() < 0.3:
        entry["mode"] = chance.choice([mode.value for mode in Mode])
    return entry


def test_nothing_that_was_not_offered_ever_enters_a_bundle() -> None:
    """Random policies over every kind there is: an AI, external or not explicitly offered guardrail is never in one."""
    chance = random.Random(7)
    accepted = entered = 0
    for _ in range(160):
        entries = [random_guardrail(chance, n) for n in range(chance.randint(1, 5))]
        try:
            policy = compile_policy({"policy": "p", "guardrails": entries})
        except (PolicyError, OSError):
            continue
        accepted += 1
        found = client_subset(policy, version=1, digest="d")
        by_name = {entry["name"]: entry for entry in entries}
        for guardrail in guardrails_of(found):
            entry = by_name[guardrail["name"]]
            assert entry.get("client") is True
            assert guardrail["kind"] in ("regex", "keywords", "pii", "secrets")
            assert all_kinds()[guardrail["kind"]].family in (Family.PATTERN, Family.LISTED)
            own = {compiled.rule.id for compiled in policy.guardrail(guardrail["name"]).rules}
            assert {rule["id"] for rule in guardrail["rules"]} <= own
            entered += 1
        hidden = [entry["name"] for entry in entries if entry.get("client") is not True]
        text = json.dumps(found.payload)
        assert not [name for name in hidden if f'"{name}"' in text]
    assert accepted > 40
    assert entered > 15


# -- JavaScript ---------------------------------------------------------------------------------------------------


def in_node(classes: Json, cases: list[tuple[Json, str]]) -> list[list[list[int]]]:
    if shutil.which("node") is None:
        pytest.skip("Node is not there: client rules were NOT run in JavaScript")
    payload = json.dumps({"classes": classes, "cases": cases})
    done = subprocess.run(["node", str(SCRIPT)], input=payload, capture_output=True, text=True, check=True, timeout=250)
    return json.loads(done.stdout)


def test_vectors_come_out_in_javascript_as_they_are_written() -> None:
    """Rules whose checks and folding need no client: the others are tried by the browser library's own tests."""
    found = subset(
        {"kind": "secrets", "client": True}, {"kind": "keywords", "client": True, "keywords": ["acme", "blue heron"]}
    )
    cases, wanted = [], []
    for rule in rules_of(found):
        for vector in rule["vectors"]:
            if not rule["validators"] and vector["text"].isascii():
                cases.append((rule, vector["text"]))
                wanted.append(vector["spans"])
    answers = in_node(cast("Json", found.payload["classes"]), cases)
    assert len(cases) > 150
    for (rule, text), spans, got in zip(cases, wanted, answers, strict=True):
        assert got == spans, (rule["id"], text)


@pytest.mark.parametrize("path", sorted(STARTERS.glob("*.json")), ids=lambda path: path.stem)
def test_clients_run_all_that_the_policies_that_come_with_the_project_offer_them(path: Path) -> None:
    """One rule that stays behind is enough for the server to be asked about every answer."""
    found = client_subset(compile_policy(json.loads(path.read_text("utf-8"))), version=1, digest="d")
    assert (found.left_out, found.failures) == ((), ())
