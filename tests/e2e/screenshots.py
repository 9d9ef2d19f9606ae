"""``make screenshots``: a picture of every screen, wide and light, narrow and dark, into ``docs/screenshots``.

A demo of its own is started in a directory that is thrown away, and filled by its own scenarios, so the pictures show
what a visitor gets and hold no data of anybody.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.e2e.conftest import QUIET, chromium
from tests.e2e.server import ROOT, Demo, demo
from tests.e2e.small_png import small_png
from tests.e2e.test_audit_pages import sign_in
from tests.e2e.visitor import Visitor

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


VISITED: dict[str, Callable[[Visitor], None]] = {
    "live-redacted": answered("pii", "redacted"),
    "live-blocked": answered("blocked_phrase", "blocked"),
    "live-judged": answered("judge", "allowed"),
    "live-tools": answered("tools", "allowed"),
    "compare": compared,
    "welcome": welcomed,
    "no-such-page": lost,
}


def signed_in(running: Demo) -> dict[str, str]:
    """Addresses behind the login by the name of their picture."""
    ((policy, version),) = running.rows("select id, active_version_id from guardrails_policy where name = 'demo'")
    ((session,),) = running.rows("select session_id from streaming_finding where rule = 'ssn' order by id desc limit 1")
    return {
        "audit-list": "/audit/",
        "audit-session": f"/audit/sessions/{UUID(str(session))}/",
        "audit-review": "/audit/review/?show=all",
        "audit-precision": "/audit/precision/",
        "audit-chain": "/audit/chain/",
        "admin": "/admin/",
        "admin-policy": f"/admin/guardrails/policy/{policy}/change/",
        "admin-rule": f"/admin/guardrails/policy/{policy}/change/",
        "admin-version": f"/admin/guardrails/policyversion/{version}/change/",
        "admin-rollout": f"/admin/guardrails/rollout/of/{version}/",
        "admin-key": "/admin/guardrails/apikey/add/",
    }


def take(browser: Browser, running: Demo, look: str) -> None:
    """All pictures of one look."""
    width, height, scheme = LOOKS[look]
    blank = browser.new_page()

    def shoot(page: Page, name: str) -> None:
        page.mouse.move(0, 0)  # what the pointer rests on would look chosen
        page.wait_for_load_state("networkidle")
        picture = page.screenshot(animations="disabled")
        small = small_png(blank, picture, MOST_BYTES)
        (FOLDER / f"{name}-{look}.png").write_bytes(small)
        sys.stdout.write(f"{name}-{look}.png {len(small) // 1000} kB\n")

    def fresh() -> Visitor:
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
        context.set_default_timeout(PATIENCE_MS)
        return Visitor(context.new_page(), running.url)

    for name, go in VISITED.items():
        visitor = fresh()
        go(visitor)
        shoot(visitor.page, name)
        visitor.page.context.close()
    visitor = fresh()
    visitor.page.goto(running.url + "/admin/")
    shoot(visitor.page, "admin-login")
    sign_in(visitor, running)
    for name, address in signed_in(running).items():
        visitor.page.goto(running.url + address)
        if name == "admin-rule":  # the same page, with a guardrail open
            card = visitor.page.locator(".rules-card").first
            card.locator("summary").first.click()
            card.evaluate("(card) => card.scrollIntoView()")
        shoot(visitor.page, name)
        if name == "audit-review":  # so that the page of precision has something to show
            expect(visitor.page.locator("main.audit[data-keys=on]")).to_be_visible()
            visitor.page.keyboard.press("t")
            expect(visitor.page.locator("[data-stored]")).to_be_visible()
    visitor.page.context.close()
    blank.close()


def main() -> None:
    """Take them all."""
    path = chromium()
    if path is None:
        sys.exit("no Chromium found (set CHROMIUM to its path)")
    expect.set_options(timeout=PATIENCE_MS)
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, demo(Path(folder)) as running, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=QUIET)
        for look in LOOKS:
            take(browser, running, look)
        browser.close()


if __name__ == "__main__":
    main()
