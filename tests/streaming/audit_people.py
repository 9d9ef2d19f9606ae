"""Who meets the audit pages in tests: the ready-made groups, one person in each, and one in none."""

from __future__ import annotations

from dataclasses import dataclass

from django.contrib.auth.models import Group, User

from tests.conftest import PASSWORD


@dataclass(frozen=True, slots=True)
class People:
    """Each is in the group of that name and in no other; the outsider is in none."""

    author: User
    operator: User
    reviewer: User
    auditor: User
    outsider: User


def people() -> People:
    """Made anew in the test's database."""

    def one(name: str) -> User:
        made = User.objects.create_user(name.lower(), password=PASSWORD, is_staff=True)
        if group := Group.objects.filter(name=name).first():
            made.groups.add(group)
        return made

    return People(*(one(name) for name in ("Author", "Operator", "Reviewer", "Auditor", "Outsider")))
