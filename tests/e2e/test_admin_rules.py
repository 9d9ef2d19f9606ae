"""The rule form in a real browser: a refusal while one types, what a rule costs, and the draft that comes of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, Route, expect

from tests.e2e.conftest import Visit
from tests.e2e.server import Demo, wait_for
from tests.e2e.visitor import Visitor


@pytest.fixture
def admin(shared_demo: Demo, visit: Visit) -> Visitor:
    """The demo's administrator, signed in."""
    visitor = visit(shared_demo.url)
    page = visitor.page
    page.goto(shared_demo.url + "/admin/guardrails/policy/add/")
    page.locator("input[name=username]").fill(shared_demo.info["admin_user"])
    page.locator("input[name=password]").fill(shared_demo.info["admin_password"])
    page.keyboard.press("Enter")
    expect(page.locator("#rules")).to_be_visible()
    return visitor


def draft(running: Demo, name: str) -> dict[str, Any] | None:
    rows = running.rows(f"select draft from guardrails_policy where name = '{name}'")
    return json.loads(str(rows[0][0])) if rows else None


def add(page: Page, kind: str) -> Locator:
    page.get_by_label("Add a guardrail").select_option(kind)
    page.get_by_role("button", name="Add", exact=True).click()
    return page.locator(".rules-card").last


def test_it_works(admin: Visitor, shared_demo: Demo) -> None:
    page = admin.page
    page.get_by_label("Policy", exact=True).fill("typed")
    card = add(page, "regex")
    card.get_by_role("button", name="Add to rules").click()
    rule = card.locator(".rules-item")
    rule.get_by_label("ID", exact=True).fill("heron")
    rule.get_by_label("Pattern", exact=True).fill("blue(?= heron)")
    expect(rule.locator("[id$='.pattern-problem']")).to_contain_text("look-ahead")
    expect(rule.locator("[id$='.pattern-problem']")).to_contain_text("position 4")
    expect(page.locator("#rules-summary")).to_contain_text("cannot be saved")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_text("Nothing was saved.")).to_be_visible()
    assert draft(shared_demo, "typed") is None

    rule = page.locator(".rules-card .rules-item")
    expect(rule.get_by_label("Pattern", exact=True)).to_have_value("blue(?= heron)")
    rule.get_by_label("Pattern", exact=True).fill("blue heron")
    rule.get_by_label("Must match", exact=True).fill("A blue heron.\nA grey heron.")
    facts = rule.locator(".rules-facts")
    expect(facts).to_contain_text("holds at most 10 characters")
    expect(facts.locator("li").first).to_have_text("✓ must match: A blue heron.")
    expect(facts.get_by_text("must match, but does not")).to_contain_text("A grey heron.")
    rule.get_by_label("Must match", exact=True).fill("A blue heron.")
    expect(facts.get_by_text("but does not")).to_have_count(0)
    expect(page.locator("#rules-summary")).to_contain_text("This draft can be saved.")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.locator("#rules")).to_have_count(0)
    saved = draft(shared_demo, "typed")
    assert saved is not None
    (written,) = saved["guardrails"][0]["config"]["rules"]
    assert (written["id"], written["pattern"], written["must_match"]) == ("heron", "blue heron", ["A blue heron."])
    admin.assert_clean()


def test_entries_are_moved_and_removed_by_keyboard(admin: Visitor, shared_demo: Demo) -> None:
    page = admin.page
    page.get_by_label("Policy", exact=True).fill("ordered")
    for kind in ("length", "pii", "secrets"):
        add(page, kind)
    page.locator(".rules-card").first.get_by_label("Max chars").fill("90")
    names = page.locator(".rules-card [data-title]")
    expect(names).to_have_text(["length", "pii", "secrets"])
    page.locator(".rules-card").last.get_by_role("button", name="Move this guardrail up").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    expect(names).to_have_text(["secrets", "length", "pii"])
    page.locator(".rules-card").last.get_by_role("button", name="Remove this guardrail").focus()
    page.keyboard.press("Enter")
    expect(names).to_have_text(["secrets", "length"])
    expect(page.locator("#rules-summary")).to_contain_text("This draft can be saved.")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.locator("#rules")).to_have_count(0)
    saved = draft(shared_demo, "ordered")
    assert saved is not None
    assert [entry["name"] for entry in saved["guardrails"]] == ["secrets", "length"]


def test_problem_in_folded_settings_is_unfolded(admin: Visitor) -> None:
    page = admin.page
    card = add(page, "regex")
    card.get_by_role("button", name="Add to rules").click()
    cap = card.locator(".rules-item").get_by_label("Cap", exact=True)
    expect(cap).to_be_hidden()
    card.get_by_text("More settings").click()
    cap.fill("many")
    expect(card.locator("[id$='.cap-problem']")).to_contain_text("valid integer")
    card.get_by_text("More settings").click()
    expect(cap).to_be_hidden()
    page.get_by_label("Policy", exact=True).fill("folded")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_text("Nothing was saved.")).to_be_visible()
    cap = page.locator(".rules-item").get_by_label("Cap", exact=True)
    expect(cap).to_be_visible()
    expect(cap).to_have_value("many")


FAILURES: dict[str, tuple[Callable[[Route], None], str]] = {
    "no server": (lambda route: route.abort(), "the server cannot be reached"),
    "signed out": (
        lambda route: route.fulfill(status=302, headers={"Location": "/admin/login/"}),
        "you are signed out",
    ),
    "too old": (lambda route: route.fulfill(status=403, content_type="text/html", body="<h1>No</h1>"), "signed out"),
    "a page": (lambda route: route.fulfill(status=502, content_type="text/html", body="<h1>Bad</h1>"), "answered 502"),
}


def test_what_was_said_of_an_older_draft_does_not_stay(admin: Visitor) -> None:
    page, summary = admin.page, admin.page.locator("#rules-summary")
    page.get_by_label("Policy", exact=True).fill("stale")
    add(page, "length").get_by_label("Max chars").fill("90")
    expect(summary).to_contain_text("This draft can be saved.")
    held: list[Route] = []
    page.route("**/lint/", lambda route: held.append(route))
    page.get_by_label("Max chars").fill("many")
    expect(summary).to_have_text("Examining…")
    expect(summary).to_have_attribute("aria-busy", "true")
    wait_for("the question is asked", lambda: page.wait_for_timeout(50) or held)
    held[-1].continue_()
    page.unroute("**/lint/")
    expect(summary).to_contain_text("cannot be saved")
    expect(summary).to_have_attribute("aria-busy", "false")
    for how, (answer, said) in FAILURES.items():
        page.route("**/lint/", answer)
        page.get_by_label("Max chars").fill(f"9{len(how)}")
        expect(summary).to_contain_text("Not examined: ")
        expect(summary).to_contain_text(said)
        expect(summary).to_have_attribute("aria-busy", "false")
        page.unroute("**/lint/")
    page.get_by_label("Max chars").fill("91")
    expect(summary).to_contain_text("This draft can be saved.")


def test_markup_that_is_typed_is_never_made(admin: Visitor) -> None:
    page = admin.page
    page.get_by_label("Policy", exact=True).fill("<img src=x onerror=alert(1)>")
    card = add(page, "regex")
    card.get_by_label("Name", exact=True).fill("<b>bold</b>")
    card.get_by_role("button", name="Add to rules").click()
    rule = card.locator(".rules-item")
    rule.get_by_label("ID", exact=True).fill("r")
    rule.get_by_label("Pattern", exact=True).fill("<img src=x onerror=alert(1)>")
    rule.get_by_label("Must match", exact=True).fill("<img src=x onerror=alert(1)>")
    expect(rule.locator(".rules-facts")).to_contain_text("<img src=x onerror=alert(1)>")
    expect(page.locator("#rules-summary")).to_contain_text("cannot be saved")
    assert page.locator("#rules img, #rules b").count() == 0
    assert not [line for line in admin.console if "alert" in line]
