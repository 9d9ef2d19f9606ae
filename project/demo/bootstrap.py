"""What has to be in the database before the demo serves: tables, starter policies, a login, an API key.

Every step may be repeated: a second start changes nothing, keeps what a visitor has published since, and goes on where
an earlier one was cut off.
"""

from __future__ import annotations

import secrets
from pathlib import Path

from django.contrib.auth import get_user_model
from django.db import connections

from guardrails import selectors, services
from guardrails.bootstrap import prepare_database
from guardrails.models import ApiKey, Scope
from project.demo.access import Access, stored
from streaming.rollout import ensure_flag

ADMIN = "admin"
KEY_NAME = "demo"


def prepare(data_dir: Path, *, url: str) -> Access:
    """Do all of it; the answer is not stored yet. Leaves no database connection open: processes are started next."""
    earlier = stored(data_dir)
    prepare_database()
    ensure_flag(everyone=True)
    access = Access(
        url=url,
        admin_user=ADMIN,
        admin_password=admin_password(earlier.admin_password if earlier else ""),
        api_key=demo_key(earlier.api_key if earlier else ""),
    )
    connections.close_all()
    return access


def admin_password(earlier: str) -> str:
    """The password of the admin user, who is made if missing; ``earlier`` if it still is the right one."""
    user, made = get_user_model().objects.get_or_create(
        username=ADMIN, defaults={"is_staff": True, "is_superuser": True}
    )
    if not made and earlier and user.check_password(earlier):
        return earlier
    password = secrets.token_urlsafe(12)
    user.set_password(password)
    user.save()
    return password


def demo_key(earlier: str) -> str:
    """An API key with every scope; ``earlier`` if it still is one. Only a key's hash is stored, so else a new one."""
    key = selectors.api_key_for(earlier) if earlier else None
    if key is not None and set(key.scopes) == set(Scope.values):
        return earlier
    names = (KEY_NAME if n == 1 else f"{KEY_NAME} {n}" for n in range(1, ApiKey.objects.count() + 2))
    free = next(name for name in names if not ApiKey.objects.filter(name=name).exists())
    return services.create_api_key(name=free, scopes=Scope.values)[1]
