"""A short way on a phone, by touch: blocked, interrupted, carried on after the line was cut, one finding judged, one
version published and signed. (``test_whole_path`` walks every step, on a slow line too; it is for the long run.)"""

from __future__ import annotations

from playwright.sync_api import expect

from streaming.providers.scripted import SCENARIOS
from tests.e2e.conftest import Visit
from tests.e2e.expected import visible
from tests.e2e.server import Demo, Wire
from tests.e2e.test_admin_versions import SIGN, act, number, write
from tests.e2e.test_audit_pages import REVIEWS, sign_in
from tests.e2e.test_demo_page import SECRETS
from tests.e2e.test_whole_path import PHONE, fits, patient
from tests.e2e.visitor import LOST

__all__ = ["patient"]


def test_it_works(shared_demo: Demo, wire: Wire, visit: Visit) -> None:
    visitor = visit(wire.url, viewport=PHONE, has_touch=True).open()
    page = visitor.page
    page.locator("[data-scenario=blocked_phrase]").tap()
    visitor.over("blocked")
    expect(page.locator(".answer [data-block]")).to_be_visible()
    visitor.assert_never_seen("Project Blue Heron")
    assert fits(visitor)

    page.locator("[data-scenario=slow]").tap()
    expect(page.locator(".answer")).to_have_count(2)
    visitor.grown(3)
    page.get_by_role("button", name="Stop").tap()
    visitor.over("interrupted")
    assert len(visitor.answer) < len(SCENARIOS["slow"].answer)

    page.locator("[data-scenario=pii]").tap()
    expect(page.locator(".answer")).to_have_count(3)
    visitor.grown(40)
    wire.cut()
    expect(page.locator("#connection")).to_contain_text("Reconnecting")
    assert fits(visitor)
    wire.mend()
    visitor.connected()
    visitor.over("redacted")
    assert visitor.answer == visible(SCENARIOS["pii"].answer)
    visitor.assert_never_seen(*SECRETS["pii"])
    visitor.assert_clean(*LOST)


def test_one_finding_is_judged_and_one_version_signed(shared_demo: Demo, visit: Visit) -> None:
    visitor = visit(shared_demo.url, viewport=PHONE, has_touch=True).open()
    page = visitor.page
    page.locator("[data-scenario=pii]").tap()
    visitor.over("redacted")
    visitor.state("COMPLETE")
    sign_in(visitor, shared_demo, "/audit/review/")
    card = page.locator("#card")
    at = str(card.get_attribute("data-at"))
    page.get_by_role("button", name="False positive").tap()
    expect(page.locator("[data-stored=false_positive]")).to_be_visible()
    expect(card).not_to_have_attribute("data-at", at)
    assert shared_demo.rows(REVIEWS.format(1))[0][0] == "false_positive"
    assert fits(visitor)
    name = "in-the-hand"
    write(visitor, "/admin/guardrails/policy/add/", "grey heron", name)
    act(visitor, "policy", name, "Publish the draft as the next version", f"{name} v1 published")
    act(visitor, "policyversion", f"{name} v1", SIGN, f"{name} v1 signed")
    assert fits(visitor)
    versions = "select count(*) from guardrails_policyversion v join guardrails_policy p on p.id = v.policy_id"
    signed = f"{versions} where p.name = '{name}' and v.signature != ''"
    assert number(shared_demo, signed) == 1
    visitor.assert_clean()
