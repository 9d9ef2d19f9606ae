"""The documentation of the API in a real browser: our header, nothing from elsewhere, every link leads somewhere."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.e2e.conftest import Visit
from tests.e2e.server import Demo
from tests.e2e.test_accessibility import TWO, Look, issues, patient, seen_as, settled
from tests.e2e.test_audit_pages import fits

__all__ = ["patient"]


@pytest.mark.parametrize("look", TWO)
def test_it_works(shared_demo: Demo, visit: Visit, look: Look) -> None:
    visitor = seen_as(look, visit, shared_demo)
    page = visitor.page
    page.goto(f"{shared_demo.url}/v1/docs")
    expect(page.get_by_role("heading", level=1)).to_contain_text("Sluicegate API")
    for role, name in {"banner": None, "main": None, "navigation": "Calls"}.items():
        expect(page.get_by_role(role, name=name)).to_have_count(1)  # type: ignore[arg-type]
    assert issues(settled(page)) == []
    assert fits(page)
    broken = page.evaluate("""() => [...document.querySelectorAll("main a[href^='#']")]
        .filter((link) => !document.getElementById(link.hash.slice(1))).map((link) => link.hash)""")
    assert broken == []
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    page.get_by_role("button", name="Colours: as the system").click()
    expect(page.locator("html")).to_have_attribute("data-theme", "light")
    visitor.assert_clean()


def test_a_call_leads_to_what_it_takes(shared_demo: Demo, visit: Visit) -> None:
    visitor = visit(shared_demo.url)
    page = visitor.page
    page.goto(f"{shared_demo.url}/v1/docs")
    page.get_by_role("navigation", name="Calls").get_by_role("link", name="POST /v1/check").click()
    call = page.get_by_role("region", name="POST /v1/check")
    expect(call).to_be_in_viewport()
    call.get_by_role("link", name="CheckIn").click()
    shape = page.get_by_role("region", name="CheckIn")
    expect(shape).to_be_in_viewport()
    expect(shape).to_contain_text("required")
    expect(shape).to_contain_text("one of prompt, response")
    visitor.assert_clean()
