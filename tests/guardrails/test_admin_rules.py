"""The rule form: what it shows is what it saves, what cannot be bounded is refused at its field, nothing is lost."""

from __future__ import annotations

import json
import time
import tomllib
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.contrib.staticfiles import finders
from django.http import HttpResponse
from django.test import Client
from django.urls import reverse
from hypothesis import given
from hypothesis import strategies as st

from guardrails import services
from guardrails.admin.rules.envelope import blank_cards, read, sheet
from guardrails.admin.rules.lines import from_lines, to_lines
from guardrails.admin.rules.live import LARGE, examine_draft
from guardrails.admin.rules.reading import Reading
from guardrails.importers.gitleaks import import_gitleaks
from guardrails.kinds.base import all_kinds
from guardrails.models import Policy
from guardrails.policy import PolicyError, compile_policy, normalise
from guardrails.signing import canonical_bytes, digest_of
from tests.conftest import PASSWORD, STARTERS, Cast
from tests.guardrails.fields import Fields

pytestmark = pytest.mark.django_db
GITLEAKS = Path(__file__).resolve().parents[3] / "shared/data/rulepacks/gitleaks.toml"
HOSTILE = "((a{1,100}){1,100}){1,100}"
LINT = "/admin/guardrails/policy/lint/"
NASTY = "\"><script>alert(1)</script>'&amp;{{ x }}"


def document(*guardrails: dict[str, Any], name: str = "support") -> dict[str, Any]:
    return {"policy": name, "description": "d", "guardrails": list(guardrails)}


def pattern(text: str, **more: object) -> dict[str, Any]:
    return {"name": "own", "kind": "regex", "config": {"rules": [{"id": "r", "pattern": text, **more}]}}


def signed_in(user: User) -> Client:
    client = Client()
    assert client.login(username=user.get_username(), password=PASSWORD)
    return client


@pytest.fixture
def author(cast: Cast) -> Client:
    return signed_in(cast.author)


def change_url(policy: Policy) -> str:
    return reverse("admin:guardrails_policy_change", args=[policy.pk])


def fields(client: Client, policy: Policy) -> dict[str, list[str]]:
    page = client.get(change_url(policy))
    assert page.status_code == 200
    return Fields(page.content.decode()).data()


def sent_by_script(data: dict[str, list[str]]) -> dict[str, str]:
    """The same fields as the page's script sends them."""
    pairs = [(name, value) for name, values in data.items() for value in values if name.startswith("f.")]
    return {"fields_sent": json.dumps(pairs)}


def digest(value: object) -> str:
    return digest_of(canonical_bytes(value))


def lint(client: Client, data: dict[str, list[str]]) -> dict[str, Any]:
    response = client.post(LINT, sent_by_script(data)["fields_sent"], content_type="application/json")
    assert response.status_code == 200
    answer = response.json()
    assert isinstance(answer, dict)
    return answer


def examples_of_kinds() -> list[Any]:
    return [
        pytest.param(kind.name, example.config, id=f"{kind.name}-{n}")
        for kind in all_kinds().values()
        for n, example in enumerate(kind.examples)
    ]


def test_it_works(author: Client, cast: Cast) -> None:
    policy = services.save_draft(document=document(pattern("blue heron")))
    data = fields(author, policy)
    data["f.guardrails.0.config.rules.0.pattern"] = ["grey heron"]
    data["f.guardrails.0.config.rules.0.must_match"] = ["a grey heron\r\ngrey herons"]
    facts = lint(author, data)
    assert facts["problems"] == {}
    slot = facts["slots"]["f.guardrails.0.config.rules.0"]
    assert "holds at most <strong>10 characters" in slot
    assert "class INSTANT, on every chunk (IMMEDIATE)" in slot
    assert author.post(change_url(policy), data).status_code == 302
    policy.refresh_from_db()
    assert policy.draft_by == cast.author
    assert policy.draft is not None
    rule = policy.draft["guardrails"][0]["config"]["rules"][0]
    assert (rule["pattern"], rule["must_match"]) == ("grey heron", ["a grey heron", "grey herons"])


@pytest.mark.parametrize("script", [True, False])
@pytest.mark.parametrize("starter", sorted(file.name for file in STARTERS.glob("*.json")))
def test_starter_loaded_and_saved_unchanged_keeps_its_digest(author: Client, starter: str, script: bool) -> None:
    policy = services.save_draft(document=json.loads((STARTERS / starter).read_text("utf-8")))
    before = digest(policy.draft)
    data = fields(author, policy)
    Policy.objects.filter(pk=policy.pk).update(draft=None)
    sent = sent_by_script(data) if script else {name: v for name, v in data.items() if name.startswith("f.")}
    assert author.post(change_url(policy), sent).status_code == 302
    policy.refresh_from_db()
    assert digest(policy.draft) == before


@pytest.mark.parametrize(("kind", "config"), examples_of_kinds())
def test_every_kind_loaded_and_saved_unchanged_keeps_its_digest(
    author: Client, kind: str, config: dict[str, Any]
) -> None:
    policy = services.save_draft(document=document({"kind": kind, "config": config}))
    before = digest(policy.draft)
    data = fields(author, policy)
    Policy.objects.filter(pk=policy.pk).update(draft=None)
    assert author.post(change_url(policy), sent_by_script(data)).status_code == 302
    policy.refresh_from_db()
    assert digest(policy.draft) == before


def test_everything_that_an_entry_can_say_goes_round(author: Client) -> None:
    rule = {
        "id": "r", "pattern": "key=(\\w{3,9})\n?", "ignore_case": True, "secret_group": -1, "placeholder": "[<K>]",
        "category": "c", "validator": "luhn", "entropy": 2.5, "keywords": ["KEY", " x "], "cap": 99, "fold": False,
        "not_after": "a-z", "not_before": "\\w", "must_not_match": ["", "two\nlines", "json:x", "a\u200bb", '"q"'],
        "allow": [{"regexes": ["^\\s+$"], "stopwords": ["no"], "target": "match", "require_all": True}],
    }  # fmt: skip
    cards = {"kind": "pii", "applies_to": ["document", "prompt"], "action": "mask", "on_error": "warn",
             "time_limit_s": 0.25, "client": True, "description": "a\nb",
             "config": {"entities": {"credit_card": {"luhn": False}, "ssn": True}}}  # fmt: skip
    topics = {"kind": "topics", "mode": "DISABLED", "config": {"deny": ["own"], "topics": {"own": ["a b", "c"]}}}
    draft = document(
        {"name": "a", "kind": "regex", "config": {"rules": [rule]}},
        cards,
        topics,
        {"kind": "ai_judge", "mode": "BLOCK", "config": {"rubric": "one\n\n  two\n", "threshold": 0.25}},
    )
    policy = services.save_draft(document=draft)
    before = digest(policy.draft)
    assert author.post(change_url(policy), sent_by_script(fields(author, policy))).status_code == 302
    policy.refresh_from_db()
    assert digest(policy.draft) == before


@given(st.lists(st.text(max_size=20)))
def test_no_string_is_changed_by_standing_on_a_line(texts: list[str]) -> None:
    assert from_lines(to_lines(texts)) == texts
    assert from_lines(to_lines(texts).replace("\n", "\r\n")) == texts


@pytest.mark.parametrize("kind", sorted(all_kinds()))
def test_blank_card_offers_the_modes_of_the_decision_table_and_no_others(kind: str) -> None:
    card = next(card for card in blank_cards() if card.kind == kind)
    modes = {option.value for node in card.envelope if node.label == "Mode" for option in node.options}
    row = all_kinds()[kind].decision()
    assert modes == ({"BLOCK", "MONITOR", "DISABLED"} if row.override else {row.mode.value, "DISABLED"})


def test_items_stand_in_the_order_of_their_tokens(author: Client) -> None:
    first, second = pattern("first"), {**pattern("second"), "name": "other"}
    policy = services.save_draft(document=document(first, second))
    data = fields(author, policy)
    data["f.guardrails"] = ["1", "0"]
    author.post(change_url(policy), data)
    policy.refresh_from_db()
    assert policy.draft is not None
    assert [entry["name"] for entry in policy.draft["guardrails"]] == ["other", "own"]
    data["f.guardrails"] = ["1"]
    author.post(change_url(policy), data)
    policy.refresh_from_db()
    assert [entry["name"] for entry in policy.draft["guardrails"]] == ["other"]


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("config.rules.0.pattern", "a(?=b)", "look"),
        ("config.rules.0.pattern", "x*", "empty"),
        ("config.rules.0.pattern", "a(b", "position"),
        ("config.rules.0.pattern", HOSTILE, "positions"),
        ("config.rules.0.pattern", "", "at least 1 character"),
        ("config.rules.0.id", "not an id", "pattern"),
        ("config.rules.0.cap", "many", "valid integer"),
        ("config.rules.0.cap", "99999999", "less than or equal"),
        ("config.rules.0.validator", "nope", "luhn"),
        ("name", "", "letters"),
        ("mode", "MONITOR", "cannot run in MONITOR"),
        ("action", "shout", "unknown"),
        ("time_limit_s", "soon", "seconds"),
        ("time_limit_s", "1e999", "seconds"),
    ],
)
def test_refusal_stands_at_its_field_and_nothing_typed_is_lost(
    author: Client, field: str, value: str, words: str
) -> None:
    policy = services.save_draft(document=document({**pattern("aa"), "description": "kept"}))
    before = policy.draft
    data = fields(author, policy)
    name = f"f.guardrails.0.{field}"
    data[name] = [value]
    data["f.guardrails.0.description"] = ["typed just now"]
    assert words in lint(author, data)["problems"][name]
    response = author.post(change_url(policy), data)
    assert response.status_code == 200
    page = response.content.decode()
    again = Fields(page).data()
    assert again[name] == [value]
    assert again["f.guardrails.0.description"] == ["typed just now"]
    problem = unescape(page).split(f'id="{name}-problem" data-problem>')[1].split("</p>")[0]
    assert words in problem
    policy.refresh_from_db()
    assert policy.draft == before


def test_every_bad_rule_is_told_at_once_and_good_ones_keep_their_facts(author: Client) -> None:
    rules = [{"id": "one", "pattern": "aa"}, {"id": "two", "pattern": "bb"}, {"id": "three", "pattern": "cc"}]
    policy = services.save_draft(document=document({"name": "own", "kind": "regex", "config": {"rules": rules}}))
    data = fields(author, policy)
    base = "f.guardrails.0.config.rules"
    data[f"{base}.0.pattern"], data[f"{base}.2.pattern"] = ["(?<=x)a"], [r"(a)\1"]
    answer = lint(author, data)
    assert set(answer["problems"]) == {f"{base}.0.pattern", f"{base}.2.pattern"}
    assert "2 characters" in answer["slots"][f"{base}.1"]
    assert answer["slots"][f"{base}.0"] == ""
    assert "cannot be saved" in answer["summary"]


def test_bad_rule_behind_built_in_ones_is_told_at_itself(author: Client) -> None:
    rules = [{"id": "fine", "pattern": "fine"}, {"id": "bad", "pattern": "bad"}]
    policy = services.save_draft(document=document({"kind": "secrets", "config": {"rules": rules}}))
    data = fields(author, policy)
    data["f.guardrails.0.config.rules.1.pattern"] = ["b(?!a)"]
    assert list(lint(author, data)["problems"]) == ["f.guardrails.0.config.rules.1.pattern"]


def test_compiler_names_the_written_rule_not_its_place_behind_built_in_ones() -> None:
    rules = [{"id": "fine", "pattern": "fine"}, {"id": "bad", "pattern": "b(?!a)"}]
    for kind in ("secrets", "regex"):
        with pytest.raises(PolicyError) as refused:
            compile_policy(document({"kind": kind, "config": {"rules": rules}}))
        assert refused.value.path == "guardrails[0].config.rules[1].pattern"


def test_bad_pattern_of_the_short_form_is_told_at_the_patterns(author: Client) -> None:
    policy = services.save_draft(document=document({"kind": "regex", "config": {"patterns": ["aa", "bb"]}}))
    data = fields(author, policy)
    data["f.guardrails.0.config.patterns"] = ["aa\r\nb(?!a)"]
    assert list(lint(author, data)["problems"]) == ["f.guardrails.0.config.patterns"]


def test_examples_tell_how_they_fared_in_words(author: Client) -> None:
    rule = pattern("heron", must_match=["a heron", "a stork"], must_not_match=["herons", "stork"])
    policy = services.save_draft(document=document(rule))
    data = fields(author, policy)
    answer = lint(author, data)
    told = unescape(answer["slots"]["f.guardrails.0.config.rules.0"])
    assert "✓ must match: <q>a heron</q>" in told
    assert "✗ must match, but does not: <q>a stork</q>" in told
    assert "✗ must pass, but does not: <q>herons</q>" in told
    assert "✓ must pass: <q>stork</q>" in told
    assert "cannot be published: 2 examples" in answer["summary"]
    saved = author.post(change_url(policy), data, follow=True)
    assert "cannot be published" in unescape(saved.content.decode())


def test_trimmed_rule_is_shown_as_it_runs(author: Client) -> None:
    policy = services.save_draft(document=document(pattern("[a-z]{0,20}?key=[0-9]{4}")))
    slot = unescape(lint(author, fields(author, policy))["slots"]["f.guardrails.0.config.rules.0"])
    facts = examine_draft(policy.draft or {}).rules["guardrails[0].config.rules[0]"].report
    assert facts is not None
    assert facts.trimmed == r"key=\d{4}"
    assert f"Runs as <code>{facts.trimmed}</code>" in slot
    assert "20 characters" in slot


def test_card_tells_class_moment_and_bound(author: Client) -> None:
    judge = {"kind": "ai_judge", "mode": "BLOCK", "config": {"rubric": "bad"}}
    policy = services.save_draft(document=document({"kind": "pii"}, judge))
    answer = lint(author, fields(author, policy))
    pii, harm = (answer["slots"][f"f.guardrails.{i}"] for i in (0, 1))
    assert "INSTANT" in pii
    assert "on every chunk" in pii
    assert "ssn" in pii
    assert "DEFERRED" in harm
    assert "whole answer is held" in harm
    assert "the whole answer" in answer["summary"]


def test_allow_list_of_the_guardrail_counts_for_its_rules_examples(author: Client) -> None:
    config = {"rules": [{"id": "r", "pattern": "tok-[0-9]{4}", "must_not_match": ["tok-0000"]}],
              "allow": [{"regexes": ["0000"]}]}  # fmt: skip
    facts = examine_draft(document({"kind": "secrets", "config": config}))
    assert (facts.problems, facts.failures) == ({}, [])
    del config["allow"]
    assert len(examine_draft(document({"kind": "secrets", "config": config})).failures) == 1


@pytest.mark.parametrize("bad", ["b(?!a)", HOSTILE, "(((((a{1,60}){1,60}){1,60}){1,60}){1,60})", "(a|b|ab){1,200}c"])
def test_one_rule_is_answered_within_a_tenth_of_a_second(author: Client, bad: str) -> None:
    policy = services.save_draft(document=document(pattern("aa")))
    data = fields(author, policy)
    lint(author, data)  # what is built once per process is built now
    data["f.guardrails.0.config.rules.0.pattern"] = [bad]
    data["f.guardrails.0.config.rules.0.must_match"] = ["ab" * 5_000]
    took = []
    for _ in range(3):
        began = time.perf_counter()
        lint(author, data)
        took.append(time.perf_counter() - began)
    assert min(took) < 0.1


def test_long_examples_wait_for_publication_and_say_so(author: Client) -> None:
    policy = services.save_draft(document=document(pattern("a.{0,200}b", must_match=["ab", "a" * 100_000 + "b"])))
    slot = lint(author, fields(author, policy))["slots"]["f.guardrails.0.config.rules.0"]
    assert "1 long examples are run only when" in slot


def test_many_rules_are_examined_over_several_answers() -> None:
    now = iter(range(10_000))
    rules = [{"id": f"r{n}", "pattern": f"word{n}"} for n in range(8)]
    draft = document({"kind": "regex", "config": {"rules": rules}})
    facts = examine_draft(draft, budget_s=3, clock=lambda: float(next(now)))
    assert facts.unfinished
    assert 0 < len(facts.rules) < len(rules)
    assert not examine_draft(draft).unfinished


def test_guardrail_too_large_to_compile_while_typing_says_so(author: Client) -> None:
    words = [f"word{n}x" for n in range(LARGE // 8)]
    draft = document({"kind": "keywords", "config": {"keywords": words}})
    facts = examine_draft(draft, budget_s=60)
    assert facts.skipped == ["guardrails[0]"]
    assert facts.problems == {}
    answer = lint(author, fields(author, services.save_draft(document=draft)))
    assert "compiled when you save" in answer["slots"]["f.guardrails.0"]
    assert "can be saved" not in answer["summary"]


def test_same_name_twice_is_refused_and_both_are_kept(author: Client) -> None:
    own = {"kind": "topics", "config": {"deny": ["own"], "topics": {"own": ["a"], "other": ["b"]}}}
    policy = services.save_draft(document=document(own))
    data = fields(author, policy)
    assert data["f.guardrails.0.config.topics.0.name"] == ["own"]
    data["f.guardrails.0.config.topics.1.name"] = ["own"]
    assert "twice" in lint(author, data)["problems"]["f.guardrails.0.config.topics.1"]
    again = Fields(author.post(change_url(policy), data).content.decode()).data()
    assert again["f.guardrails.0.config.topics.1.texts"] == ["b"]
    policy.refresh_from_db()
    assert policy.draft is not None
    assert set(policy.draft["guardrails"][0]["config"]["topics"]) == {"own", "other"}


def test_two_guardrails_of_a_name_are_refused_at_the_second(author: Client) -> None:
    policy = services.save_draft(document=document(pattern("aa"), {**pattern("bb"), "name": "other"}))
    data = fields(author, policy)
    data["f.guardrails.1.name"] = ["own"]
    assert "twice" in lint(author, data)["problems"]["f.guardrails.1.name"]


def test_policy_is_added_through_fields(author: Client) -> None:
    sent = {
        "f.policy": "new", "f.description": "", "f.guardrails": "n0", "f.guardrails.n0.kind": "length",
        "f.guardrails.n0.name": "short", "f.guardrails.n0.applies_to": "response", "f.guardrails.n0.mode": "MONITOR",
        "f.guardrails.n0.config.max_chars": "80",
    }  # fmt: skip
    assert author.post(reverse("admin:guardrails_policy_add"), sent).status_code == 302
    expected = normalise(
        document({"name": "short", "kind": "length", "applies_to": ["response"], "mode": "MONITOR",
                  "config": {"max_chars": 80}}, name="new") | {"description": ""}
    )  # fmt: skip
    assert Policy.objects.get(name="new").draft == expected


def test_file_takes_the_place_of_the_fields_only_by_its_own_button(author: Client) -> None:
    policy = services.save_draft(document=document(pattern("aa")))
    data = fields(author, policy)
    data["draft"] = [json.dumps(document(pattern("from the file")))]
    author.post(change_url(policy), data)
    policy.refresh_from_db()
    assert "from the file" not in json.dumps(policy.draft)
    author.post(change_url(policy), {**data, "_continue": ["file"]})
    policy.refresh_from_db()
    assert "from the file" in json.dumps(policy.draft)


def test_refused_file_is_kept_as_it_was_typed_and_names_the_path(author: Client) -> None:
    policy = services.save_draft(document=document(pattern("aa")))
    text = json.dumps(document(pattern("b(?!a)"))) + "   "
    response = author.post(change_url(policy), {**fields(author, policy), "draft": text, "_continue": "file"})
    page = response.content.decode()
    assert "guardrails[0].config.rules[0].pattern" in unescape(page)
    assert Fields(page).data()["draft"] == [text]
    policy.refresh_from_db()
    assert "b(?!a)" not in json.dumps(policy.draft)


def test_download_is_the_policy_file(author: Client, cast: Cast) -> None:
    policy = services.save_draft(document=document(pattern("aa")))
    response = author.get(reverse("admin:guardrails_policy_file", args=[policy.pk]))
    assert json.loads(response.content) == policy.draft
    assert response["Content-Disposition"] == 'attachment; filename="support.json"'
    assert signed_in(cast.outsider).get(reverse("admin:guardrails_policy_file", args=[policy.pk])).status_code == 302


def test_those_who_may_not_edit_see_no_form_and_get_no_answers(cast: Cast) -> None:
    policy = services.save_draft(document=document(pattern("secret-pattern")))
    for user in (cast.reviewer, cast.signer, cast.operator):
        client = signed_in(user)
        page = client.get(change_url(policy))
        assert page.status_code == 200
        assert b'id="rules"' not in page.content
        assert client.post(change_url(policy), {"f.policy": "support"}).status_code == 403
        assert client.post(LINT, "[]", content_type="application/json").status_code == 403
    for client in (Client(), signed_in(cast.outsider)):
        assert client.post(LINT, "[]", content_type="application/json").status_code == 302


def test_question_without_a_token_from_the_page_is_refused(cast: Cast) -> None:
    client = Client(enforce_csrf_checks=True)
    assert client.login(username="author", password=PASSWORD)
    assert client.post(LINT, "[]", content_type="application/json").status_code == 403


@pytest.mark.parametrize("body", ["", "{", "{}", "7", '[["a"]]', '[["a", 1]]', '["ab"]', "[" * 100_000, "\xff"])
def test_question_that_is_no_list_of_fields_is_answered_with_400(author: Client, body: str) -> None:
    assert author.post(LINT, body, content_type="application/json").status_code == 400


def test_question_of_more_than_a_megabyte_is_refused(author: Client) -> None:
    body = json.dumps([["f.description", "x" * 1_048_577]])
    assert author.post(LINT, body, content_type="application/json").status_code == 413
    assert author.get(LINT).status_code == 405


def test_markup_is_text_everywhere(author: Client) -> None:
    rule = {"id": "r", "pattern": NASTY, "placeholder": "<b>x</b>", "must_match": [NASTY, "<i>no</i>"]}
    nasty = {"name": "own", "kind": "regex", "description": NASTY, "config": {"rules": [rule]}}
    topics = {"kind": "topics", "config": {"deny": [NASTY], "topics": {NASTY: [NASTY]}}}
    policy = services.save_draft(document=document(nasty, topics))
    clean = services.save_draft(document=document(pattern("aa"), name="clean"))
    page = author.get(change_url(policy)).content.decode()
    plain = author.get(change_url(clean)).content.decode()
    data = Fields(page).data()
    assert data["f.guardrails.0.config.rules.0.pattern"] == [NASTY]
    assert "alert(1)</script>" not in page
    assert page.count("<script") == plain.count("<script")
    answer = lint(author, data)
    for markup in (*answer["slots"].values(), answer["summary"]):
        assert not {"script", "b", "i"} & set(Fields(markup).tags)
    data["f.guardrails.0.name"], data["f.guardrails.0.kind"] = [NASTY], [NASTY]
    refused = author.post(change_url(policy), data).content.decode()
    assert refused.count("<script") == plain.count("<script")


def test_kind_that_is_unknown_goes_round_and_is_refused() -> None:
    entry = {"name": "x", "kind": "nope", "config": {"a": [1]}}
    drawn = sheet(document(entry))
    assert not drawn.cards[0].known
    pairs = [("f.policy", "p"), ("f.guardrails", "0"), ("f.guardrails.0.kind", "nope"),
             ("f.guardrails.0.raw", drawn.cards[0].raw)]  # fmt: skip
    assert read(Reading(pairs))["guardrails"] == [entry]
    facts = examine_draft(document(entry))
    assert list(facts.problems) == ["guardrails[0].kind"]


def test_form_brings_its_own_files(author: Client) -> None:
    page = author.get(reverse("admin:guardrails_policy_add")).content.decode()
    for name in ("admin-rules/rules.js", "admin-rules/rules.css"):
        assert f"/static/{name}" in page
        assert finders.find(name)


@pytest.mark.skipif(not GITLEAKS.exists(), reason="the rule pack is not here")
def test_imported_pack_of_thousands_of_fields_is_saved_unchanged(author: Client) -> None:
    pack = import_gitleaks(tomllib.loads(GITLEAKS.read_text("utf-8")), name="pack")
    policy = services.save_draft(document=pack.document)
    before = digest(policy.draft)
    data = fields(author, policy)
    assert sum(map(len, data.values())) > 2_000
    Policy.objects.filter(pk=policy.pk).update(draft=None)
    response: HttpResponse = author.post(change_url(policy), sent_by_script(data))
    assert response.status_code == 302
    policy.refresh_from_db()
    assert digest(policy.draft) == before
