"""A shadow from the admin's page to a reader's answer and back: it changes nothing, and the difference is shown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.conftest import Visit
from tests.e2e.server import INHERITED, ROOT, Demo, wait_for

WORD = "marmalade"
TEXT = f"There is toast. There is {WORD}. That is all."


def manage(running: Demo, *arguments: str) -> str:
    """``manage.py`` beside the running demo."""
    env = {name: os.environ[name] for name in INHERITED if name in os.environ}
    env |= {"SLUICEGATE_DATA_DIR": str(running.data_dir), "SLUICEGATE_DEMO": "1"}
    command = [sys.executable, str(ROOT / "manage.py"), *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True, text=True, timeout=120).stdout


@pytest.fixture
def second_version(shared_demo: Demo, tmp_path: Path) -> int:
    """A signed version of the demo's policy that also blocks a word."""
    document = json.loads(manage(shared_demo, "rules", "export", "demo"))
    more = {"name": "breakfast", "kind": "keywords", "action": "block", "config": {"keywords": [WORD]}}
    document["guardrails"].append(more)
    file = tmp_path / "demo.json"
    file.write_text(json.dumps(document))
    manage(shared_demo, "rules", "import", str(file), "--publish", "--sign")
    ((number,),) = shared_demo.rows(
        "select max(v.number) from guardrails_policyversion v join guardrails_policy p on p.id = v.policy_id "
        "where p.name = 'demo'"
    )
    return int(str(number))


def sign_in(page: Page, running: Demo) -> None:
    page.goto(running.url + "/admin/streaming/shadowedpolicy/")
    page.locator("input[name=username]").fill(running.info["admin_user"])
    page.locator("input[name=password]").fill(running.info["admin_password"])
    page.keyboard.press("Enter")
    page.get_by_role("link", name="demo", exact=True).click()


def test_it_works(shared_demo: Demo, visit: Visit, second_version: int) -> None:
    operator = visit(shared_demo.url)
    page = operator.page
    sign_in(page, shared_demo)
    expect(page.get_by_text("No shadow of this policy has ever run")).to_be_visible()
    page.get_by_label("Version", exact=True).select_option(label=f"demo v{second_version}")
    page.get_by_label("Why (optional)").fill("Is breakfast a topic?")
    page.get_by_role("button", name="Run as shadow").click()
    expect(page.get_by_text(f"Version {second_version} runs beside it in MONITOR")).to_be_visible()

    reader = visit(shared_demo.url).open()
    reader.guard(TEXT)
    reader.over("allowed")
    assert reader.answer == TEXT
    wait_for(
        "the session is recorded with its shadow",
        lambda: shared_demo.rows(
            "select 1 from streaming_auditsession where shadow_version > 0 and shadow_comparison = 'only_shadow'"
        ),
    )
    page.reload()
    expect(page.locator(".shadow-only_shadow dd")).to_have_text("1")
    expect(page.get_by_text("“Is breakfast a topic?”")).to_be_visible()
    expect(page.get_by_role("row", name="breakfast").get_by_role("cell")).to_have_text(["0", "0", "1", "1"])
    page.locator("#shadow-examples ~ ul a").first.click()
    expect(page.get_by_text(f"version {second_version}: breakfast/")).to_be_visible()
    page.go_back()
    page.get_by_role("button", name="End the shadow").click()
    expect(page.get_by_text("No version runs beside it.")).to_be_visible()
    expect(page.locator(".shadow-only_shadow dd")).to_have_text("1")
    operator.assert_clean()


def test_page_fits_a_phone(shared_demo: Demo, visit: Visit) -> None:
    page = visit(shared_demo.url, viewport={"width": 390, "height": 800}).page
    sign_in(page, shared_demo)
    expect(page.locator(".shadow-page")).to_be_visible()
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0
