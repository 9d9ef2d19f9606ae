"""What publication makes of a version is kept with it, signed with it, and altered by nobody."""

from __future__ import annotations

import io
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection, transaction
from py_mini_racer import MiniRacer

from guardrails import keys, loading, publication, selectors, services
from guardrails.client import engine, parity, subset, v8
from guardrails.client.subset import Subset, client_subset
from guardrails.loading import PolicyUnavailable
from guardrails.models import ImmutableRecord, PolicyVersion, Publication
from guardrails.models import Policy as PolicyRow
from guardrails.patterns import deadline
from guardrails.patterns.compiler import compile_rule
from guardrails.patterns.rule import Candidate, Rule
from guardrails.patterns.validators import ip_address
from guardrails.policy import Policy, PolicyError
from guardrails.services import Refused
from guardrails.signing import Purpose, Type, canonical_bytes, digest_of, verify
from tests.conftest import forget_policies

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("forgetful")]


def document(*words: str) -> dict[str, Any]:
    rule = {"id": "a", "pattern": "k-[0-9]{4}", "must_match": ["k-1234"], "must_not_match": ["k-12"]}
    return {
        "policy": "support",
        "description": "d",
        "guardrails": [
            {"name": "words", "kind": "keywords", "client": True, "keywords": list(words)},
            {"name": "numbers", "kind": "regex", "config": {"rules": [rule]}},
            {
                "name": "codes",
                "kind": "regex",
                "client": True,
                "config": {"rules": [{"id": "b", "pattern": "c-[0-9]{4}", "allow": [{"regexes": ["0000"]}]}]},
            },
        ],
    }


def published(*words: str) -> PolicyVersion:
    return services.publish(policy=services.save_draft(document=document(*words)))


def alter(version: PolicyVersion, **columns: object) -> None:
    """As somebody would who has the database: triggers are no obstacle to them."""
    with connection.cursor() as cursor:
        cursor.execute("DROP TRIGGER IF EXISTS guardrails_publication_stays")
        for column, value in columns.items():
            statement = f"UPDATE guardrails_publication SET {column} = %s WHERE version_id = %s"
            cursor.execute(statement, [value, version.pk])


def test_it_works() -> None:
    version = services.sign(version=published("acme"))
    made = version.publication
    rules = json.loads(made.client_rules)
    assert (rules["policy"], rules["version"], rules["digest"]) == ("support", 1, version.digest)
    assert [guardrail["name"] for guardrail in rules["guardrails"]] == ["words"]
    signed = verify(made.client_signature, keys.trusted_keys(Purpose.VERSION), Type.CLIENT_RULES)
    assert signed == made.client_rules.encode()
    row = services.activate(version=version)
    assert loading.verified_statement(row).client_digest == made.client_digest == digest_of(signed)


def test_report_says_what_was_tried_and_what_it_costs() -> None:
    report = published("acme", "blue heron").publication.report
    assert report["examples"] == {"right": 2, "of": 2}
    assert report["bounds"]["response"].startswith("at most ")
    assert report["budget"]["compile_ms"] > 0
    assert 1 < report["budget"]["memory_kb"] < report["budget"]["memory_limit_kb"]
    assert report["client"]["rules"] == 2
    assert report["client"]["vectors"] >= 4
    assert report["client"]["engines"] == ["Python", "RE2", "JavaScript"]
    assert report["client"]["left_out"] == ["codes/b: its check has no form that clients know"]
    (numbers,) = [g for g in report["guardrails"] if g["name"] == "numbers"]
    assert numbers["rules"][0]["holds"] == 6
    assert numbers["rules"][0]["examples"] == {"right": 2, "of": 2}


def test_report_names_the_engines_that_ran_and_no_others() -> None:
    kept = document("acme")
    for guardrail in kept["guardrails"]:
        guardrail.pop("client", None)
    report = services.publish(policy=services.save_draft(document=kept)).publication.report
    assert (report["client"]["rules"], report["client"]["engines"]) == (0, [])
    (line,) = [line for line in publication.report_lines(report) if line.startswith("for clients")]
    assert line.endswith("nothing to try")
    examined = publication.examine_document(document("acme"))
    (line,) = [line for line in publication.report_lines(examined.as_dict()) if line.startswith("for clients")]
    assert line.endswith("the same in Python, RE2, JavaScript")


def test_engine_that_is_not_asked_any_more_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guardrails.client.subset.finder_in_python", lambda compiled: lambda text: [])
    monkeypatch.setattr(publication, "disparity_in_javascript", lambda payload: pytest.fail("it was asked"))
    examined = publication.examine_document(document("another disagreement"))
    assert examined.failures
    assert examined.engines == ("Python", "RE2")


@pytest.mark.parametrize(
    ("name", "value", "said"), [("COMPILE_LIMIT_S", 0.0, "compile"), ("MEMORY_LIMIT_MB", 0.001, "MB")]
)
def test_what_exceeds_the_budget_is_not_published(
    name: str, value: float, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publication, name, value)
    with pytest.raises((Refused, PolicyError), match=said):
        published("acme")
    assert not PolicyVersion.objects.exists()


SLOW = "|".join(f"a{n}[0-9]b" for n in range(800))


def two_rules() -> dict[str, Any]:
    rules = [{"id": "quick", "pattern": "k-[0-9]{4}"}, {"id": "slow", "pattern": SLOW}]
    return {"policy": "support", "guardrails": [{"name": "n", "kind": "regex", "config": {"rules": rules}}]}


def test_pattern_that_takes_too_long_to_compile_is_ended_midway_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = services.save_draft(document=two_rules())
    asked: list[None] = []

    def a_second_later() -> float:
        asked.append(None)
        return float(len(asked))

    monkeypatch.setattr(deadline, "monotonic", a_second_later)
    with pytest.raises(PolicyError) as refused:
        services.publish(policy=policy)
    assert str(refused.value).startswith("guardrails[0].config.rules[1].pattern: rule 'slow': it takes more than 60 s")
    assert len(asked) == 62  # the start, and then each second: nothing went on
    assert not PolicyVersion.objects.exists()
    policy.refresh_from_db()
    assert policy.draft is not None

    monkeypatch.setattr(publication, "COMPILE_LIMIT_S", 1e9)
    services.publish(policy=policy)
    assert len(asked) > 800  # so far was it from done


def test_limit_of_one_publication_is_none_of_the_next_and_of_no_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publication, "COMPILE_LIMIT_S", -1.0)
    with pytest.raises(PolicyError, match="was ended"):
        published("acme")
    monkeypatch.undo()
    version = services.sign(version=services.publish(policy=PolicyRow.objects.get()))
    monkeypatch.setattr(publication, "COMPILE_LIMIT_S", -1.0)
    forget_policies()
    services.activate(version=version)  # which compiles: what is published has to run, also on a slow day
    assert selectors.active_policy("support").version == 1


def test_engines_that_disagree_stop_a_publication(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guardrails.client.subset.finder_in_python", lambda compiled: lambda text: [])
    with pytest.raises(Refused, match="Python finds"):
        published("disagreement")
    assert not PolicyVersion.objects.exists()


def test_rules_that_a_browser_would_refuse_stop_a_publication(monkeypatch: pytest.MonkeyPatch) -> None:
    made = client_subset

    def with_a_lie(policy: Policy, *, version: int, digest: str) -> Subset:
        subset = made(policy, version=version, digest=digest)
        text = json.dumps(subset.payload).replace('"spans": [[', '"spans": [[1')
        return replace(subset, payload=json.loads(text))

    monkeypatch.setattr(publication, "client_subset", with_a_lie)
    with pytest.raises(Refused, match="JavaScript does not find what is stated: words/"):
        published("grey heron")
    assert not PolicyVersion.objects.exists()


def test_a_pattern_that_only_javascript_refuses_is_named_and_one_that_hangs_ends(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rule = {"id": "a", "pattern": "((", "fold": False, "validators": [], "vectors": [], "bound": 3, "secret_group": []}
    group = {"name": "g", "kind": "regex", "action": "redact", "applies_to": ["prompt"], "rules": [rule]}
    assert "SyntaxError" in engine.disparity_in_javascript({"guardrails": [group], "classes": {}})
    monkeypatch.setattr(engine, "TIME_LIMIT_S", 3.0)
    hangs = tmp_path / "worker.js"
    hangs.write_text("onmessage = () => { for (;;); };", "ascii")
    monkeypatch.setattr(engine, "_WORKER", hangs)
    said = engine.disparity_in_javascript({"guardrails": [{**group, "name": "h"}], "classes": {}})
    assert said == "the rules were not tried within 3 s"
    hangs.write_text("throw new Error('no');", "ascii")
    assert "cannot be tried" in engine.disparity_in_javascript({"guardrails": [{**group, "name": "i"}], "classes": {}})


def test_what_the_engine_knows_of_addresses_is_what_python_knows() -> None:
    """The bare language has no URL, which the worker asks about IPv6 addresses: ours says what ``ipaddress`` says."""
    chance = random.Random(5)
    texts = []
    for _ in range(20_000):
        groups = [chance.choice(["0", "1", "ab", "ffff", "00001", "g"]) for _ in range(chance.randint(0, 8))]
        at = chance.randint(0, len(groups))
        text = ":".join(groups[:at]) + chance.choice(["::", ":", ":::"]) + ":".join(groups[at:])
        tail = chance.choice(["", "", "1.2.3.4", ":1.2.3.4", ":0.0.0.0", ":1.2.3", ":256.1.1.1", ":01.2.3.4"])
        texts.append(f"{text}{tail}" if ":" in text + tail else "::")
    with MiniRacer() as javascript:
        javascript.eval(v8.FRAME)
        javascript.eval(
            "function host(text) { try { return new URL(`http://[${text}]`).hostname; } catch { return '[::]'; } }"
        )
        found = json.loads(str(javascript.eval(f"JSON.stringify({json.dumps(texts)}.map((t) => host(t) !== '[::]'))")))
    assert found == [ip_address(Candidate(text, text, text)) for text in texts]
    assert sum(found) > 500


def test_publication_is_changed_and_removed_by_no_code_and_no_sql() -> None:
    version = services.sign(version=published("acme"))
    made = version.publication
    for forbidden in (made.save, made.delete, Publication.objects.all().delete):
        with pytest.raises(ImmutableRecord):
            forbidden()
    with pytest.raises(ImmutableRecord):
        Publication.objects.update(client_rules="{}")
    for column in ("client_rules", "client_digest", "client_signature", "report"):
        statement = f"UPDATE guardrails_publication SET {column} = %s"
        with (
            connection.cursor() as cursor,
            pytest.raises(DatabaseError, match="cannot be changed"),
            transaction.atomic(),
        ):
            cursor.execute(statement, ['"x"'])


def test_client_rules_altered_before_signing_are_not_signed() -> None:
    version = published("acme")
    weaker = version.publication.client_rules.replace('"words"', '"wards"')
    assert weaker != version.publication.client_rules
    alter(version, client_rules=weaker)
    with pytest.raises(Refused, match="altered"):
        services.sign(version=version)
    alter(version, client_digest=digest_of(weaker.replace('"version":1', '"version":2').encode()))
    alter(version, client_rules=weaker.replace('"version":1', '"version":2'))
    with pytest.raises(Refused, match="altered"):
        services.sign(version=version)
    version.refresh_from_db()
    assert version.signature == ""


def test_client_rules_that_the_document_does_not_give_are_not_signed_however_well_they_fit() -> None:
    """Whoever can write to the database could put rules there that let everything pass, with the digest to them."""
    version = published("acme")
    harmless = json.loads(version.publication.client_rules)
    harmless["guardrails"], harmless["covers"] = [], {"prompt": True, "response": True}
    rules = canonical_bytes(harmless)
    alter(version, client_rules=rules.decode(), client_digest=digest_of(rules))
    with pytest.raises(Refused, match="client rules of support v1 were altered"):
        services.sign(version=version)
    version.refresh_from_db()
    assert version.signature == ""
    # What comes with a release is published anew then, and the server starts.
    again, is_new = services.install(document=version.document)
    assert (again.number, is_new, bool(again.publication.client_signature)) == (2, True, True)


def test_version_that_names_another_policy_is_not_signed() -> None:
    version = published("acme")
    foreign = version.canonical.replace('"policy":"support","version":1', '"policy":"sales","version":1')
    assert foreign != version.canonical
    version.canonical, version.digest = foreign, digest_of(foreign.encode())
    with pytest.raises(Refused, match="altered"):
        services.sign(version=version)


def test_client_rules_altered_after_signing_are_not_activated() -> None:
    version = services.sign(version=published("acme"))
    weaker = version.publication.client_rules.replace('"words"', '"wards"')
    alter(version, client_rules=weaker, client_digest=digest_of(weaker.encode()))
    with pytest.raises(PolicyUnavailable, match="client rules of support v1 were altered"):
        services.activate(version=version)
    alter(version, client_signature=version.signature)
    with pytest.raises(PolicyUnavailable, match="not trusted"):
        services.activate(version=version)


def test_version_from_before_there_were_client_rules_is_activated_without() -> None:
    version = services.sign(version=published("acme"))
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM guardrails_publication")
    row = services.activate(version=version)
    forget_policies()
    assert loading.verified_statement(row).client_digest == ""
    assert selectors.active_policy("support").version == 1


def test_pattern_in_which_re2_differs_is_refused_by_publish_with_what_it_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    """RE2 itself runs, on a pattern that asks for a digit more: as if it read the one that is signed differently."""
    rule = {"id": "code", "pattern": "re2-code-[0-9]{4}", "must_match": ["my re2-code-1234"]}
    draft = {"policy": "p", "guardrails": [{"name": "codes", "kind": "regex", "client": True,
                                            "config": {"rules": [rule]}}]}  # fmt: skip
    other = compile_rule(Rule("code", "re2-code-[0-9]{5}"))
    monkeypatch.setattr(subset, "finder_in_re2", lambda compiled: parity.finder_in_re2(other))
    policy = services.save_draft(document=draft)
    with pytest.raises(Refused) as refused:
        services.publish(policy=policy)
    assert str(refused.value).startswith("p comes out wrong: codes/code: RE2 finds [] and not [(")
    assert "RE2 finds [] and not [(3, 16)] in 'my re2-code-1234'" in str(refused.value)
    with pytest.raises(CommandError) as failed:
        call_command("rules", "publish", "p", stdout=io.StringIO())
    assert (failed.value.returncode, str(failed.value)) == (1, str(refused.value))
    assert not PolicyVersion.objects.exists()
    monkeypatch.undo()
    subset._client_rule.cache_clear()  # what that RE2 said of the rule is not asked again
    report = services.publish(policy=policy).publication.report
    assert (report["client"]["rules"], report["client"]["engines"]) == (1, ["Python", "RE2", "JavaScript"])
