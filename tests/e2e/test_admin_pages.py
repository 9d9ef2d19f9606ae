"""Every page of the admin that a registered model has (list, an empty list, add, change, history, delete), and what
stands beside them (the dashboard, the password, a diff, a rollout, the texts of a session, a verdict): axe finds
nothing serious, nothing is wider than the screen, nothing is said in the console.

The ordinary run meets a third of the pages in light and another third in dark, so that each model is met; the long run
sees every page in every look, on a phone too. Nothing is excepted, the markup of the admin's theme included.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from uuid import UUID

import pytest
from django.contrib import admin
from django.db.models import UUIDField
from playwright.sync_api import expect

from tests.e2e.conftest import Visit
from tests.e2e.server import INHERITED, ROOT, Demo
from tests.e2e.test_accessibility import TAKES_MS, Look, issues, seen_as, settled
from tests.e2e.test_audit_pages import fits, guard, sign_in
from tests.e2e.visitor import Visitor

WIDE = [pytest.param((1280, "light"), id="wide and light"), pytest.param((1280, "dark"), id="wide and dark")]
PHONE = [pytest.param((390, "light"), id="narrow and light"), pytest.param((390, "dark"), id="narrow and dark")]
HARMLESS = ("the server responded with a status of 403", "Input elements should have autocomplete attributes")
"""What the browser says in its console of a page that may not be opened, which is looked at like all others, and what
it advises for Django's form of a new password, which asks for no name."""

FILL = """
from django.contrib.auth.models import Group, User
from django.utils import timezone
from guardrails.models import Policy, Rollout
from streaming.flags import RolloutFlag
from streaming.models import Demotion
from streaming.upstreams import Upstream

now, user = timezone.now(), User.objects.order_by("pk").first()
Group.objects.get_or_create(name="Looked at")
Upstream.objects.get_or_create(name="looked-at", defaults={
    "dialect": "openai", "base_url": "http://127.0.0.1:9/v1", "model_names": "one", "enabled": False})
flag, _ = RolloutFlag.objects.get_or_create(name="looked-at", defaults={"note": "Nothing reads it."})
flag.users.add(user)
policy = Policy.objects.exclude(name="demo").filter(activation__isnull=False).order_by("pk").first()
if not Rollout.objects.exists():
    Rollout.objects.create(
        policy=policy, activation=policy.activation, percent=10, groups=["Looked at"], started_by=user,
        outcome="ended", ended_at=now, ended_by=user, ended_why="It was only looked at.")
if not Demotion.objects.exists():
    Demotion.objects.create(
        policy_name=policy.name, policy_version=1, policy_digest=policy.active_version.digest, guardrail="looked-at",
        declared="sentence", checkpoint="deferred", p95_ms=412.5, measurements=300, lifted_at=now, lifted_by=user)
"""
"""A row of what no visitor leaves behind; none of them changes what the demo does."""


@pytest.fixture(autouse=True)
def patient() -> Iterator[None]:
    """A page may take its time on a busy machine."""
    expect.set_options(timeout=TAKES_MS)
    yield
    expect.set_options(timeout=5_000)


@pytest.fixture
def filled(shared_demo: Demo, visit: Visit) -> Demo:
    """The demo with a row of every model that has rows."""
    if shared_demo.rows("select 1 from streaming_demotion"):  # a test before this one has filled it
        return shared_demo
    guard(shared_demo, visit)
    env = {name: os.environ[name] for name in INHERITED if name in os.environ}
    env |= {"SLUICEGATE_DATA_DIR": str(shared_demo.data_dir)}
    command = [sys.executable, str(ROOT / "manage.py"), "shell", "-c", FILL]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return shared_demo


def addresses(running: Demo) -> list[str]:
    """Every page, with the oldest row of each model; fails where a model has none."""
    found = ["", "password_change/"]
    for model, pages in sorted(admin.site._registry.items(), key=lambda one: one[0]._meta.label_lower):
        meta = model._meta
        place = f"{meta.app_label}/{meta.model_name}/"
        found += [place, f"{place}add/"]
        if pages.search_fields:
            found.append(f"{place}?q=nothing-is-named-so")
        if not meta.managed:  # what the environment configures stands in no table: one list is all there is
            continue
        assert meta.pk is not None
        rows = running.rows(f'select "{meta.pk.column}" from "{meta.db_table}" order by 1 limit 1')
        assert rows, f"{meta.label} has no row whose page could be looked at"
        key = str(UUID(str(rows[0][0]))) if isinstance(meta.pk, UUIDField) else str(rows[0][0])
        found += [f"{place}{key}/{page}/" for page in ("change", "history", "delete")]
    ((policy, version),) = running.rows("select id, active_version_id from guardrails_policy where name = 'demo'")
    ((finding, session),) = running.rows("select id, session_id from streaming_finding order by id desc limit 1")
    return [
        *found,
        f"guardrails/policy/{policy}/diff/",
        f"guardrails/rollout/of/{version}/",
        f"streaming/finding/{finding}/review/",
        f"streaming/auditsession/{UUID(str(session))}/reveal/",
    ]


def wrong(visitor: Visitor, address: str) -> list[str]:
    """What is wrong with one page."""
    page = visitor.page
    answer = page.goto(f"{visitor.base}/admin/{address}")
    assert answer is not None
    expect(page.locator("h1").first).to_be_visible()
    found = [] if answer.status in (200, 403) else [f"status {answer.status}"]
    found += issues(settled(page))
    if not fits(page):
        found.append("wider than the screen")
    return [f"{address}: {one}" for one in found]


def look_at(running: Demo, visit: Visit, look: Look, pages: list[str]) -> None:
    visitor = seen_as(look, visit, running)
    sign_in(visitor, running)
    found = [line for address in pages for line in wrong(visitor, address)]
    assert not found, "\n".join(found)
    visitor.console[:] = [line for line in visitor.console if not any(one in line for one in HARMLESS)]
    visitor.assert_clean()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("look", WIDE)
def test_it_works(filled: Demo, visit: Visit, look: Look) -> None:
    first = int(look[1] == "dark")
    look_at(filled, visit, look, addresses(filled)[first::6])


@pytest.mark.long
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("look", [*WIDE, *PHONE])
def test_every_page_in_every_look(filled: Demo, visit: Visit, look: Look) -> None:
    look_at(filled, visit, look, addresses(filled))


def test_the_box_that_searches_users_is_named_and_picks_them(filled: Demo, visit: Visit) -> None:
    visitor = visit(filled.url)
    page = sign_in(visitor, filled)
    ((flag,),) = filled.rows("select id from streaming_rolloutflag where name = 'looked-at'")
    page.goto(f"{filled.url}/admin/streaming/rolloutflag/{flag}/change/")
    box = page.get_by_role("searchbox", name="Users")
    expect(box).to_be_visible()
    name = filled.info["admin_user"]
    page.get_by_role("combobox", name="Users").locator(".select2-selection__choice__remove").click()
    expect(page.locator(".select2-selection__choice")).to_have_count(0)
    box.fill(name[:3])
    page.get_by_role("option", name=name, exact=True).click()
    expect(page.locator(".select2-selection__choice")).to_contain_text(name)
