"""Separate duties: nobody signs what they wrote, each ready-made group does its part and no other."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.contrib.auth.models import Group, Permission, User
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection, transaction

from guardrails import services
from guardrails.models import PolicyVersion
from guardrails.services import Refused
from streaming.roles import ROLES, make_groups
from tests.conftest import Cast

pytestmark = pytest.mark.django_db


@pytest.fixture
def four_eyes(settings: Any) -> None:
    settings.SLUICEGATE_FOUR_EYES = True


def document(*words: str) -> dict[str, Any]:
    return {"policy": "support", "guardrails": [{"kind": "keywords", "keywords": list(words)}]}


def published(writer: User | None, publisher: User | None) -> PolicyVersion:
    return services.publish(policy=services.save_draft(document=document("acme"), by=writer), by=publisher)


def run(*args: object) -> str:
    out = io.StringIO()
    call_command("rules", *map(str, args), stdout=out)
    return out.getvalue()


def fails(*args: object) -> tuple[int, str]:
    with pytest.raises(CommandError) as failed:
        run(*args)
    return failed.value.returncode, str(failed.value)


@pytest.mark.usefixtures("four_eyes")
def test_it_works(cast: Cast) -> None:
    version = services.sign(version=published(cast.author, cast.author), by=cast.signer)
    assert version.signed_by == cast.signer
    assert services.activate(version=version, by=cast.operator).activated_by == cast.operator


@pytest.mark.usefixtures("four_eyes")
def test_who_wrote_or_published_cannot_sign(cast: Cast) -> None:
    version = published(cast.author, cast.operator)
    for person in (cast.author, cast.operator):
        with pytest.raises(Refused, match="somebody else has to sign"):
            services.sign(version=version, by=person)
    with pytest.raises(Refused, match="say who signs"):
        services.sign(version=version)
    version.refresh_from_db()
    assert version.signature == ""
    with pytest.raises(Refused, match="nobody is on record"):
        services.sign(version=published(None, None), by=cast.signer)


@pytest.mark.usefixtures("four_eyes")
def test_who_wrote_any_part_cannot_sign_whoever_saved_last(cast: Cast) -> None:
    services.save_draft(document=document("acme"), by=cast.signer)
    version = published(cast.author, cast.author)
    with pytest.raises(Refused, match="signer wrote or published"):
        services.sign(version=version, by=cast.signer)
    assert services.sign(version=version, by=cast.operator).signed_by == cast.operator
    services.save_draft(document=document("acme", "heron"), by=cast.author)  # what was signed is nobody's draft
    second = services.publish(policy=version.policy, by=cast.author)
    assert services.sign(version=second, by=cast.signer).signed_by == cast.signer


@pytest.mark.usefixtures("four_eyes")
def test_what_nobody_signed_takes_its_authors_along(cast: Cast) -> None:
    """A draft begins with the newest version: an unsigned one would carry its author's words past the rule."""
    published(cast.signer, cast.signer)
    second = published(cast.author, cast.author)
    with pytest.raises(Refused, match="support v1, which was never signed"):
        services.sign(version=second, by=cast.signer)
    services.sign(version=second, by=cast.operator)
    third = published(cast.author, cast.author)
    assert services.sign(version=third, by=cast.signer).signed_by == cast.signer


def test_without_the_setting_the_author_may_sign(cast: Cast) -> None:
    assert services.sign(version=published(cast.author, cast.author), by=cast.author).signed_by == cast.author


@pytest.mark.usefixtures("four_eyes")
def test_starter_policies_are_installed_all_the_same() -> None:
    assert services.install(document=document("acme"))[0].signature


def test_author_on_record_cannot_be_rewritten(cast: Cast) -> None:
    published(cast.author, cast.author)
    with connection.cursor() as cursor, pytest.raises(DatabaseError, match="cannot be changed"), transaction.atomic():
        cursor.execute("UPDATE guardrails_publication SET written_by_id = %s", [cast.signer.pk])
    with connection.cursor() as cursor, pytest.raises(DatabaseError, match="cannot be changed"), transaction.atomic():
        cursor.execute("UPDATE guardrails_publication SET authors = %s", ["[]"])


@pytest.mark.usefixtures("four_eyes")
def test_command_line_says_on_whose_behalf(cast: Cast, tmp_path: Path) -> None:
    file = tmp_path / "support.json"
    file.write_text('{"policy": "support", "guardrails": [{"kind": "keywords", "keywords": ["acme"]}]}')
    run("import", file, "--publish", "--by", "author")
    assert fails("sign", "support")[0] == 1
    assert fails("sign", "support", "--by", "author") == (1, "author may not do that (guardrails.sign_policyversion)")
    assert fails("sign", "support", "--by", "nobody") == (1, "there is no user 'nobody'")
    run("sign", "support", "--by", "signer")
    assert fails("activate", "support", "--by", "signer")[0] == 1
    run("activate", "support", "--by", "operator", "--note", "first")
    version = PolicyVersion.objects.get()
    row = version.activations.get()
    assert (version.published_by, version.signed_by, row.activated_by) == (cast.author, cast.signer, cast.operator)
    assert (version.publication.written_by, row.note) == (cast.author, "first")


def test_command_shows_the_report_and_the_diff(tmp_path: Path) -> None:
    file = tmp_path / "support.json"
    for words in ('"acme"', '"acme", "heron"'):
        text = '{"policy": "support", "guardrails": [{"kind": "keywords", "client": true, "keywords": [%s]}]}'
        file.write_text(text % words)
        said = run("import", file, "--publish", "--sign", "--activate")
    assert "compiled in " in said
    assert "for clients: 2 rules, " in said
    assert "the same in Python, RE2, JavaScript" in said
    assert "a session holds, response: at most " in said
    assert run("diff", "support", 1, 2) == '+ keywords/heron: "heron"\n'
    assert run("diff", "support", 2, 1) == '- keywords/heron: "heron"\n'
    assert run("diff", "support", 2, 2) == ""
    assert fails("diff", "support", 1, 9) == (1, "support: there is no version 9")


# -- groups -------------------------------------------------------------------------------------------------------


def member(group: str) -> User:
    made = User.objects.create_user(f"one-of-{group}", is_staff=True)
    made.groups.add(Group.objects.get(name=group))
    return made


def test_every_permission_of_every_group_exists() -> None:
    for name, wanted in ROLES.items():
        found = Group.objects.get(name=name).permissions.values_list("content_type__app_label", "codename")
        assert {f"{app}.{codename}" for app, codename in found} == set(wanted)


@pytest.mark.parametrize("group", ROLES)
def test_each_group_does_its_part_and_no_other(group: str) -> None:
    steps = {
        "Author": {"guardrails.change_policy", "guardrails.publish_policy"},
        "Signer": {"guardrails.sign_policyversion"},
        "Operator": {"guardrails.activate_policyversion", "guardrails.shadow_policyversion"},
        "Reviewer": {"streaming.add_review", "streaming.reveal_text"},
        "Auditor": {"streaming.view_auditentry"},
    }
    person = member(group)
    for owner, wanted in steps.items():
        for permission in wanted:
            assert person.has_perm(permission) is (owner == group), (group, permission)
    assert person.has_perm("guardrails.view_policyversion")
    assert not person.has_perm("guardrails.add_apikey")


def test_what_an_administrator_changed_in_a_group_stays() -> None:
    signer = Group.objects.get(name="Signer")
    more = Permission.objects.get(codename="view_apikey")
    signer.permissions.set([more])
    make_groups(apps.get_app_config("streaming"))
    assert list(signer.permissions.all()) == [more]
    Group.objects.filter(name="Auditor").delete()
    make_groups(apps.get_app_config("streaming"))
    assert Group.objects.get(name="Auditor").permissions.exists()
