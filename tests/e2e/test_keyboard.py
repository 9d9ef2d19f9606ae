"""Without a mouse and without eyes: keys alone do everything, and a screen reader is told what matters, once.

What has the focus is moved by Tab, and every stop on the way must be visible. (Five findings are judged by keyboard in
``test_audit_pages``.)
"""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from playwright.sync_api import Locator, Page, expect

from streaming.providers.scripted import SCENARIOS
from tests.e2e.conftest import Visit
from tests.e2e.server import Demo
from tests.e2e.test_audit_pages import patient
from tests.e2e.test_demo_page import SECRETS
from tests.e2e.visitor import Visitor

__all__ = ["patient"]

RECORD = """(ids) => {
  window.__told = [];
  for (const id of ids) {
    const region = document.getElementById(id);
    new MutationObserver(() => {
      if (region.textContent) window.__told.push([id, region.textContent.trim(), performance.now()]);
    }).observe(region, { childList: true, characterData: true, subtree: true });
  }
}"""


def tab_to(page: Page, wanted: Locator, limit: int = 120) -> None:
    """Press Tab until ``wanted`` has the focus; whatever has it on the way must show so."""
    for _ in range(limit):
        if wanted.evaluate("(one) => one === document.activeElement"):
            return
        page.keyboard.press("Tab")
        seen = page.evaluate("""() => {
          const one = document.activeElement;
          if (!one || one === document.body) return true;
          const style = getComputedStyle(one);
          return style.outlineStyle !== "none" || style.boxShadow !== "none" || one.matches("[role=document]");
        }""")
        assert seen, page.evaluate("document.activeElement.outerHTML")
    raise AssertionError(f"{wanted} is not reached by {limit} tabs")


def test_it_works(visitor: Visitor) -> None:
    page = visitor.page
    tab_to(page, page.locator("[data-scenario=pii]"))
    page.keyboard.press("Enter")
    visitor.over("redacted")
    visitor.assert_never_seen(*SECRETS["pii"])
    visitor.assert_clean()


@pytest.mark.parametrize("address", ["/", "/compare/"])
def test_an_answer_is_interrupted_and_the_focus_is_not_lost(shared_demo: Demo, visit: Visit, address: str) -> None:
    visitor = visit(shared_demo.url).open(address)
    page = visitor.page
    stop = page.locator("#stop")
    tab_to(page, page.locator("[data-scenario=slow]"))
    page.keyboard.press("Enter")
    expect(stop).to_be_enabled()
    tab_to(page, stop)
    page.keyboard.press("Enter")
    visitor.over("interrupted")
    expect(stop).to_be_disabled()
    expect(page.locator("#prompt" if address == "/" else "#scenarios")).to_be_focused()
    visitor.assert_clean()


@pytest.mark.parametrize("address", ["/", "/compare/"])
def test_a_dismissed_message_hands_the_focus_back(shared_demo: Demo, visit: Visit, address: str) -> None:
    page = visit(shared_demo.url).open(address).page
    if address == "/":
        tab_to(page, page.get_by_label("Prompt", exact=True))
        page.keyboard.type("   ")
    else:
        tab_to(page, page.get_by_text("A text of your own"))
        page.keyboard.press("Enter")
        tab_to(page, page.get_by_role("button", name="Compare it"))
    page.keyboard.press("Enter")
    dismiss = page.get_by_role("button", name="Dismiss this message")
    expect(dismiss).to_be_visible()
    tab_to(page, dismiss)
    page.keyboard.press("Enter")
    expect(dismiss).to_have_count(0)
    expect(page.locator("#prompt" if address == "/" else "#scenarios")).to_be_focused()


def test_a_rule_is_written_and_its_version_published_and_signed(shared_demo: Demo, visit: Visit) -> None:
    visitor = visit(shared_demo.url)
    page, keys = visitor.page, visitor.page.keyboard
    page.goto(f"{shared_demo.url}/admin/guardrails/policy/")
    for field in ("username", "password"):
        tab_to(page, page.locator(f"input[name={field}]"))
        keys.type(shared_demo.info[f"admin_{'user' if field == 'username' else 'password'}"])
    keys.press("Enter")
    expect(page.locator("#result_list")).to_be_visible()
    name = "by-keys"
    versions = "select number, signature from guardrails_policyversion v join guardrails_policy p on p.id = v.policy_id"
    versions += f" where p.name = '{name}' order by number"
    written(page, name, "grey heron")
    page.goto(f"{shared_demo.url}/admin/guardrails/policy/")
    step(page, name, "publish")
    expect(page.get_by_text(re.compile(rf"{name} v\d+ published"))).to_be_visible()
    assert shared_demo.rows(versions) == [(1, "")]
    page.goto(f"{shared_demo.url}/admin/guardrails/policyversion/")
    step(page, f"{name} v1", "sign")
    expect(page.get_by_text(f"{name} v1 signed", exact=True)).to_be_visible()
    assert [bool(signature) for _, signature in shared_demo.rows(versions)] == [True]
    visitor.assert_clean()


def written(page: Page, name: str, pattern: str) -> None:
    """A policy with one rule, from the list of policies on, by keys alone."""
    keys = page.keyboard
    tab_to(page, page.locator("a[href$='/guardrails/policy/add/']").last)
    keys.press("Enter")
    expect(page.locator("#rules")).to_be_visible()
    tab_to(page, page.get_by_label("Policy", exact=True))
    keys.type(name)
    kind = page.get_by_label("Add a guardrail")
    tab_to(page, kind)
    keys.type("regex")
    expect(kind).to_have_value("regex")
    tab_to(page, page.get_by_role("button", name="Add", exact=True))
    keys.press("Enter")
    card = page.locator(".rules-card")
    tab_to(page, card.get_by_role("button", name="Add to rules"))
    keys.press("Enter")
    rule = card.locator(".rules-item")
    for field, value in {"ID": "heron", "Pattern": pattern}.items():
        tab_to(page, rule.get_by_label(field, exact=True))
        keys.type(value)
    expect(page.locator("#rules-summary")).to_contain_text("This draft can be saved.")
    tab_to(page, page.get_by_role("button", name="Save", exact=True))
    keys.press("Enter")
    expect(page.locator("#rules")).to_have_count(0)


def step(page: Page, name: str, action: str) -> None:
    """Choose a row of a list and what to do with it, by keys."""
    row = page.locator("#result_list tr").filter(has=page.get_by_role("link", name=name, exact=True))
    tab_to(page, row.locator("input[name=_selected_action]"))
    page.keyboard.press("Space")
    choice = page.locator("select[name=action]")
    tab_to(page, choice)
    for _ in range(choice.locator("option").count()):
        if choice.input_value() == action:
            break
        page.keyboard.press("ArrowDown")
    expect(choice).to_have_value(action)
    tab_to(page, page.get_by_role("button", name="Run"))
    page.keyboard.press("Enter")


def test_the_page_has_its_landmarks(visitor: Visitor) -> None:
    page = visitor.page
    for role, name in {
        "banner": None, "main": None, "navigation": "Pages", "complementary": "Guardrails", "form": "Session settings",
        "region": "Conversation", "group": "Ready-made scenarios", "log": None,
    }.items():  # fmt: skip
        expect(page.get_by_role(role, name=name, exact=True)).to_have_count(1)  # type: ignore[arg-type]
    expect(page.get_by_role("region", name="Timeline of the answer")).to_have_count(1)
    expect(page.get_by_role("heading", level=1)).to_have_count(1)


def test_a_screen_reader_is_told_of_a_redaction_and_of_the_end_once(visitor: Visitor) -> None:
    page = visitor.page
    page.evaluate(RECORD, ["announce"])
    visitor.scenario("pii")
    visitor.over("redacted")
    for spoken in ("redacted: SSN", "redacted: CREDIT_CARD", "redacted: EMAIL"):
        expect(page.locator(".answer").get_by_role("img", name=spoken, exact=True)).to_have_count(1)
    visitor.state("COMPLETE")
    assert [words for _, words, _ in page.evaluate("window.__told")] == ["Answer over: Redacted."]
    visitor.scenario("pii")
    expect(page.locator(".answer")).to_have_count(2)
    visitor.over("redacted")
    visitor.state("COMPLETE")
    assert [words for _, words, _ in page.evaluate("window.__told")] == ["Answer over: Redacted."] * 2
    expect(page.locator("[aria-live=assertive]")).to_have_count(0)


def test_what_is_held_is_told_politely_and_seldom(visitor: Visitor) -> None:
    page = visitor.page
    page.evaluate(RECORD, ["announce-held"])
    visitor.guard("A word to ann@example.org and to 536-22-8145 or so. " * 16)
    visitor.over("redacted", timeout_s=90)
    held = [frame for frame in visitor.frames if 'data-type="hold"' in frame and 'data-chars="0"' not in frame]
    told = page.evaluate("window.__told")
    assert told
    assert len(told) < len(held) / 4
    for _, words, _ in told:
        assert re.match(r"holding \d+ characters?: may be ", words)
    times = [at for *_, at in told]
    assert all(later - earlier >= 4_900 for earlier, later in pairwise(times))
    expect(page.locator("#announce-held")).to_have_text("")
    expect(page.locator(".answer .shimmer")).to_have_attribute("aria-hidden", "true")
    assert re.search(r"(&nbsp;)+", "".join(held)), "there was a shimmer to hide"


def test_a_block_is_an_alert_with_its_reason(visitor: Visitor) -> None:
    visitor.scenario("blocked_phrase")
    visitor.over("blocked")
    alert = visitor.page.get_by_role("alert")
    expect(alert).to_have_count(1)
    expect(alert).to_contain_text("Blocked")
    expect(alert).to_contain_text("codenames")
    assert visitor.answer == SCENARIOS["blocked_phrase"].answer.partition("Project Blue Heron")[0]
