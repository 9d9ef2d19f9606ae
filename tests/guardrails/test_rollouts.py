"""A version meets a few before it meets all: sticky, stated like any other, and gone at once where it must not run."""

from __future__ import annotations

import io
from typing import Any

import pytest
from django.contrib.auth.models import Group
from django.core.management import CommandError, call_command
from pytest_django import DjangoAssertNumQueries

from guardrails import loading, selectors, services, stating
from guardrails.cohorts import Counts, Limits, Subject, exceeded, place
from guardrails.loading import PolicyUnavailable, verified_statement
from guardrails.models import Activation, Policy, PolicyVersion, Rollout
from guardrails.services import Refused
from tests.conftest import Cast, forget_policies

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("forgetful")]
MANY = [f"conversation-{n}" for n in range(400)]


def document(*words: str) -> dict[str, Any]:
    rule: dict[str, Any] = {"name": "words", "kind": "keywords", "action": "warn", "keywords": list(words)}
    return {"policy": "support", "description": "d", "guardrails": [rule]}


@pytest.fixture
def policy() -> Policy:
    """Version 1 is active, version 2 is signed."""
    services.install(document=document("acme"))
    services.sign(version=services.publish(policy=services.save_draft(document=document("acme", "heron"))))
    return Policy.objects.get()


def version(number: int) -> PolicyVersion:
    return PolicyVersion.objects.get(number=number)


def runs(subject: Subject | str) -> int:
    given = Subject(subject) if isinstance(subject, str) else subject
    return selectors.running_policy("support", given).policy.version


def on_second() -> set[str]:
    return {name for name in MANY if runs(name) == 2}


def test_it_works(policy: Policy, cast: Cast) -> None:
    rollout = services.begin_rollout(version=version(2), percent=25, by=cast.operator, note="try it")
    chosen = on_second()
    assert len(MANY) * 0.15 < len(chosen) < len(MANY) * 0.35
    assert on_second() == chosen
    assert chosen == {name for name in MANY if place(f"{policy.pk}/{rollout.pk}", name) < 25}
    row = rollout.activation
    assert (row.cohort, row.serial, row.activated_by, row.note) == ("rollout", 2, cast.operator, "try it")
    assert verified_statement(row).cohort == "rollout"
    assert selectors.active_policy("support").version == 1
    assert selectors.running_policy("support", Subject(min(chosen))).cohort == "rollout"


@pytest.mark.parametrize(
    ("name", "conversation", "percent"),
    [
        ("1/1", "conversation-0", 3.8336869933251063),
        ("1/1", "conversation-1", 34.68049744630714),
        ("2/1", "conversation-0", 48.50603731647244),
    ],
)
def test_place_is_the_same_in_every_process_and_release(name: str, conversation: str, percent: float) -> None:
    assert place(name, conversation) == percent


def test_larger_share_keeps_those_that_are_in(policy: Policy) -> None:
    services.begin_rollout(version=version(2), percent=10)
    few = on_second()
    services.change_rollout(policy=policy, percent=60)
    more = on_second()
    assert few < more
    services.change_rollout(policy=policy, percent=100)
    assert on_second() == set(MANY)


def test_members_of_a_group_all_run_it_and_it_costs_others_no_query(
    policy: Policy, cast: Cast, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    cast.reviewer.groups.add(Group.objects.create(name="pilots"))
    services.begin_rollout(version=version(2), groups=["pilots"])
    assert {runs(Subject(name, cast.reviewer.pk)) for name in MANY[:9]} == {2}
    assert {runs(Subject(name, cast.author.pk)) for name in MANY[:9]} == {1}
    with django_assert_num_queries(1):
        assert runs(MANY[0]) == 1
    cast.reviewer.is_active = False
    cast.reviewer.save()
    assert runs(Subject(MANY[0], cast.reviewer.pk)) == 1


def test_session_without_a_conversation_throws_its_own_dice(policy: Policy) -> None:
    services.begin_rollout(version=version(2), percent=50)
    found = [runs("") for _ in range(200)]
    assert 50 < found.count(2) < 150


def test_activation_for_everyone_ends_it(policy: Policy, cast: Cast) -> None:
    services.begin_rollout(version=version(2), percent=10)
    services.activate(version=version(2), by=cast.operator)
    row = Rollout.objects.get()
    assert (row.outcome, row.ended_by) == ("promoted", cast.operator)
    services.begin_rollout(version=version(1), percent=100)
    services.activate(version=version(2))
    assert list(Rollout.objects.values_list("outcome", flat=True)) == ["ended", "promoted"]
    assert on_second() == set(MANY)


def test_ended_by_hand_new_sessions_run_the_active_one_and_old_ones_finish(policy: Policy, cast: Cast) -> None:
    services.begin_rollout(version=version(2), percent=100)
    assert runs("x") == 2
    ended = services.end_rollout(policy=policy, by=cast.operator, why="enough")
    assert ended is not None
    assert (ended.outcome, ended.ended_by, ended.ended_why) == ("ended", cast.operator, "enough")
    assert runs("x") == 1
    assert selectors.policy_by_digest(version(2).digest).version == 2
    assert services.end_rollout(policy=policy) is None


def test_version_that_cannot_run_is_told_and_the_active_one_runs(
    policy: Policy, caplog: pytest.LogCaptureFixture
) -> None:
    services.begin_rollout(version=version(2), percent=100)
    Activation.objects.filter(cohort="rollout").update(serial=99)
    assert runs("x") == 1
    assert "rollout_unhealthy" in caplog.text
    forget_policies()
    assert selectors.active_policy("support").version == 1


def test_rollout_of_another_policys_version_is_told_and_not_run(
    policy: Policy, caplog: pytest.LogCaptureFixture
) -> None:
    services.install(document=document("x") | {"policy": "lax"})
    services.sign(version=services.publish(policy=services.save_draft(document=document("y") | {"policy": "lax"})))
    other = services.begin_rollout(version=PolicyVersion.objects.get(policy__name="lax", number=2), percent=100)
    Policy.objects.filter(pk=policy.pk).update(rollout=other)
    assert selectors.running_policy("support", Subject("x")).policy.name == "support"
    assert "rollout_unhealthy" in caplog.text


def test_row_of_a_rollout_that_somebody_altered_chooses_between_its_two_versions_and_no_others(policy: Policy) -> None:
    """What is not signed of a rollout: for whom it runs. What is: all that can run."""
    third = services.sign(version=services.publish(policy=services.save_draft(document=document("nothing"))))
    rollout = services.begin_rollout(version=version(2), percent=10)
    own = rollout.activation
    rows = Rollout.objects.filter(pk=rollout.pk)

    rows.update(percent=100, max_errors=None, max_would_have=None)
    assert on_second() == set(MANY)
    rows.update(percent=0)
    assert on_second() == set()
    rows.update(percent=100)

    everyone = policy.activations.get(cohort="")
    forged = {"policy": policy, "cohort": "rollout", "serial": 9}
    for row in (
        everyone,  # the word for everyone, in the place of that for a cohort
        Activation.objects.create(version=third, statement=own.statement, **forged),
        Activation.objects.create(version=third, statement=everyone.statement, **forged | {"serial": 10}),
        Activation.objects.create(version=third, statement="", **forged | {"serial": 11}),
    ):
        rows.update(activation=row)
        assert {runs(name) for name in MANY[:20]} == {1}
    rows.update(activation=own)
    assert on_second() == set(MANY)

    services.end_rollout(policy=policy)
    Policy.objects.filter(pk=policy.pk).update(rollout=rollout)  # an ended one is put back …
    assert on_second() == set(MANY)
    services.end_rollout(policy=policy)
    services.begin_rollout(version=third, percent=10)
    assert {selectors.running_policy("support", Subject(name)).policy.version for name in MANY} == {1, 3}
    Policy.objects.filter(pk=policy.pk).update(rollout=rollout)
    assert {runs(name) for name in MANY} == {1}  # … until another has followed it


def test_statement_for_a_cohort_is_renewed_and_stands_for_no_other(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollout = services.begin_rollout(version=version(2), percent=100)
    now = loading.wall_clock() + 7 * 3_600
    monkeypatch.setattr(stating, "wall_clock", lambda: now)
    assert services.renew_statements() == 2
    Policy.objects.update(active_version=version(2), activation=rollout.activation)
    for ask in (selectors.active_policy, selectors.client_bundle):
        with pytest.raises(PolicyUnavailable, match="another cohort"):
            ask("support")
    Activation.objects.filter(pk=rollout.activation.pk).update(cohort="")
    with pytest.raises(PolicyUnavailable, match="another cohort"):
        selectors.active_policy("support")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"percent": 0}, "nobody would run it"),
        ({"percent": 101}, "between 0 and 100"),
        ({"percent": -1}, "between 0 and 100"),
        ({"groups": ["nope"]}, "no group nope"),
        ({"percent": 5, "max_errors": 5}, "share between 0 and 1"),
        ({"percent": 5, "max_would_have": -0.1}, "share between 0 and 1"),
        ({"percent": 5, "sample": 0}, "sample of one"),
    ],
    ids=range(7),
)
def test_what_is_no_rollout_is_refused(policy: Policy, options: dict[str, Any], why: str) -> None:
    with pytest.raises(Refused, match=why):
        services.begin_rollout(version=version(2), **options)
    assert not Rollout.objects.exists()


def test_order_of_things_is_kept(policy: Policy) -> None:
    with pytest.raises(Refused, match="active for everyone"):
        services.begin_rollout(version=version(1), percent=5)
    with pytest.raises(Refused, match="no version"):
        services.change_rollout(policy=policy, percent=5)
    services.begin_rollout(version=version(2), percent=5)
    with pytest.raises(Refused, match="already"):
        services.begin_rollout(version=version(2), percent=5)
    third = services.publish(policy=services.save_draft(document=document("third")))
    services.end_rollout(policy=policy)
    with pytest.raises(PolicyUnavailable, match="not signed"):
        services.begin_rollout(version=third, percent=5)
    assert Activation.objects.count() == 2


@pytest.mark.parametrize(
    ("counts", "left"),
    [
        (Counts(49, 49, 49), False),
        (Counts(50, 5, 10), False),
        (Counts(50, 6, 0), True),
        (Counts(50, 0, 11), True),
        (Counts(0, 0, 0), False),
    ],
)
def test_limit_is_left_only_with_enough_sessions(counts: Counts, left: bool) -> None:
    assert bool(exceeded(counts, Limits(errors=0.1, would_have=0.2, sample=50))) is left


def test_words_say_what_left_the_limit() -> None:
    assert exceeded(Counts(60, 9, 0), Limits(0.05, None, 50)) == ("9 of 60 sessions failed (15.0%; the limit is 5.0%)")
    assert exceeded(Counts(60, 60, 60), Limits(None, None, 50)) == ""


def test_command_begins_changes_shows_and_ends(policy: Policy) -> None:
    def run(*args: object) -> str:
        out = io.StringIO()
        call_command("rules", *map(str, args), stdout=out)
        return out.getvalue()

    assert run("rollout", "support", 2, "--percent", 10, "--max-errors", 0.1) == "support: version 2 runs for 10 %\n"
    assert "rolled out to 10 %" in run("list")
    assert run("rollout", "support", "--percent", 50) == "support: version 2 now runs for 50 %\n"
    assert "has ended" in run("rollout", "support", "--end", "--note", "done")
    assert Rollout.objects.get().ended_why == "done"
    for args in (("--end",), ("--percent", "500"), ("9", "--percent", "5")):
        with pytest.raises(CommandError) as failed:
            run("rollout", "support", *args)
        assert failed.value.returncode == 1
