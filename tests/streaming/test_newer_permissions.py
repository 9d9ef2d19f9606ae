"""Groups of an installation that is older than some models get what those models need, once, and nothing else."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import pytest
from django.apps import apps as current
from django.contrib.auth.models import Group, Permission
from django.db import connection
from django.db.migrations.loader import MigrationLoader

from streaming.roles import ROLES, make_groups

pytestmark = pytest.mark.django_db
NAME = "0022_newer_permissions_for_groups"
STEP = importlib.import_module(f"streaming.migrations.{NAME}")
LOOK = {f"guardrails.view_{name}" for name in ("policy", "policyversion", "activation", "publication", "shadowchange")}
RECORD = {"streaming.view_auditsession", "streaming.view_finding", "streaming.view_review"}
FIRST = {
    "Author": LOOK | {"guardrails.add_policy", "guardrails.change_policy", "guardrails.publish_policy"},
    "Signer": LOOK | {"guardrails.sign_policyversion"},
    "Operator": LOOK
    | {"guardrails.activate_policyversion", "guardrails.shadow_policyversion"}
    | {"streaming.view_demotion", "streaming.lift_demotion"},
    "Reviewer": LOOK | RECORD | {"streaming.add_review", "streaming.reveal_text"},
    "Auditor": LOOK | RECORD | {"streaming.view_auditentry", "streaming.view_demotion"},
}
"""What each group had when groups were first made."""


def held(name: str) -> set[str]:
    rows = Permission.objects.filter(group__name=name).values_list("content_type__app_label", "codename")
    return {f"{app}.{codename}" for app, codename in rows}


def give(name: str, permissions: set[str]) -> None:
    group, _ = Group.objects.get_or_create(name=name)
    group.permissions.clear()
    for one in permissions:
        app, codename = one.split(".")
        group.permissions.add(Permission.objects.get(content_type__app_label=app, codename=codename))


def migrate() -> None:
    """The step, with the models as they stand at it."""
    then = MigrationLoader(connection).project_state(("streaming", NAME)).apps
    STEP.grant(then, SimpleNamespace(connection=connection))


@pytest.mark.parametrize("name", ROLES)
def test_it_works(name: str) -> None:
    """An old group has afterwards what a new one is made with; again changes nothing."""
    make_groups(current.get_app_config("streaming"))
    give(name, FIRST[name])
    for _ in range(2):
        migrate()
        assert held(name) == set(ROLES[name])


def test_what_an_administrator_took_out_of_the_first_ones_stays_out() -> None:
    make_groups(current.get_app_config("streaming"))
    give("Operator", FIRST["Operator"] - {"streaming.lift_demotion"})
    migrate()
    assert held("Operator") == set(ROLES["Operator"]) - {"streaming.lift_demotion"}


def test_groups_that_are_not_there_are_not_made() -> None:
    Group.objects.all().delete()
    migrate()
    assert not Group.objects.exists()


def test_whoever_gives_a_group_more_writes_a_migration_for_those_that_exist() -> None:
    assert {name: set(permissions) for name, permissions in ROLES.items()} == {
        name: FIRST[name] | set(STEP.GRANTED[name]) for name in FIRST
    }
