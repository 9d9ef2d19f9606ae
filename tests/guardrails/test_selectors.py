"""What does not verify never runs; what ran last goes on; a key opens only with all of its characters."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from pytest_django import DjangoAssertNumQueries

from guardrails import keys, loading, selectors, services
from guardrails.loading import PolicyUnavailable
from guardrails.models import ApiKey, Policy, PolicyVersion
from guardrails.signing import Purpose, SigningKey, canonical_bytes, digest_of, new_key_pem, sign
from tests.conftest import forget_policies

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("forgetful")]
Tamper = Callable[..., None]


def document(*words: str, name: str = "support") -> dict[str, Any]:
    rule: dict[str, Any] = {"name": "words", "kind": "keywords", "action": "warn", "keywords": list(words)}
    return {"policy": name, "description": "d", "guardrails": [rule]}


def install(*words: str, name: str = "support") -> PolicyVersion:
    return services.install(document=document(*words, name=name))[0]


@pytest.fixture
def tamper() -> Tamper:
    """Change columns of a version as somebody would who has the database: triggers are no obstacle to them."""

    def change(version: PolicyVersion, **columns: object) -> None:
        with connection.cursor() as cursor:
            cursor.execute("DROP TRIGGER IF EXISTS guardrails_version_stays")
            for column, value in columns.items():
                statement = f"UPDATE guardrails_policyversion SET {column} = %s WHERE id = %s"
                cursor.execute(statement, [value, version.pk])

    return change


def reason(name: str = "support") -> str:
    with pytest.raises(PolicyUnavailable) as refused:
        selectors.active_policy(name)
    return refused.value.reason


def test_it_works() -> None:
    version = install("acme")
    policy = selectors.active_policy("support")
    assert (policy.name, policy.version, policy.digest) == ("support", 1, version.digest)
    assert selectors.policy_by_digest(version.digest) is policy
    (info,) = selectors.policy_choices()
    assert (info.name, info.version, info.digest, info.signed, info.healthy, info.error) == (
        "support", 1, version.digest, True, True, ""
    )  # fmt: skip


def test_asked_again_it_costs_one_query_and_compiles_nothing(
    django_assert_num_queries: DjangoAssertNumQueries, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("acme")
    policy = selectors.active_policy("support")
    monkeypatch.delattr(loading, "compile_policy")
    monkeypatch.delattr(loading, "verify")
    with django_assert_num_queries(1):
        assert selectors.active_policy("support") is policy


def test_policy_that_is_not_there_or_not_active_says_so() -> None:
    assert reason("nope") == "unknown"
    services.save_draft(document=document("acme"))
    assert reason() == "inactive"
    with pytest.raises(PolicyUnavailable) as refused:
        selectors.policy_by_digest("sha256:0")
    assert refused.value.reason == "unknown"
    assert selectors.policy_choices() == []


def test_altered_document_never_runs(tamper: Tamper) -> None:
    version = install("acme")
    weaker = version.canonical.replace("acme", "nothing")
    forget_policies()
    tamper(version, canonical=weaker)
    assert reason() == "altered"
    tamper(version, digest=digest_of(weaker.encode()))
    assert reason() == "altered"


def test_unsigned_active_version_never_runs(tamper: Tamper) -> None:
    version = install("acme")
    forget_policies()
    tamper(version, signature="")
    assert reason() == "unsigned"
    (info,) = selectors.policy_choices()
    assert (info.signed, info.healthy) == (False, False)
    assert "not signed" in info.error


def test_version_signed_by_a_key_of_somebody_else_never_runs(tamper: Tamper) -> None:
    version = install("acme")
    forget_policies()
    stranger = SigningKey.from_pem(new_key_pem(), Purpose.VERSION)
    tamper(version, signature=sign(version.canonical.encode(), stranger))
    assert reason() == "untrusted"


def test_version_signed_for_another_purpose_never_runs(tamper: Tamper) -> None:
    version = install("acme")
    forget_policies()
    tamper(version, signature=sign(version.canonical.encode(), keys.signing_key(Purpose.ACTIVATION)))
    assert reason() == "untrusted"


def test_signed_version_of_another_policy_cannot_be_put_in_its_place(tamper: Tamper) -> None:
    strict, lax = install("acme"), install("nothing", name="lax")
    forget_policies()
    tamper(lax, digest="sha256:moved", number=7)  # make room for the digest, which is unique
    tamper(strict, canonical=lax.canonical, signature=lax.signature, digest=lax.digest)
    assert reason() == "altered"


def test_older_signed_version_cannot_pose_as_a_newer_one(tamper: Tamper) -> None:
    first, second = install("acme"), install("acme", "other")
    forget_policies()
    tamper(first, digest="sha256:moved")
    tamper(second, canonical=first.canonical, signature=first.signature, digest=first.digest)
    assert reason() == "altered"


def test_last_good_version_goes_on_when_the_active_row_is_altered(
    tamper: Tamper, caplog: pytest.LogCaptureFixture
) -> None:
    version = install("acme")
    good = selectors.active_policy("support")
    tamper(version, canonical=version.canonical.replace("acme", "nothing"))
    assert selectors.active_policy("support") is good
    assert "policy_unhealthy" in caplog.text
    (info,) = selectors.policy_choices()
    assert not info.healthy
    assert "altered" in info.error
    assert info.running == good.version == 1
    forget_policies()  # as after a restart
    (info,) = selectors.policy_choices()
    assert (info.healthy, info.running) == (False, 0)


def test_last_good_version_goes_on_when_a_bad_one_is_made_active(tamper: Tamper) -> None:
    first, second = install("acme"), install("acme", "other")
    services.activate(version=first)
    good = selectors.active_policy("support")
    loading.forget()
    tamper(second, signature="")
    Policy.objects.filter(name="support").update(active_version=second)
    assert selectors.active_policy("support") is good


def test_signed_version_that_stops_building_is_unhealthy_not_skipped() -> None:
    """As when a newer release refuses what an older one took."""
    record = canonical_bytes(
        {"policy": "old", "version": 1, "document": {"policy": "old", "guardrails": [{"name": "g", "kind": "gone"}]}}
    )
    policy = Policy.objects.create(name="old")
    version = PolicyVersion.objects.create(
        policy=policy,
        number=1,
        canonical=record.decode(),
        digest=digest_of(record),
        signature=sign(record, keys.signing_key(Purpose.VERSION)),
    )
    Policy.objects.filter(pk=policy.pk).update(active_version=version)
    assert reason("old") == "broken"
    (info,) = selectors.policy_choices()
    assert (info.signed, info.healthy) == (True, False)
    assert "guardrails[0].kind" in info.error


def test_running_session_keeps_its_version_after_another_was_activated() -> None:
    first = install("acme")
    install("acme", "other")
    forget_policies()
    assert selectors.policy_by_digest(first.digest).version == 1
    assert selectors.active_policy("support").version == 2


def test_compiled_versions_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "KEPT", 2)
    digests = [install("acme", f"word{n}").digest for n in range(4)]
    assert [loading.kept(digest) is not None for digest in digests] == [False, False, True, True]


def test_digest_of_what_is_stored_is_that_of_the_document() -> None:
    version = install("acme")
    record = {"policy": "support", "version": 1, "document": version.document}
    assert digest_of(canonical_bytes(record)) == version.digest
    assert json.loads(version.canonical) == record


@pytest.mark.parametrize("change", [lambda key: key[:-1] + "!", lambda key: key[:-1], lambda key: key + "x", str.lower])
def test_key_with_one_character_off_opens_nothing(change: Callable[[str], str]) -> None:
    _, plaintext = services.create_api_key(name="shop", scopes=["check"])
    assert selectors.api_key_for(plaintext) is not None
    assert selectors.api_key_for(change(plaintext)) is None


def test_secret_of_one_key_does_not_open_another() -> None:
    _, one = services.create_api_key(name="one", scopes=["check"])
    _, two = services.create_api_key(name="two", scopes=["check"])
    assert selectors.api_key_for(one[:12] + two[12:]) is None


@pytest.mark.parametrize("given", ["", "sg_", "é" * 55, "x" * 100_000, "sg_00000000_" + "0" * 43, "a\x00b"])
def test_what_is_no_key_opens_nothing(given: str) -> None:
    assert selectors.api_key_for(given) is None


def test_use_of_a_key_is_noted_once_a_minute() -> None:
    key, plaintext = services.create_api_key(name="shop", scopes=["check"])

    def used() -> object:
        selectors.api_key_for(plaintext)
        key.refresh_from_db()
        return key.last_used_at

    first = used()
    assert first is not None
    assert used() == first
    earlier = key.last_used_at - timedelta(minutes=2)  # type: ignore[operator]
    ApiKey.objects.update(last_used_at=earlier)
    assert used() != earlier
