"""Every step in which the screens are checked, as one person takes them: on a phone, and on a slow line.

On a wide screen each of them has tests of its own: stream, block, redact, interrupt and the deferred result in
``test_demo_page``, the cut socket in ``test_broken_things``, signing and rolling back in ``test_admin_versions``, the
review in ``test_audit_pages`` and ``test_keyboard``. Here each meets the narrow screen, by touch where a phone has no
keys, with the console clean and nothing wider than the screen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import expect

from streaming.providers.scripted import SCENARIOS
from tests.e2e.conftest import Visit
from tests.e2e.expected import visible
from tests.e2e.server import Demo, Wire
from tests.e2e.test_admin_versions import ACTIVATE, SIGN, act, number, write
from tests.e2e.test_audit_pages import REVIEWS, sign_in
from tests.e2e.test_demo_page import SECRETS
from tests.e2e.visitor import LOST, Visitor

PHONE = {"width": 390, "height": 844}
LINE = 100_000.0
"""Bytes per second: a poor mobile line."""
PATIENCE_MS = 120_000.0


@pytest.fixture(autouse=True)
def patient() -> Iterator[None]:
    """A page may take its time on a busy machine, and does on a slow line."""
    expect.set_options(timeout=PATIENCE_MS)
    yield
    expect.set_options(timeout=5_000)


def fits(visitor: Visitor) -> bool:
    return bool(visitor.page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


def press(visitor: Visitor, scenario: str, outcome: str) -> None:
    """One scenario to its end, by a tap on its button."""
    shown = visitor.page.locator(".answer").count()
    visitor.scenario(scenario)
    expect(visitor.page.locator(".answer")).to_have_count(shown + 1)
    visitor.over(outcome, timeout_s=120)
    assert fits(visitor)


def stream(visitor: Visitor, wire: Wire) -> None:
    press(visitor.open(), "clean", "allowed")
    visitor.assert_grew_to(SCENARIOS["clean"].answer)


def block(visitor: Visitor, wire: Wire) -> None:
    press(visitor, "blocked_phrase", "blocked")
    expect(visitor.page.locator(".answer [data-block]").last).to_be_visible()
    assert visitor.answer == SCENARIOS["blocked_phrase"].answer.partition("Project Blue Heron")[0]
    visitor.assert_never_seen("Project Blue Heron")


def redact(visitor: Visitor, wire: Wire) -> None:
    press(visitor, "pii", "redacted")
    assert visitor.answer == visible(SCENARIOS["pii"].answer)
    expect(visitor.page.locator(".answer").last.locator("[data-chip]")).to_have_count(3)
    visitor.assert_never_seen(*SECRETS["pii"])


def interrupt(visitor: Visitor, wire: Wire) -> None:
    shown = visitor.page.locator(".answer").count()
    visitor.scenario("slow")
    expect(visitor.page.locator(".answer")).to_have_count(shown + 1)
    visitor.grown(3)
    visitor.page.get_by_role("button", name="Stop").click()
    visitor.over("interrupted", timeout_s=120)
    assert len(visitor.answer) < len(SCENARIOS["slow"].answer)


def reconnect(visitor: Visitor, wire: Wire) -> None:
    shown = visitor.page.locator(".answer").count()
    visitor.scenario("slow")
    expect(visitor.page.locator(".answer")).to_have_count(shown + 1)
    visitor.grown(3)
    wire.cut()
    expect(visitor.page.locator("#connection")).to_contain_text("Reconnecting")
    assert fits(visitor)
    wire.mend()
    visitor.connected()
    visitor.over("allowed", timeout_s=120)
    assert visitor.answer == SCENARIOS["slow"].answer
    # A connection that was cut is an error to the browser, which says so itself; ours would be said as well.
    visitor.console[:] = [line for line in visitor.console if not any(one in line for one in LOST)]


def deferred(visitor: Visitor, wire: Wire) -> None:
    press(visitor, "judge", "allowed")
    visitor.state("COMPLETE", timeout_s=120)
    assert "would block" in visitor.guardrail("harm")
    expect(visitor.page.locator(".answer").last.locator(".finding")).to_contain_text("would have blocked")


def sign_and_roll_back(visitor: Visitor, running: Demo, name: str) -> None:
    write(visitor, "/admin/guardrails/policy/add/", "blue heron", name)
    policy = number(running, f"select id from guardrails_policy where name = '{name}'")
    act(visitor, "policy", name, "Publish the draft as the next version", f"{name} v1 published")
    write(visitor, f"/admin/guardrails/policy/{policy}/change/", "grey heron", name)
    act(visitor, "policy", name, "Publish the draft as the next version", f"{name} v2 published")
    for version in (1, 2):
        act(visitor, "policyversion", f"{name} v{version}", SIGN, f"{name} v{version} signed")
        act(visitor, "policyversion", f"{name} v{version}", ACTIVATE, f"{name} v{version} activated")
    act(visitor, "policyversion", f"{name} v1", ACTIVATE, f"{name} v1 activated: rolled back from version 2")
    assert fits(visitor)
    query = "select v.number from guardrails_policy p join guardrails_policyversion v on v.id = p.active_version_id"
    assert number(running, f"{query} where p.id = {policy}") == 1


def review(visitor: Visitor, running: Demo) -> None:
    page = visitor.page
    page.goto(f"{visitor.base}/audit/review/")
    card = page.locator("#card")
    for key, label in zip("tfu", ("true_positive", "false_positive", "unclear"), strict=True):
        at = card.get_attribute("data-at")
        assert at
        expect(page.locator("main.audit[data-keys=on]")).to_be_visible()
        page.keyboard.press(key)
        expect(card).not_to_have_attribute("data-at", at)
        assert running.rows(REVIEWS.format(1))[0][0] == label
        assert fits(visitor)


STEPS: list[Callable[[Visitor, Wire], None]] = [stream, block, redact, interrupt, reconnect, deferred]


def walked(running: Demo, visitor: Visitor, wire: Wire, name: str) -> None:
    visitor.page.set_default_timeout(PATIENCE_MS)
    for step in STEPS:
        step(visitor, wire)
    sign_in(visitor, running)
    review(visitor, running)
    sign_and_roll_back(visitor, running, name)
    visitor.assert_clean()


@pytest.mark.long
def test_it_works(shared_demo: Demo, wire: Wire, visit: Visit) -> None:
    walked(shared_demo, visit(wire.url, viewport=PHONE, has_touch=True), wire, "on-a-phone")


@pytest.mark.long
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("width", [390, 1280])
def test_the_whole_path_on_a_slow_line(shared_demo: Demo, visit: Visit, width: int) -> None:
    slow = Wire(shared_demo.port, LINE)
    try:
        walked(shared_demo, visit(slow.url, viewport={"width": width, "height": 844}), slow, f"slowly-{width}")
    finally:
        slow.close()
    assert slow.carried > 500_000
