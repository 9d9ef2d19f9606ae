"""Another provider, another policy: where the server cannot say what follows from it, the choice is taken back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Route, expect

from tests.e2e.visitor import Visitor

FAILURES: dict[str, tuple[Callable[[Route], None], str]] = {
    "no server": (lambda route: route.abort(), "the server cannot be reached"),
    "an error": (lambda route: route.fulfill(status=500, body="<h1>Oh</h1>"), "the server refused it (500)"),
    "no answer": (lambda route: None, "the server does not answer"),
}


def test_it_works(visitor: Visitor) -> None:
    visitor.page.get_by_label("Policy").select_option("basic")
    expect(visitor.page.locator("[data-guardrail=codenames]")).to_have_count(0)
    expect(visitor.page.locator("#notices [data-error]")).to_have_count(0)


@pytest.mark.parametrize(
    ("choice", "to", "how"),
    [("policy", "basic", "no server"), ("provider", "openai", "an error"), ("policy", "basic", "no answer")],
)
def test_a_choice_that_cannot_be_loaded_is_said_and_taken_back(
    visitor: Visitor, choice: str, to: str, how: str
) -> None:
    page, (answer, why) = visitor.page, FAILURES[how]
    box = page.locator(f"#settings [name={choice}]")
    before, lanes = box.input_value(), page.locator("#lanes").inner_text()
    models = page.locator("#model option").all_text_contents()
    page.evaluate("htmx.config.timeout = 700")

    page.route(f"**/?{choice}=*", answer)
    box.select_option(to)
    said = page.locator(f"#notices [data-error=no_{choice}]")
    expect(said).to_contain_text(why)
    expect(said).to_have_attribute("role", "alert")
    expect(box).to_have_value(before)
    assert page.locator("#lanes").inner_text() == lanes
    assert page.locator("#model option").all_text_contents() == models
    expect(page.locator("#model")).to_be_enabled()
    page.unroute(f"**/?{choice}=*")
    page.evaluate("htmx.config.timeout = 15000")
    box.select_option(to)
    expect(said).to_have_count(0)
    expect(box).to_have_value(to)


def test_a_choice_after_the_login_has_expired_leads_to_the_login(visitor: Visitor) -> None:
    page = visitor.page
    page.route("**/?policy=*", lambda route: route.fulfill(status=200, headers={"HX-Refresh": "true"}, body=""))
    with page.expect_navigation():
        page.get_by_label("Policy").select_option("basic")
    expect(page.locator("#lanes input")).to_have_count(0)
