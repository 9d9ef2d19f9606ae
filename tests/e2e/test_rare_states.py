"""Pages in the states that no ordinary run meets, in a demo of their own: nothing there yet; rows altered behind the
demo's back; a policy that cannot be used; two reviewers at once; no network, no server, an upstream that fails; texts
and patterns far longer than any form takes. Each is said in words, passes axe, and fits a phone.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from tests.e2e.conftest import Visit
from tests.e2e.damaged import LONG, MILLION, OUTSIDER, PASSWORD, finding_of, harm, session_of
from tests.e2e.server import Demo, demo, misbehaving_endpoint
from tests.e2e.test_accessibility import TWO, Look, issues, patient, seen_as, settled
from tests.e2e.test_audit_pages import fits, sign_in
from tests.e2e.visitor import LOST, catch

__all__ = ["patient"]

WIDTHS = [pytest.param(1280, id="wide"), pytest.param(390, id="narrow")]


@pytest.fixture(scope="module")
def fresh_demo(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """A demo that nobody has used, and that this file may do anything to."""
    with misbehaving_endpoint() as url:
        variables = {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": "sk-test", "OPENAI_MODEL": "test-model"}
        with demo(tmp_path_factory.mktemp("rare"), **variables) as running:
            yield running


@pytest.fixture
def damaged(fresh_demo: Demo) -> Demo:
    """The same, after all the harm."""
    harm(fresh_demo)
    return fresh_demo


def wrong(page: Page, state: str) -> list[str]:
    """What is wrong with the page in this state."""
    found = [f"{state}: {one}" for one in issues(settled(page))]
    return found if fits(page) else [*found, f"{state}: wider than the screen"]


@pytest.mark.parametrize("look", TWO)
def test_it_works(fresh_demo: Demo, visit: Visit, look: Look) -> None:
    """Nothing there yet: each page says so, and what will stand there."""
    visitor = seen_as(look, visit, fresh_demo)
    page = sign_in(visitor, fresh_demo)
    assert fresh_demo.rows("select count(*) from streaming_auditsession") == [(0,)], "this test is the first"
    found = []
    for path, words in {
        "": "No session has been recorded yet. The first one appears here when it begins.",
        "review/": "No finding waits here. Look at the sessions",
        "precision/": "judged",
        "chain/": "Nobody has verified the log from this page yet.",
    }.items():
        page.goto(f"{fresh_demo.url}/audit/{path}")
        expect(page.locator("main.audit[data-keys=on]")).to_contain_text(words)
        found += wrong(page, f"empty {path}")
    assert found == []
    visitor.assert_clean()


def conflict(page: Page, running: Demo) -> Page:
    """Two pages at the same finding; the first one stores a verdict, the second one learns of it."""
    address = f"{running.url}/audit/review/?show=all&at={finding_of(running, 'waits')}"
    page.goto(address)
    second = page.context.new_page()
    second.goto(address)
    for one in (page, second):
        expect(one.locator("main.audit[data-keys=on]")).to_be_visible()
    page.keyboard.press("t")
    expect(page.locator("[data-stored]")).to_be_visible()
    second.keyboard.press("f")
    expect(second.locator("[data-conflict]")).to_be_visible()
    return second


@pytest.mark.parametrize("look", TWO)
def test_the_audit_pages_when_something_is_wrong(damaged: Demo, visit: Visit, look: Look) -> None:
    visitor = seen_as(look, visit, damaged)
    page = sign_in(visitor, damaged)
    page.goto(f"{damaged.url}/audit/sessions/{session_of(damaged, 'tampered')}/")
    expect(page.locator("[data-tampered] [data-fault=session_altered]")).to_be_visible()
    expect(page.locator("[data-chain=faulty]")).to_be_visible()
    found = wrong(page, "tampered session")
    page.goto(f"{damaged.url}/audit/chain/")
    page.get_by_role("button", name="Verify the whole log now").click()
    expect(page.locator("#check[data-state=faulty] [data-fault]").first).to_be_visible()
    found += wrong(page, "faulty chain")
    page.goto(f"{damaged.url}/audit/?state=SLEEPING")
    expect(page.get_by_role("alert").filter(has_text="Nothing was looked for")).to_be_visible()
    found += wrong(page, "filter of no form")
    second = conflict(page, damaged)
    found += wrong(second, "conflict")
    second.close()
    page.goto(f"{damaged.url}/audit/findings/{finding_of(damaged, 'noted')}/example")
    box = page.get_by_label("A text that the rule must let pass")
    found += wrong(page, "must-not-match example")
    box.fill("  ")
    page.get_by_role("button", name="Add to the draft").click()
    expect(page.locator("main").get_by_role("alert").first).to_be_visible()
    found += wrong(page, "example of no form")
    assert found == []
    visitor.assert_clean("status of 4", "Error Code 4")


@pytest.mark.parametrize("look", TWO)
def test_who_may_not_open_the_audit_is_told(damaged: Demo, visit: Visit, look: Look) -> None:
    visitor = seen_as(look, visit, damaged)
    page = visitor.page
    page.goto(f"{damaged.url}/audit/")
    page.locator("input[name=username]").fill(OUTSIDER)
    page.locator("input[name=password]").fill(PASSWORD)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="This page is not for you")).to_be_visible()
    assert wrong(page, "refused") == []
    visitor.assert_clean("status of 403")


@pytest.mark.parametrize("look", TWO)
def test_the_live_page_when_something_is_wrong(damaged: Demo, visit: Visit, look: Look) -> None:
    visitor = seen_as(look, visit, damaged).open()
    page = visitor.page
    visitor.scenario("outage")
    visitor.over("redacted", timeout_s=60)
    expect(page.locator("#notices [data-error=provider_fallback]")).to_be_visible()
    expect(page.locator(".answer .source")).to_contain_text("fallback after")
    found = wrong(page, "fallback")
    page.locator("select[name=provider]").select_option("openai")
    expect(page.locator("#model")).to_contain_text("test-model")
    visitor.ask("Say nothing, please")
    expect(page.locator("#notices [data-error]")).to_be_visible()
    found += wrong(page, "provider error")
    page.locator("select[name=policy]").select_option("sick")
    expect(page.locator("#lanes")).to_contain_text("This policy cannot be used")
    found += wrong(page, "unusable policy")
    page.context.set_offline(True)
    expect(page.locator("#connection")).to_contain_text("You are offline")
    found += wrong(page, "offline")
    page.context.set_offline(False)
    visitor.connected()
    assert found == []
    visitor.assert_clean(*LOST)


def test_no_network_and_a_server_that_fails_are_said_on_the_audit_pages(damaged: Demo, visit: Visit) -> None:
    visitor = visit(damaged.url)
    page = sign_in(visitor, damaged, "/audit/review/?show=all")
    notice = page.locator("#notice")
    page.context.set_offline(True)
    expect(notice).to_have_text("You are offline. What is shown may be old.")
    page.context.set_offline(False)
    expect(notice).to_be_hidden()
    page.locator("#note").fill("kept")
    page.keyboard.press("Escape")
    before = damaged.rows("select count(*) from streaming_review")

    def fail(route: Route) -> None:
        route.fulfill(status=503, content_type="text/html", body="<h1>Busy</h1>")

    catch(page, "/audit/findings/", fail)
    page.keyboard.press("t")
    expect(notice).to_contain_text("(503)")
    expect(page.locator("#note")).to_have_value("kept")
    assert damaged.rows("select count(*) from streaming_review") == before
    page.unroute("**/audit/findings/**")
    page.keyboard.press("t")
    expect(page.locator("[data-stored=true_positive]")).to_be_visible()
    expect(notice).to_be_hidden()
    visitor.assert_clean(*LOST, "status of 503", "Error Code 503")


def test_a_verdict_that_takes_its_time_is_sent_once(damaged: Demo, visit: Visit) -> None:
    visitor = visit(damaged.url)
    page = sign_in(visitor, damaged, "/audit/review/?show=all")
    held: list[Route] = []
    page.route("**/audit/findings/**", lambda route: held.append(route))
    before = damaged.rows("select count(*) from streaming_review")
    page.keyboard.press("t")
    buttons = page.locator(".verdicts button")
    for n in range(3):
        expect(buttons.nth(n)).to_be_disabled()
    page.keyboard.press("f")
    page.keyboard.press("u")
    assert len(held) == 1
    held[0].continue_()
    expect(page.locator("[data-stored=true_positive]")).to_be_visible()
    ((count,),) = before
    assert isinstance(count, int)
    assert damaged.rows("select count(*) from streaming_review") == [(count + 1,)]
    visitor.assert_clean()


@pytest.mark.parametrize("width", WIDTHS)
def test_very_long_words_of_people_stay_in_their_place(damaged: Demo, visit: Visit, width: int) -> None:
    """A pattern, a description, notes and a difference of 30,000 characters without a space."""
    visitor = visit(damaged.url, viewport={"width": width, "height": 900})
    page = sign_in(visitor, damaged)
    ((policy, version),) = damaged.rows(
        "select p.id, v.id from guardrails_policy p join guardrails_policyversion v on v.policy_id = p.id"
        " where p.name = 'long'"
    )
    finding = finding_of(damaged, "noted")
    found = []
    for address, words in {
        f"admin/guardrails/policy/{policy}/change/": "",
        f"admin/guardrails/policy/{policy}/diff/": "P" * LONG,
        "admin/guardrails/policy/": "",
        f"admin/guardrails/policyversion/{version}/change/": "N" * 2_000,
        f"admin/streaming/finding/{finding}/review/": "R" * LONG,
        f"audit/review/?show=all&at={finding}": "R" * LONG,
        f"audit/sessions/{session_of(damaged, 'tampered')}/": "session_altered",
    }.items():
        page.goto(f"{damaged.url}/{address}")
        expect(page.locator("h1").first).to_be_visible()
        assert words in str(page.locator("body").text_content()), address
        if address.endswith(f"policy/{policy}/change/"):
            page.locator(".rules-card summary").first.click()
            expect(page.get_by_label("Pattern", exact=True).first).to_have_value("P" * LONG)
        if not fits(page):
            found.append(address)
    assert found == []
    visitor.assert_clean()


@pytest.mark.parametrize("place", ["audit", "admin"])
def test_an_answer_of_a_million_characters_is_revealed_on_a_phone(damaged: Demo, visit: Visit, place: str) -> None:
    visitor = visit(damaged.url, viewport={"width": 390, "height": 844}, has_touch=True)
    page = sign_in(visitor, damaged)
    key = session_of(damaged, "million")
    page.goto(
        f"{damaged.url}/"
        + (f"audit/sessions/{key}/" if place == "audit" else f"admin/streaming/auditsession/{key}/reveal")
    )
    assert fits(page)
    page.get_by_label("Why do you look?").fill("complaint 17")
    page.get_by_role("button", name="Reveal").tap()
    shown = page.locator("[data-text=answer]" if place == "audit" else "section[aria-labelledby=text-answer] pre")
    expect(shown).to_be_visible()
    assert shown.evaluate("(one) => (one.textContent.match(/W/g) ?? []).length") == MILLION
    assert fits(page)
    back = page.get_by_role("link", name="Sessions" if place == "audit" else "Back to the session", exact=True)
    back.tap()
    expect(
        page.locator("tr[data-session]").first if place == "audit" else page.get_by_text("hidden").first
    ).to_be_visible()
    visitor.assert_clean()
