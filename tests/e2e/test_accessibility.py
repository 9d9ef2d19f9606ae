"""The pages under axe-core, light and dark, wide and narrow, and with what they show while they work: no serious or
critical issue.

Those are ``/``, ``/compare/``, ``/welcome/``; of ``/audit/`` the list, a session hidden and revealed, the review queue,
precision and the chain; of the admin the login, the front page, a policy's form with a rule open and a version's page
(``test_admin_pages`` looks at all others); and what is shown where there is no page, a page or a form is refused, or
something fails. Narrow and light is for the long run: colours do not follow widths.

axe is put into the page by the browser's own debugging channel, so the page's policy stays as strict as it is. Nothing
is excepted, the markup of the admin's theme included.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.template.loader import render_to_string
from playwright.sync_api import Page, Route, expect

from tests.e2e.conftest import Visit
from tests.e2e.server import Demo
from tests.e2e.test_audit_pages import fits, guard, sign_in
from tests.e2e.visitor import Visitor, until

LOOKS = [
    pytest.param((1280, "light"), id="wide and light"),
    pytest.param((1280, "dark"), id="wide and dark", marks=pytest.mark.long),
    pytest.param((390, "dark"), id="narrow and dark"),
    pytest.param((390, "light"), id="narrow and light", marks=pytest.mark.long),
]
TWO = [LOOKS[0], LOOKS[2], LOOKS[3]]
"""For states of a page that has been met in every look already."""
Look = tuple[int, str]
TAKES_MS = 60_000

RUN_AXE = """async () => {
  const found = await axe.run(document, { resultTypes: ["violations"] });
  return found.violations
    .filter((one) => ["serious", "critical"].includes(one.impact))
    .flatMap((one) => one.nodes.map((node) => ({
      rule: one.id, where: node.target.join(" "), html: node.html, why: node.failureSummary,
    })));
}"""


@functools.cache
def axe() -> str:
    """The vendored axe-core, as text."""
    return (Path(__file__).parent / "vendor" / "axe-core" / "axe.min.js").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def patient() -> Iterator[None]:
    """A page may take its time on a busy machine."""
    expect.set_options(timeout=TAKES_MS)
    yield
    expect.set_options(timeout=5_000)


def issues(page: Page) -> list[str]:
    """What axe calls serious or critical on this page, one line each."""
    page.evaluate(axe())
    found = page.evaluate(RUN_AXE)
    assert isinstance(found, list)
    return [f"{one['rule']} at {one['where']}: {one['why']} in {one['html']}" for one in found]


def settled(page: Page) -> Page:
    """Colours fade in some places; contrast is measured when they have arrived."""
    until(page, "document.getAnimations().every((one) => !(one instanceof CSSTransition))")
    return page


def seen_as(look: Look, visit: Visit, running: Demo) -> Visitor:
    """Somebody with a screen of this width who likes these colours."""
    width, scheme = look
    return visit(running.url, viewport={"width": width, "height": 900}, color_scheme=scheme)


@pytest.mark.parametrize("look", LOOKS)
def test_it_works(shared_demo: Demo, visit: Visit, look: Look) -> None:
    visitor = seen_as(look, visit, shared_demo).open()
    assert issues(visitor.page) == []
    visitor.scenario("pii")
    visitor.over("redacted")
    assert issues(visitor.page) == []
    visitor.scenario("tools")
    visitor.over("allowed", timeout_s=60)
    visitor.scenario("blocked_phrase")
    visitor.over("blocked")
    visitor.ask("   ")
    expect(visitor.page.locator("#notices [data-error]")).to_be_visible()
    visitor.page.get_by_role("button", name="Guard my own text").click()
    assert issues(settled(visitor.page)) == []
    visitor.assert_clean()


def test_control_what_is_wrong_is_found(shared_demo: Demo, visit: Visit) -> None:
    visitor = visit(shared_demo.url).open()
    visitor.page.evaluate("""() => {
      document.querySelector("#stopper + *, main").insertAdjacentHTML("beforeend", "<button></button><img src=/x.png>");
      document.querySelector(".welcome p").className = "connection";
      document.querySelector(".connection:not(:empty)").style.color = "#0b6680";
    }""")
    found = " ".join(issues(visitor.page))
    for rule in ("button-name", "image-alt", "color-contrast"):
        assert rule in found


@pytest.mark.parametrize("look", LOOKS)
def test_while_an_answer_is_held(shared_demo: Demo, visit: Visit, look: Look) -> None:
    visitor = seen_as(look, visit, shared_demo).open()
    visitor.scenario("slow")
    visitor.grown(10)
    assert issues(visitor.page) == []
    visitor.page.keyboard.press("Escape")
    visitor.over("interrupted")
    visitor.assert_clean()


@pytest.mark.parametrize("look", LOOKS)
def test_compare_and_welcome(shared_demo: Demo, visit: Visit, look: Look) -> None:
    visitor = seen_as(look, visit, shared_demo).open("/compare/")
    page = visitor.page
    assert issues(page) == []
    page.locator("[data-scenario=pii]").click()
    expect(page.locator("#gated-figures")).not_to_contain_text("–")
    expect(page.locator("#raw-figures")).not_to_contain_text("–")
    assert issues(settled(page)) == []
    page.goto(f"{shared_demo.url}/welcome/")
    assert issues(page) == []
    visitor.assert_clean()


@pytest.mark.parametrize("look", LOOKS)
def test_audit(shared_demo: Demo, visit: Visit, look: Look) -> None:
    guard(shared_demo, visit)
    visitor = seen_as(look, visit, shared_demo)
    page = sign_in(visitor, shared_demo)
    expect(page.locator("tr[data-session]").first).to_be_visible()
    assert issues(page) == []
    page.locator("tr[data-session] a").first.click()
    expect(page.locator("[data-chain=good]")).to_be_visible()
    assert issues(page) == []
    page.get_by_label("Why do you look?").fill("complaint 17")
    page.get_by_role("button", name="Reveal the texts").click()
    expect(page.locator("[data-text=answer]")).to_contain_text("as far as we know")
    assert issues(settled(page)) == []
    page.goto(f"{shared_demo.url}/audit/review/?show=all")
    expect(page.locator("#card")).to_be_visible()
    page.keyboard.press("f")
    expect(page.locator("[data-stored]")).to_be_visible()
    assert issues(settled(page)) == []
    for path in ("precision/", "chain/", "?q=nothing-is-named-so"):
        page.goto(f"{shared_demo.url}/audit/{path}")
        expect(page.locator("main h1")).to_be_visible()
        assert issues(page) == [], path
    page.goto(f"{shared_demo.url}/audit/chain/")
    page.get_by_role("button", name="Verify the whole log now").click()
    expect(page.locator("#check[data-state=verified]")).to_be_visible()
    assert issues(settled(page)) == []
    visitor.assert_clean()


@pytest.mark.parametrize("look", LOOKS)
def test_admin(shared_demo: Demo, visit: Visit, look: Look) -> None:
    visitor = seen_as(look, visit, shared_demo)
    page = visitor.page
    page.goto(f"{shared_demo.url}/admin/")
    assert issues(settled(page)) == []
    sign_in(visitor, shared_demo)
    ((policy, version),) = shared_demo.rows("select id, active_version_id from guardrails_policy where name = 'demo'")
    found: list[str] = []
    for path in ("", f"guardrails/policy/{policy}/change/", f"guardrails/policyversion/{version}/change/"):
        page.goto(f"{shared_demo.url}/admin/{path}")
        expect(page.locator("h1").first).to_be_visible()
        if "policy/" in path:
            page.locator(".rules-card summary").first.click()
            expect(page.locator("#rules-summary")).to_contain_text("can be saved")
        found += issues(settled(page))
    assert found == []
    visitor.assert_clean()


@pytest.mark.parametrize("look", LOOKS)
def test_pages_that_say_what_went_wrong(shared_demo: Demo, visit: Visit, look: Look) -> None:
    visitor = seen_as(look, visit, shared_demo)
    page = visitor.page

    def fail(route: Route) -> None:  # no page of the demo can be made to fail from outside
        route.fulfill(status=500, content_type="text/html", body=render_to_string("500.html"))

    page.route("**/failed/", fail)
    page.goto(f"{shared_demo.url}/admin/")
    page.context.clear_cookies()
    page.locator("input[name=username]").fill("somebody")
    page.locator("input[name=password]").fill("something")
    page.keyboard.press("Enter")
    expect(page.locator("[data-refused=forged]")).to_be_visible()
    found = issues(settled(page))
    sign_in(visitor, shared_demo)
    for address, said in {
        "no/such/page/": "There is no such page",
        "admin/streaming/finding/add/": "This page is not for you",
        "failed/": "Something failed here",
    }.items():
        page.goto(f"{shared_demo.url}/{address}")
        expect(page.locator("h1")).to_have_text(said)
        found += issues(settled(page))
        assert fits(page), address
        page.get_by_role("button", name="Colours: as the system").click()  # the header works here too
        expect(page.locator("html")).to_have_attribute("data-theme", "light")
        page.evaluate("localStorage.clear()")
    assert found == []
    assert len(visitor.console) == 4
    assert all("the server responded with a status of" in line for line in visitor.console), visitor.console
