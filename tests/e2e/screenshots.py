"""``make screenshots``: a picture of every screen, wide and light, narrow and dark, into ``docs/screenshots``.

A demo of its own is started in a directory that is thrown away, and filled by its own scenarios, so the pictures show
what a visitor gets and hold no data of anybody.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import django
from django.template.loader import render_to_string
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

from tests.e2e.conftest import QUIET, chromium
from tests.e2e.damaged import OUTSIDER, PASSWORD, beside, finding_of, harm, session_of
from tests.e2e.server import ROOT, Demo, demo
from tests.e2e.small_png import small_png
from tests.e2e.terminal_picture import terminal_svgs
from tests.e2e.test_audit_pages import sign_in
from tests.e2e.tidy import TIDY
from tests.e2e.visitor import Visitor, until

FOLDER = ROOT / "docs" / "screenshots"
MOST_BYTES = 60_000
LOOKS = {"1280-light": (1280, 860, "light"), "390-dark": (390, 844, "dark")}
PATIENCE_MS = 90_000


def answered(scenario: str, outcome: str) -> Callable[[Visitor], None]:
    """The live page after a scenario, deferred checks included."""

    def go(visitor: Visitor) -> None:
        visitor.open()
        visitor.scenario(scenario)
        visitor.over(outcome, timeout_s=90)
        visitor.state("COMPLETE", timeout_s=90)

    return go


def holding(visitor: Visitor) -> None:
    """The live page in the moment in which much is held."""
    visitor.open()
    visitor.guard("The list is kept by " + "somebody.with.a.very.long.name." * 12 + "who@example.org, they say.")
    until(visitor.page, "document.querySelector('.answer .shimmer')?.textContent.length > 60", 60, 0.02)


def compared(visitor: Visitor) -> None:
    """The comparison after its run."""
    visitor.open("/compare/")
    visitor.page.locator("[data-scenario=pii]").click()
    for lane in ("raw", "buffered", "gated"):
        expect(visitor.page.locator(f"#{lane}-figures")).not_to_contain_text("–")


def welcomed(visitor: Visitor) -> None:
    """The page that says what this is."""
    visitor.page.goto(visitor.base + "/welcome/")


def lost(visitor: Visitor) -> None:
    """An address where nothing is."""
    visitor.page.goto(visitor.base + "/no/such/page/")


def documented(visitor: Visitor) -> None:
    """What programs may call."""
    visitor.page.goto(visitor.base + "/v1/docs")


def failed(visitor: Visitor) -> None:
    """A failure, which no visitor can bring about."""

    def answer(route: Route) -> None:
        route.fulfill(status=500, content_type="text/html", body=render_to_string("500.html"))

    visitor.page.route("**/failed/", answer)
    visitor.page.goto(visitor.base + "/failed/")


def forged(visitor: Visitor) -> None:
    """A form that came from elsewhere."""
    visitor.page.goto(visitor.base + "/admin/")
    visitor.page.context.clear_cookies()
    logged_in(visitor.page, "somebody", "something")
    expect(visitor.page.locator("[data-refused=forged]")).to_be_visible()


def logged_in(page: Page, name: str, password: str) -> None:
    """What is typed into the form that stands there."""
    page.locator("input[name=username]").fill(name)
    page.locator("input[name=password]").fill(password)
    page.keyboard.press("Enter")


def not_theirs(visitor: Visitor) -> None:
    """A page of the audit that is not for the one who is signed in."""
    visitor.page.goto(visitor.base + "/audit/")
    logged_in(visitor.page, OUTSIDER, PASSWORD)
    expect(visitor.page.get_by_role("heading", name="This page is not for you")).to_be_visible()


VISITED: dict[str, Callable[[Visitor], None]] = {
    "live-redacted": answered("pii", "redacted"),
    "live-blocked": answered("blocked_phrase", "blocked"),
    "live-judged": answered("judge", "allowed"),
    "live-tools": answered("tools", "allowed"),
    "compare": compared,
    "welcome": welcomed,
    "no-such-page": lost,
    "live-holding": holding,
    "api-docs": documented,
    "failed": failed,
    "forged-form": forged,
}
DAMAGED: dict[str, Callable[[Visitor], None]] = {"audit-refused": not_theirs}
"""After the harm of ``damaged``."""


def signed_in(running: Demo) -> dict[str, str]:
    """Addresses behind the login by the name of their picture."""
    ((policy, version),) = running.rows("select id, active_version_id from guardrails_policy where name = 'demo'")
    newest = "select id, session_id from streaming_finding where rule = 'ssn' order by id desc limit 1"
    ((finding, session),) = running.rows(newest)
    ((tidy,),) = running.rows("select id from guardrails_policy where name = 'support'")
    session = UUID(str(session))
    return {
        "audit-list": "/audit/",
        "audit-session": f"/audit/sessions/{session}/",
        "audit-review": "/audit/review/?show=all",
        "audit-precision": "/audit/precision/",
        "audit-chain": "/audit/chain/",
        "admin": "/admin/",
        "admin-policy": f"/admin/guardrails/policy/{policy}/change/",
        "admin-rule": f"/admin/guardrails/policy/{policy}/change/",
        "admin-version": f"/admin/guardrails/policyversion/{version}/change/",
        "admin-rollout": f"/admin/guardrails/rollout/of/{version}/",
        "admin-key": "/admin/guardrails/apikey/add/",
        "admin-lint": f"/admin/guardrails/policy/{tidy}/change/",
        "admin-diff": f"/admin/guardrails/policy/{tidy}/diff/",
        "admin-checks": "/admin/streaming/deferredcheck/",
        "admin-providers": "/admin/streaming/configuredprovider/",
        "admin-upstreams": "/admin/streaming/upstream/",
        "admin-flags": "/admin/streaming/rolloutflag/",
        "admin-demotions": "/admin/streaming/demotion/",
        "admin-shadow": "/admin/streaming/shadowedpolicy/",
        "admin-sessions": "/admin/streaming/auditsession/",
        "admin-findings": "/admin/streaming/finding/",
        "admin-reveal": f"/admin/streaming/auditsession/{session}/reveal/",
        "admin-verdict": f"/admin/streaming/finding/{finding}/review/",
        "not-for-you": "/admin/streaming/finding/add/",
        "audit-revealed": f"/audit/sessions/{session}/",
    }


def damaged(running: Demo) -> dict[str, str]:
    """The same, after the harm."""
    return {
        "audit-example": f"/audit/findings/{finding_of(running, 'noted')}/example",
        "audit-tampered": f"/audit/sessions/{session_of(running, 'tampered')}/",
        "audit-faulty": "/audit/chain/",
    }


def lint(page: Page) -> None:
    """A pattern that cannot be bounded, and an example that it misses."""
    card = page.locator(".rules-card").first
    card.locator("summary").first.click()
    rule = card.locator(".rules-item").first
    rule.get_by_label("Pattern", exact=True).fill("blue(?= heron)")
    expect(rule.locator("[id$='.pattern-problem']")).to_contain_text("look-ahead")
    rule.evaluate("(rule) => rule.scrollIntoView()")


def open_rule(page: Page) -> None:
    """The form of a policy with a guardrail open."""
    card = page.locator(".rules-card").first
    card.locator("summary").first.click()
    card.evaluate("(card) => card.scrollIntoView()")


def revealed(page: Page) -> None:
    """The texts of a session, looked at."""
    page.get_by_label("Why do you look?").fill("complaint 17")
    page.get_by_role("button", name="Reveal").click()
    expect(page.get_by_text("536-22").or_(page.get_by_text("[SSN]")).first).to_be_visible()


def verified(page: Page) -> None:
    """The log, verified from the page."""
    page.get_by_role("button", name="Verify the whole log now").click()
    expect(page.locator("#check:is([data-state=verified], [data-state=faulty])")).to_be_visible()


BEFORE: dict[str, Callable[[Page], None]] = {
    "admin-rule": open_rule,
    "admin-lint": lint,
    "audit-revealed": revealed,
    "admin-reveal": revealed,
    "audit-faulty": verified,
}
"""What is done on a page before its picture is taken."""


class Camera:
    """All pictures of one look."""

    def __init__(self, browser: Browser, running: Demo, look: str) -> None:
        self._browser, self._running, self._look = browser, running, look
        self._blank = browser.new_page()

    def shoot(self, page: Page, name: str) -> None:
        """What stands on the page now."""
        page.mouse.move(0, 0)  # what the pointer rests on would look chosen
        page.wait_for_load_state("networkidle")
        self.keep(page.screenshot(animations="disabled"), f"{name}-{self._look}")

    def keep(self, picture: bytes, name: str) -> None:
        """A picture, made small."""
        small = small_png(self._blank, picture, MOST_BYTES)
        (FOLDER / f"{name}.png").write_bytes(small)
        sys.stdout.write(f"{name}.png {len(small) // 1000} kB\n")

    def visitor(self) -> Visitor:
        """Somebody with this look, who has been nowhere."""
        width, height, scheme = LOOKS[self._look]
        context = self._browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
        context.set_default_timeout(PATIENCE_MS)
        return Visitor(context.new_page(), self._running.url)

    def visit(self, visited: dict[str, Callable[[Visitor], None]]) -> None:
        """Pages, each as a visitor of its own comes to it."""
        for name, go in visited.items():
            visitor = self.visitor()
            go(visitor)
            self.shoot(visitor.page, name)
            visitor.page.context.close()

    def signed_in(self, addresses: Callable[[Demo], dict[str, str]]) -> None:
        """Pages behind the login, and the login."""
        visitor = self.visitor()
        visitor.page.goto(self._running.url + "/admin/")
        self.shoot(visitor.page, "admin-login")
        sign_in(visitor, self._running)
        for name, address in addresses(self._running).items():
            visitor.page.goto(self._running.url + address)
            if do := BEFORE.get(name):
                do(visitor.page)
            self.shoot(visitor.page, name)
            if name == "audit-review":  # so that the page of precision has something to show
                expect(visitor.page.locator("main.audit[data-keys=on]")).to_be_visible()
                visitor.page.keyboard.press("t")
                expect(visitor.page.locator("[data-stored]")).to_be_visible()
        visitor.page.context.close()

    def draw(self, name: str, svg: str) -> None:
        """A drawing, in its own colours."""
        self._blank.set_content(f"<body>{svg}</body>")
        self.keep(self._blank.locator("svg").first.screenshot(), name)


def main() -> None:
    """Take them all."""
    path = chromium()
    if path is None:
        sys.exit("no Chromium found (set CHROMIUM to its path)")
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
    django.setup()  # for the page of a failure
    expect.set_options(timeout=PATIENCE_MS)
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        terminal, data = Path(folder) / "terminal", Path(folder) / "demo"
        terminal.mkdir()
        data.mkdir()
        drawings = terminal_svgs(terminal)
        with demo(data) as running, sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=path, args=QUIET)
            beside(running, TIDY)
            cameras = [Camera(browser, running, look) for look in LOOKS]
            for name, svg in drawings.items():
                cameras[0].draw(name, svg)
            for camera in cameras:
                camera.visit(VISITED)
                camera.signed_in(signed_in)
            harm(running)
            for camera in cameras:
                camera.visit(DAMAGED)
                camera.signed_in(damaged)
            browser.close()


if __name__ == "__main__":
    main()
