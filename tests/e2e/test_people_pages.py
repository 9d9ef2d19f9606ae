"""A reviewer in a real browser: the texts are hidden, a reason opens them once, and a verdict is stored."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.conftest import Visit
from tests.e2e.server import Demo, wait_for

TEXT = "The number on file is 123-45-6789, as far as we know."
REDACTED = "The number on file is [SSN], as far as we know."


def sign_in(page: Page, running: Demo) -> None:
    page.goto(running.url + "/admin/streaming/finding/")
    page.locator("input[name=username]").fill(running.info["admin_user"])
    page.locator("input[name=password]").fill(running.info["admin_password"])
    page.keyboard.press("Enter")
    expect(page.locator("#result_list")).to_be_visible()


def fits(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


@pytest.mark.parametrize(
    ("scheme", "width"),
    [
        ("light", 1280),
        ("dark", 390),
        pytest.param("dark", 1280, marks=pytest.mark.long),
        pytest.param("light", 390, marks=pytest.mark.long),
    ],
)
def test_it_works(shared_demo: Demo, visit: Visit, width: int, scheme: str) -> None:
    newest = "select id, session_id from streaming_finding where rule = 'ssn' order by id desc limit 1"
    before = shared_demo.rows(newest)
    reader = visit(shared_demo.url).open()
    reader.guard(TEXT)
    reader.over("redacted")
    wait_for("the finding is on record", lambda: shared_demo.rows(newest) != before)

    reviewer = visit(shared_demo.url, viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = reviewer.page
    sign_in(page, shared_demo)
    ((finding, session),) = shared_demo.rows(newest)
    page.goto(f"{shared_demo.url}/admin/streaming/auditsession/{session}/change/")
    expect(page.get_by_text(f"{len(REDACTED)} characters, hidden")).to_be_visible()
    page.goto(f"{shared_demo.url}/admin/streaming/auditsession/{session}/reveal")
    assert fits(page)
    expect(page.get_by_text(REDACTED)).to_have_count(0)
    page.get_by_label("Why do you look?").fill("complaint 17")
    page.get_by_role("button", name="Reveal").click()
    expect(page.get_by_role("region", name="Answer").get_by_text(REDACTED)).to_be_visible()
    assert fits(page)
    page.get_by_role("link", name="Back to the session").click()
    expect(page.get_by_text(f"{len(REDACTED)} characters, hidden")).to_be_visible()
    expect(page.get_by_text(REDACTED)).to_have_count(0)

    page.goto(f"{shared_demo.url}/admin/streaming/finding/{finding}/review")
    assert fits(page)
    page.get_by_label("False positive").check()
    page.get_by_label("Note (optional)").fill("a part number")
    page.get_by_role("button", name="Store the verdict").click()
    expect(page.get_by_text("Stored: false positive.")).to_be_visible()
    page.goto(f"{shared_demo.url}/admin/streaming/finding/{finding}/review")
    expect(page.get_by_text("a part number")).to_be_visible()
    people = "select kind from streaming_auditentry where kind in ('reveal', 'review') order by seq desc limit 2"
    kinds = shared_demo.rows(people)
    assert kinds == [("review",), ("reveal",)]
    reader.assert_clean()
    reviewer.assert_clean()
