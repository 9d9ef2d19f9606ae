"""A version's life: each step only when the one before was taken, nothing altered afterwards, everything recorded."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import DatabaseError, connection, transaction

from guardrails import selectors, services
from guardrails.loading import PolicyUnavailable
from guardrails.models import Activation, ApiKey, ImmutableRecord, Policy, PolicyVersion
from guardrails.policy import PolicyError
from guardrails.services import Refused
from guardrails.signing import digest_of
from tests.conftest import Cast

pytestmark = pytest.mark.django_db


def document(*words: str, name: str = "support") -> dict[str, Any]:
    rule: dict[str, Any] = {"name": "words", "kind": "keywords", "action": "warn", "keywords": list(words)}
    return {"policy": name, "description": f"about {' '.join(words)}", "guardrails": [rule]}


def published(*words: str) -> PolicyVersion:
    return services.publish(policy=services.save_draft(document=document(*words)))


def test_it_works(cast: Cast) -> None:
    policy = services.save_draft(document=document("acme"), by=cast.author)
    version = services.publish(policy=policy, by=cast.author, notes="first")
    services.sign(version=version, by=cast.signer)
    activation = services.activate(version=version, by=cast.operator)
    running = selectors.active_policy("support")
    assert (running.version, running.digest) == (1, version.digest)
    assert [g.name for g in running.guardrails] == ["words"]
    assert (version.published_by, version.signed_by, activation.activated_by) == (
        cast.author, cast.signer, cast.operator
    )  # fmt: skip
    assert version.digest == digest_of(version.canonical.encode())
    assert version.notes == "first"


def test_draft_is_refused_with_the_path_and_stores_nothing() -> None:
    wrong = document("acme")
    wrong["guardrails"][0]["kind"] = "nope"
    with pytest.raises(PolicyError) as refused:
        services.save_draft(document=wrong)
    assert refused.value.path == "guardrails[0].kind"
    assert not Policy.objects.exists()


@pytest.mark.parametrize("char", ["\0", "\ud800"], ids=["NUL", "half a pair"])
def test_text_that_no_database_stores_is_refused_with_the_path(char: str) -> None:
    """PostgreSQL has no NUL in its JSON: such a draft was a traceback there, and a rule that nothing matches here."""
    wrong = document("acme")
    wrong["guardrails"][0]["config"] = {"keywords": ["fine", f"ac{char}me"]}
    with pytest.raises(PolicyError) as refused:
        services.save_draft(document=wrong)
    assert refused.value.path == "guardrails[0].config.keywords[1]"
    wrong = document("acme") | {f"a{char}": 1}
    with pytest.raises(PolicyError):
        services.save_draft(document=wrong)
    assert not Policy.objects.exists()


def test_document_that_is_nested_without_end_is_refused() -> None:
    deep: list[object] = []
    for _ in range(5_000):
        deep = [deep]
    with pytest.raises(PolicyError, match="deep"):
        services.save_draft(document=document("acme") | {"description": deep})


def test_draft_changes_nothing_that_runs() -> None:
    services.install(document=document("acme"))
    services.save_draft(document=document("other"))
    assert selectors.active_policy("support").version == 1
    assert Policy.objects.get().description == "about acme"


def test_published_without_a_draft_is_refused() -> None:
    version = published("acme")
    with pytest.raises(Refused, match="no draft"):
        services.publish(policy=version.policy)


def test_rule_whose_own_example_comes_out_wrong_is_not_published() -> None:
    right = {"id": "r", "pattern": "abc", "must_match": ["abc"]}
    rules = [right, {"id": "a", "pattern": "abc", "must_match": ["abc", "xyz"], "must_not_match": ["abc"]}]
    plain = {"name": "f", "kind": "regex", "config": {"patterns": ["abc"]}}
    draft = services.save_draft(
        document={"policy": "p", "guardrails": [plain, {"name": "g", "kind": "regex", "config": {"rules": rules}}]}
    )
    with pytest.raises(Refused) as refused:
        services.publish(policy=draft)
    assert str(refused.value) == (
        "p comes out wrong: "
        "guardrails[1].config.rules[1].must_match[1]: g/a must match, but does not: 'xyz'; "
        "guardrails[1].config.rules[1].must_not_match[0]: g/a must pass, but does not: 'abc'"
    )
    assert not PolicyVersion.objects.exists()


def test_draft_changed_during_publication_is_not_half_published(monkeypatch: pytest.MonkeyPatch) -> None:
    draft = services.save_draft(document=document("acme"))
    examine = services.examine_document

    def meanwhile(found: Any) -> Any:
        services.save_draft(document=document("other"))
        return examine(found)

    monkeypatch.setattr(services, "examine_document", meanwhile)
    with pytest.raises(Refused, match="changed"):
        services.publish(policy=draft)
    assert not PolicyVersion.objects.exists()


def test_numbers_count_up_and_equal_documents_have_digests_of_their_own() -> None:
    first, second = published("acme"), published("acme")
    assert (first.number, second.number) == (1, 2)
    assert first.document == second.document
    assert first.digest != second.digest


def test_version_is_signed_once() -> None:
    version = services.sign(version=published("acme"))
    signature = version.signature
    with pytest.raises(Refused, match="already"):
        services.sign(version=version)
    version.refresh_from_db()
    assert version.signature == signature


def test_unsigned_version_is_not_activated() -> None:
    with pytest.raises(PolicyUnavailable) as refused:
        services.activate(version=published("acme"))
    assert refused.value.reason == "unsigned"
    assert not Activation.objects.exists()


def test_roll_back_is_a_higher_serial_with_an_older_version() -> None:
    first, _ = services.install(document=document("acme"))
    second, _ = services.install(document=document("acme", "other"))
    services.activate(version=first)
    assert selectors.active_policy("support").version == 1
    assert Policy.objects.get().description == "about acme"
    rows = Activation.objects.order_by("serial").values_list("serial", "version__number")
    assert list(rows) == [(1, 1), (2, second.number), (3, 1)]


def test_install_again_does_nothing_and_undoes_no_roll_back() -> None:
    first, _ = services.install(document=document("acme"))
    services.install(document=document("acme", "other"))
    services.activate(version=first)
    again, is_new = services.install(document=document("acme", "other"))
    assert (again.number, is_new) == (2, False)
    assert selectors.active_policy("support").version == 1


def test_install_goes_on_where_it_was_cut_off() -> None:
    published("acme")
    version, is_new = services.install(document=document("acme"))
    assert (version.number, is_new) == (1, False)
    assert selectors.active_policy("support").version == 1


def test_version_is_changed_and_removed_by_no_code() -> None:
    version = published("acme")
    version.notes = "better"
    with pytest.raises(ImmutableRecord):
        version.save()
    with pytest.raises(ImmutableRecord):
        version.delete()
    with pytest.raises(ImmutableRecord):
        PolicyVersion.objects.update(notes="better")
    with pytest.raises(ImmutableRecord):
        PolicyVersion.objects.all().delete()
    assert PolicyVersion.objects.get().notes == ""


@pytest.mark.parametrize(
    "column", ["canonical", "digest", "notes", "number", "signature", "published_by_id", "signed_by_id"]
)
def test_version_is_changed_by_no_sql(column: str) -> None:
    services.sign(version=published("acme"))
    value = 7 if column == "number" or column.endswith("_id") else "x"
    statement = f"UPDATE guardrails_policyversion SET {column} = %s"
    with connection.cursor() as cursor, pytest.raises(DatabaseError, match="cannot be changed"), transaction.atomic():
        cursor.execute(statement, [value])


def test_api_key_is_shown_once_and_stored_nowhere(cast: Cast) -> None:
    published("acme")
    key, plaintext = services.create_api_key(
        name="shop", scopes=["stream", "check", "check"], policy="support", by=cast.operator
    )
    assert key.scopes == ["check", "stream"]
    assert plaintext not in str(ApiKey.objects.values_list())
    assert selectors.api_key_for(plaintext) == key


@pytest.mark.parametrize("name", ["Shop\u3000本店", "a\u00a0b", "\U0001f469\u200d\U0001f4bb", "می\u200cخواهم"])
def test_api_key_has_a_name_in_any_language(name: str) -> None:
    """With the spaces and joiners of each."""
    key, _ = services.create_api_key(name=f" {name} ", scopes=["check"])
    assert key.name == name


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"scopes": ["everything"]}, "unknown scopes"),
        ({"scopes": []}, "opens nothing"),
        ({"scopes": ["check"], "policy": "nope"}, "no policy"),
        ({"scopes": ["check"], "name": " "}, "needs a name"),
        ({"scopes": ["check"], "name": "taken"}, "already"),
        ({"scopes": ["check"], "name": 101 * "x"}, "at most 100"),
        ({"scopes": ["check"], "name": "shop\nowner"}, "in one line"),
        ({"scopes": ["check"], "name": "shop\0"}, "in one line"),
        ({"scopes": ["check"], "name": "shop \udcff"}, "in one line"),
        ({"scopes": ["check"], "name": "shop\u2028owner"}, "in one line"),
        ({"scopes": ["check"], "name": "taken\u200b"}, "in one line"),
        ({"scopes": ["check"], "name": "\u202eabc"}, "in one line"),
        ({"scopes": ["check"], "name": "taken\u200d"}, "in one line"),
        ({"scopes": ["check"], "name": "ta\u200cken"}, "in one line"),
        ({"scopes": ["check"], "name": " \u200d\u200c "}, "needs a name"),
        ({"scopes": ["check"], "origins": ["https://a.example/path"]}, "not an origin"),
        ({"scopes": ["check"], "calls_per_minute": 0}, "1 or more"),
        ({"scopes": ["check"], "updates_per_second": 0}, "1 or more"),
        ({"scopes": ["check"], "answers_at_once": 0}, "1 or more"),
    ],
)
def test_api_key_that_makes_no_sense_is_refused_and_nothing_stored(asked: dict[str, Any], words: str) -> None:
    services.create_api_key(name="taken", scopes=["check"])
    with pytest.raises(Refused, match=words):
        services.create_api_key(**{"name": "shop", **asked})
    assert ApiKey.objects.count() == 1


def test_key_that_has_a_name_which_is_not_taken_any_more_can_be_changed() -> None:
    key, _ = services.create_api_key(name="shop", scopes=["check"])
    ApiKey.objects.filter(pk=key.pk).update(name="shop\u200e")
    asked: dict[str, Any] = {"policy": "", "origins": [], "calls_per_minute": 7, "updates_per_second": 8}
    assert services.change_api_key(key=key, name="shop\u200e", scopes=["stream"], **asked).scopes == ["stream"]
    with pytest.raises(Refused, match="in one line"):
        services.change_api_key(key=key, name="till\u200e", scopes=["check"], **asked)


def test_change_of_a_key_is_whole_or_refused_and_never_touches_the_secret() -> None:
    services.create_api_key(name="taken", scopes=["check"])
    key, plaintext = services.create_api_key(name="shop", scopes=["check"])
    asked: dict[str, Any] = {"name": "till", "scopes": ["stream", "check"], "policy": "",
                             "origins": ["https://Shop.example:443", "https://shop.example"],
                             "calls_per_minute": 7, "updates_per_second": 8}  # fmt: skip
    for wrong in ({"name": "taken"}, {"policy": "nope"}, {"scopes": []}, {"origins": ["shop.example"]}):
        with pytest.raises(Refused):
            services.change_api_key(key=key, **{**asked, **wrong})
    unchanged = selectors.api_key_for(plaintext)
    assert unchanged is not None
    assert (unchanged.name, unchanged.scopes) == ("shop", ["check"])
    services.change_api_key(key=key, **asked)
    found = selectors.api_key_for(plaintext)
    assert found is not None
    assert {name: getattr(found, name) for name in asked} == {
        **asked, "scopes": ["check", "stream"], "origins": ["https://shop.example"]
    }  # fmt: skip


def test_revoked_key_opens_nothing_and_keeps_its_first_date() -> None:
    key, plaintext = services.create_api_key(name="shop", scopes=["check"])
    services.revoke_api_key(key=key)
    revoked = key.revoked_at
    assert selectors.api_key_for(plaintext) is None
    assert services.revoke_api_key(key=key).revoked_at == revoked
