"""A shadow is a signed version beside the active one; what is wrong with it is told and stops nobody."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection
from pytest_django import DjangoAssertNumQueries

from guardrails import keys, loading, selectors, services
from guardrails.findings import AppliesTo
from guardrails.loading import PolicyUnavailable
from guardrails.models import Policy, PolicyVersion, ShadowChange
from guardrails.performance import Checkpoint
from guardrails.policy import compile_policy
from guardrails.services import Refused
from guardrails.signing import Purpose, canonical_bytes, digest_of, sign
from tests.conftest import Cast, forget_policies

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("forgetful")]


def document(*words: str) -> dict[str, Any]:
    rule: dict[str, Any] = {"name": "words", "kind": "keywords", "action": "block", "keywords": list(words)}
    return {"policy": "support", "description": "d", "guardrails": [rule]}


def signed(*words: str) -> PolicyVersion:
    version = services.publish(policy=services.save_draft(document=document(*words)))
    return services.sign(version=version)


def active_and_shadow() -> tuple[PolicyVersion, PolicyVersion]:
    active, _ = services.install(document=document("acme"))
    shadow = signed("acme", "other")
    services.set_shadow(version=shadow)
    return active, shadow


def test_it_works(cast: Cast) -> None:
    services.install(document=document("acme"))
    shadow = signed("acme", "other")
    change = services.set_shadow(version=shadow, by=cast.operator, note="trial of other")
    assert change is not None
    assert (change.version, change.changed_by, change.note) == (shadow, cast.operator, "trial of other")
    running = selectors.running_policy("support")
    assert running.policy.version == 1
    assert running.shadow is not None
    assert running.shadow.policy is not None
    assert (running.shadow.version, running.shadow.digest, running.shadow.reason) == (2, shadow.digest, "")
    assert running.shadow.policy.version == 2
    ended = services.clear_shadow(policy=shadow.policy, by=cast.operator)
    assert ended is not None
    assert ended.version is None
    assert selectors.running_policy("support").shadow is None
    assert [change.version for change in ShadowChange.objects.all()] == [None, shadow]


def test_list_of_versions_marks_the_shadow(capsys: pytest.CaptureFixture[str]) -> None:
    active_and_shadow()
    call_command("rules", "list")
    said = capsys.readouterr().out.splitlines()
    assert said[1].endswith("signed, shadow")
    assert said[2].endswith("signed, active")


def test_shadow_costs_no_query_of_its_own(django_assert_num_queries: DjangoAssertNumQueries) -> None:
    active_and_shadow()
    selectors.running_policy("support")
    with django_assert_num_queries(1):
        selectors.running_policy("support")


def test_beginning_twice_or_ending_nothing_is_recorded_once() -> None:
    active, shadow = active_and_shadow()
    assert services.set_shadow(version=shadow) is None
    services.clear_shadow(policy=active.policy)
    assert services.clear_shadow(policy=active.policy) is None
    assert ShadowChange.objects.count() == 2


def test_active_version_cannot_be_its_own_shadow() -> None:
    active, _ = services.install(document=document("acme"))
    with pytest.raises(Refused, match="is the active version"):
        services.set_shadow(version=active)


def test_shadow_without_an_active_version_is_refused() -> None:
    with pytest.raises(Refused, match="no active version"):
        services.set_shadow(version=signed("acme"))


def test_unsigned_version_never_runs_as_shadow() -> None:
    services.install(document=document("acme"))
    version = services.publish(policy=services.save_draft(document=document("other")))
    with pytest.raises(PolicyUnavailable, match="not signed"):
        services.set_shadow(version=version)
    assert Policy.objects.get().shadow_version is None
    assert not ShadowChange.objects.exists()


def test_activated_shadow_does_not_run_beside_itself() -> None:
    _, shadow = active_and_shadow()
    services.activate(version=shadow)
    running = selectors.running_policy("support")
    assert (running.policy.version, running.shadow) == (2, None)
    newest = ShadowChange.objects.first()
    assert newest is not None
    assert (newest.version, newest.note) == (None, "It was activated.")


def test_roll_back_to_another_version_keeps_the_shadow() -> None:
    services.install(document=document("acme"))
    second, shadow = signed("acme", "b"), signed("acme", "c")
    services.set_shadow(version=shadow)
    services.activate(version=second)
    running = selectors.running_policy("support")
    assert running.shadow is not None
    assert (running.policy.version, running.shadow.version) == (2, 3)


def test_altered_shadow_is_loud_and_the_active_version_runs(caplog: pytest.LogCaptureFixture) -> None:
    _, shadow = active_and_shadow()
    with connection.cursor() as cursor:
        cursor.execute("DROP TRIGGER IF EXISTS guardrails_version_stays")
        weaker = shadow.canonical.replace("other", "nothing")
        cursor.execute("UPDATE guardrails_policyversion SET canonical = %s WHERE id = %s", [weaker, shadow.pk])
    forget_policies()
    running = selectors.running_policy("support")
    assert running.policy.version == 1
    assert running.shadow is not None
    assert (running.shadow.version, running.shadow.policy) == (2, None)
    assert "altered" in running.shadow.reason
    assert "shadow_unhealthy" in caplog.text
    (info,) = selectors.policy_choices()
    assert (info.healthy, info.shadow) == (True, 2)
    assert "altered" in info.shadow_error


def test_shadow_that_stops_building_is_not_compiled_for_every_session(monkeypatch: pytest.MonkeyPatch) -> None:
    active, _ = services.install(document=document("acme"))
    gone = {"policy": "support", "guardrails": [{"name": "g", "kind": "gone"}]}
    record = canonical_bytes({"policy": "support", "version": 9, "document": gone})
    version = PolicyVersion.objects.create(
        policy=active.policy,
        number=9,
        canonical=record.decode(),
        digest=digest_of(record),
        signature=sign(record, keys.signing_key(Purpose.VERSION)),
    )
    Policy.objects.filter(pk=active.policy_id).update(shadow_version=version)
    tried: list[int] = []

    def load(version: PolicyVersion) -> object:
        tried.append(version.number)
        return loading.load(version)

    monkeypatch.setattr(selectors, "load", load)
    reasons = {running.shadow.reason for _ in range(5) if (running := selectors.running_policy("support")).shadow}
    assert tried.count(9) == 1
    assert len(reasons) == 1
    assert "guardrails[0].kind" in reasons.pop()
    monkeypatch.setattr(selectors, "SICK_S", -1.0)
    selectors.forget()
    selectors.running_policy("support")
    selectors.running_policy("support")
    assert tried.count(9) == 3


def test_crash_while_a_shadow_loads_ends_no_session(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _, shadow = active_and_shadow()

    def load(version: PolicyVersion) -> object:
        if version.number == shadow.number:
            raise RecursionError("too deep")
        return loading.load(version)

    monkeypatch.setattr(selectors, "load", load)
    running = selectors.running_policy("support")
    assert running.policy.version == 1
    assert running.shadow is not None
    assert running.shadow.policy is None
    assert "RecursionError" in running.shadow.reason
    assert "shadow_unhealthy" in caplog.text


def test_part_of_a_version_is_that_version_with_fewer_guardrails() -> None:
    policy = compile_policy(
        {
            "policy": "p",
            "guardrails": [
                {"name": "words", "kind": "keywords", "keywords": ["acme"]},
                {"name": "harm", "kind": "toxicity"},
                {"name": "judge", "kind": "ai_judge", "config": {"rubric": "harm"}},
            ],
        },
        version=4,
        digest="sha256:four",
    )
    part = policy.only(Checkpoint.IMMEDIATE)
    assert (part.version, part.digest, [g.name for g in part.guardrails]) == (4, "sha256:four", ["words"])
    assert part is policy.only(Checkpoint.IMMEDIATE)
    assert [g.name for g in policy.only(Checkpoint.BATCHED).guardrails] == ["harm"]
    whole = policy.plan(AppliesTo.RESPONSE, monitor=True)
    assert part.plan(AppliesTo.RESPONSE, monitor=True).lanes[0].scanner is whole.lanes[0].scanner
