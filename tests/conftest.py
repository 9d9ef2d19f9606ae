"""What tests of every part share: a real Valkey, the starter policies at work, and the cast."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
from django.contrib.auth.models import Permission, User
from django.db import connection, transaction
from django.test import TransactionTestCase

from guardrails import loading, models, seen, selectors, services
from project.demo import child
from streaming import database
from tests import restored
from tests import settings as test_settings

STARTERS = Path(services.__file__).parent / "starters"
PASSWORD = "correct horse battery"
_START_LIMIT_S = 20.0


@pytest.fixture(scope="session", autouse=True)
def valkey_url() -> Iterator[str]:
    """A Valkey of this process's own, up for as long as its tests run; the URL that ``settings.REDIS_URL`` holds."""
    url = os.environ["REDIS_URL"]
    tether = Path(child.__file__).with_name("tether.py")
    server = subprocess.Popen(
        [sys.executable, "-I", "-S", str(tether), str(os.getpid()), *test_settings.VALKEY.argv],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with redis.Redis.from_url(url) as client:
            _until_up(client, server)
        yield url
    finally:
        server.terminate()
        server.wait(_START_LIMIT_S)


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None) -> Iterator[None]:
    """No connection is open to a database that is about to be dropped; a file is emptied by ``restored``."""
    empty = TransactionTestCase._fixture_teardown
    if connection.vendor == "sqlite":
        TransactionTestCase._fixture_teardown = restored.empty_by(empty)
    yield
    TransactionTestCase._fixture_teardown = empty
    database.let_go()


def _until_up(client: redis.Redis, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + _START_LIMIT_S
    while True:
        try:
            client.ping()
        except redis.ConnectionError:
            if server.poll() is not None or time.monotonic() > end:
                raise
            os.sched_yield()
        else:
            return


_installed: list[tuple[models.PolicyVersion, models.Publication, models.Activation]] = []


@pytest.fixture
def demo_policy(db: None) -> Iterator[None]:
    """Every starter policy published, signed and active.

    Made by the services once per process; after that the same rows are put back, which saves a second a test.
    """
    if not _installed:
        for file in sorted(STARTERS.glob("*.json")):
            version, _ = services.install(document=json.loads(file.read_text("utf-8")))
            version.refresh_from_db()
            activation = version.policy.activation
            assert activation is not None
            _installed.append((version, models.Publication.objects.get(pk=version.pk), activation))
    else:
        with transaction.atomic():
            for row in _installed:
                _put_back(*row)
    yield
    selectors.forget()


def _put_back(version: models.PolicyVersion, publication: models.Publication, activation: models.Activation) -> None:
    """The rows of a policy at work, under new ids; what was signed says nothing of ids."""
    policy = models.Policy.objects.create(name=version.policy.name, description=version.policy.description)
    again = models.PolicyVersion.objects.create(
        policy=policy, number=1, canonical=version.canonical, digest=version.digest, signature=version.signature
    )
    models.Publication.objects.create(
        version=again,
        client_rules=publication.client_rules,
        client_digest=publication.client_digest,
        client_signature=publication.client_signature,
        report=publication.report,
    )
    policy.active_version = again
    policy.activation = models.Activation.objects.create(
        policy=policy, version=again, serial=activation.serial, statement=activation.statement
    )
    policy.save(update_fields=["active_version", "activation"])


@pytest.fixture
def forgetful() -> Iterator[None]:
    """A process that has loaded no policy yet, and that remembers none afterwards."""
    forget_policies()
    yield
    forget_policies()


@pytest.fixture(autouse=True)
def new_serials() -> Iterator[None]:
    """Serials count from 1 in the database of the next test, which a process would take for a replay."""
    forget_serials()
    yield
    forget_serials()


def forget_serials() -> None:
    """What was seen of activations, by this process and by others of this machine, is gone."""
    loading.forget_activations()
    seen.file().unlink(missing_ok=True)


def forget_policies() -> None:
    """What this process kept of policies is gone, as after a restart."""
    loading.forget()
    selectors.forget()


@dataclass(frozen=True, slots=True)
class Cast:
    """Who appears in tests. Each may do what the name says and nothing else; the outsider is not even staff."""

    author: User
    signer: User
    operator: User
    reviewer: User
    outsider: User


@pytest.fixture
def cast(db: None) -> Cast:
    """The cast, all with ``PASSWORD``."""

    def user(name: str, *permissions: str) -> User:
        made = User.objects.create_user(name, password=PASSWORD, is_staff=bool(permissions))
        for permission in permissions:
            app, codename = permission.split(".")
            made.user_permissions.add(Permission.objects.get(content_type__app_label=app, codename=codename))
        return made

    see = ("guardrails.view_policy", "guardrails.view_policyversion", "guardrails.view_activation")
    return Cast(
        author=user("author", *see, "guardrails.add_policy", "guardrails.change_policy", "guardrails.publish_policy"),
        signer=user("signer", *see, "guardrails.sign_policyversion"),
        operator=user("operator", *see, "guardrails.activate_policyversion", "guardrails.shadow_policyversion"),
        reviewer=user("reviewer", *see),
        outsider=user("outsider"),
    )
