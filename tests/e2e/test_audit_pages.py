"""The audit pages in a real browser: found, looked at, judged by keyboard alone; light and dark, wide and narrow."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.conftest import Visit
from tests.e2e.server import Demo, wait_for
from tests.e2e.visitor import Visitor, catch

TEXT = "The number on file is 123-45-6789, as far as we know."
FINDINGS = "select count(*) from streaming_finding"
REVIEWS = "select label, note from streaming_review order by id desc limit {}"
PAGES = ("", "review/", "precision/", "chain/")


@pytest.fixture(autouse=True)
def patient() -> Iterator[None]:
    """A page may take its time on a busy machine."""
    expect.set_options(timeout=30_000)
    yield
    expect.set_options(timeout=5_000)


def guard(shared_demo: Demo, visit: Visit, times: int = 1) -> None:
    """So many sessions with one finding each, on record."""
    for _ in range(times):
        before = shared_demo.rows(FINDINGS)
        reader = visit(shared_demo.url).open()
        reader.guard(TEXT)
        reader.over("redacted")
        wait_for("the finding is on record", lambda before=before: shared_demo.rows(FINDINGS) != before)  # type: ignore[misc]
        reader.page.close()


def sign_in(visitor: Visitor, running: Demo, path: str = "/audit/") -> Page:
    page = visitor.page
    page.goto(visitor.base + path)
    page.locator("input[name=username]").fill(running.info["admin_user"])
    page.locator("input[name=password]").fill(running.info["admin_password"])
    page.keyboard.press("Enter")
    expect(page.locator("main.audit[data-keys=on]")).to_be_visible()
    return page


def shoot(page: Page, name: str) -> None:
    """For the eye, where ``SCREENSHOTS`` names a folder."""
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


def fits(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_works(shared_demo: Demo, visit: Visit, width: int, scheme: str) -> None:
    guard(shared_demo, visit)
    visitor = visit(shared_demo.url, viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = sign_in(visitor, shared_demo)
    expect(page.locator("tr[data-session]").first).to_be_visible()
    shoot(page, f"audit-list-{width}-{scheme}")
    assert fits(page)
    page.locator("tr[data-session] a").first.click()
    expect(page.locator("[data-chain=good]")).to_be_visible()
    expect(page.locator("[data-text=answer] .masked").first).to_be_visible()
    expect(page.get_by_text("as far as we know")).to_have_count(0)
    shoot(page, f"audit-session-{width}-{scheme}")
    assert fits(page)
    page.get_by_label("Why do you look?").fill("complaint 17")
    page.get_by_role("button", name="Reveal the texts").click()
    expect(page.locator("[data-text=answer]")).to_contain_text("as far as we know")
    expect(page.locator("[data-text=answer] .chip").first).to_have_text("[SSN]")
    shoot(page, f"audit-revealed-{width}-{scheme}")
    for path in PAGES[1:]:
        page.goto(f"{shared_demo.url}/audit/{path}")
        expect(page.locator("main h1")).to_be_visible()
        shoot(page, f"audit-{path.strip('/')}-{width}-{scheme}")
        assert fits(page), path
    page.get_by_role("button", name="Verify the whole log now").click()
    expect(page.locator("#check[data-state=verified]")).to_be_visible()
    shoot(page, f"audit-verified-{width}-{scheme}")
    assert [line for line in visitor.console if "error" in line.lower() or "warning" in line.lower()] == []
    assert visitor.hosts == {"127.0.0.1"}


def test_five_findings_are_judged_by_keyboard_alone(shared_demo: Demo, visit: Visit) -> None:
    guard(shared_demo, visit, 5)
    visitor = visit(shared_demo.url)
    page = sign_in(visitor, shared_demo, "/audit/review/")
    card, key = page.locator("#card"), page.keyboard
    met = []
    for stroke in "tufut":
        at = card.get_attribute("data-at")
        assert at
        met.append(at)
        if stroke == "u":
            key.press("n")
            key.type("just a jest, not fun")  # what is written are no keys
            key.press("Escape")
        key.press(stroke)
        expect(page.locator("[data-stored]")).to_have_attribute(
            "data-stored", {"t": "true_positive", "f": "false_positive", "u": "unclear"}[stroke]
        )
        expect(card).not_to_have_attribute("data-at", at)
        if stroke == "f":
            expect(page.locator("[data-offer]")).to_be_visible()
    assert len(set(met)) == 5
    stored = [label if note else label.upper() for label, note in shared_demo.rows(REVIEWS.format(5))]  # type: ignore[attr-defined]
    assert stored == ["TRUE_POSITIVE", "unclear", "FALSE_POSITIVE", "unclear", "TRUE_POSITIVE"]
    page.goto(f"{shared_demo.url}/audit/precision/")
    expect(page.get_by_role("link", name="pii").first).to_be_visible()
    shoot(page, "audit-precision-judged")
    page.goto(f"{shared_demo.url}/audit/review/?show=all")
    expect(page.locator("main.audit[data-keys=on]")).to_be_visible()
    expect(card).to_have_attribute("data-at", met[0])
    key.press("j")
    expect(card).to_have_attribute("data-at", met[1])
    key.press("k")
    expect(card).to_have_attribute("data-at", met[0])
    assert visitor.console == []


def test_two_reviewers_at_once_do_not_overwrite_each_other(shared_demo: Demo, visit: Visit) -> None:
    guard(shared_demo, visit)
    visitors = [visit(shared_demo.url) for _ in range(2)]
    one, other = (sign_in(visitor, shared_demo, "/audit/review/") for visitor in visitors)
    at = one.locator("#card").get_attribute("data-at")
    expect(other.locator("#card")).to_have_attribute("data-at", str(at))
    one.keyboard.press("t")
    expect(one.locator("[data-stored]")).to_be_visible()
    other.locator("#note").fill("I see <b>it</b> otherwise")
    other.keyboard.press("Escape")
    other.keyboard.press("f")
    expect(other.locator("[data-conflict]")).to_contain_text("has judged this finding in the meantime (true positive)")
    expect(other.locator("#note")).to_have_value("I see <b>it</b> otherwise")
    assert shared_demo.rows(f"select label from streaming_review where finding_id = {at}") == [("true_positive",)]
    other.keyboard.press("f")
    expect(other.locator("[data-stored=false_positive]")).to_be_visible()
    both = shared_demo.rows(f"select version, label from streaming_review where finding_id = {at} order by version")
    assert both == [(1, "true_positive"), (2, "false_positive")]
    for visitor in visitors:
        visitor.assert_clean("status of 409")


def test_a_lost_server_is_said_and_nothing_is_lost(shared_demo: Demo, visit: Visit) -> None:
    guard(shared_demo, visit)
    visitor = visit(shared_demo.url)
    page = sign_in(visitor, shared_demo, "/audit/review/")
    at = page.locator("#card").get_attribute("data-at")
    page.locator("#note").fill("kept")
    page.keyboard.press("Escape")
    catch(page, "/audit/findings/", lambda route: route.abort())
    page.keyboard.press("t")
    expect(page.locator("#notice")).to_contain_text("The server cannot be reached")
    expect(page.locator("#note")).to_have_value("kept")
    page.unroute("**/audit/findings/**")
    page.keyboard.press("t")
    expect(page.locator("[data-stored=true_positive]")).to_be_visible()
    expect(page.locator("#notice")).to_be_hidden()
    assert shared_demo.rows(f"select count(*) from streaming_review where finding_id = {at}") == [(1,)]
    visitor.assert_clean("ERR_FAILED", "htmx", "/audit/findings/")


def test_a_server_that_never_answers_is_said_and_nothing_is_lost(shared_demo: Demo, visit: Visit) -> None:
    guard(shared_demo, visit)
    visitor = visit(shared_demo.url)
    page = sign_in(visitor, shared_demo, "/audit/review/")
    assert page.evaluate("htmx.config.timeout") == 15_000
    page.evaluate("htmx.config.timeout = 700")
    page.locator("#note").fill("kept")
    page.keyboard.press("Escape")
    page.route("**/audit/findings/**", lambda route: None)
    page.keyboard.press("t")
    expect(page.locator("#notice")).to_contain_text("The server does not answer. Try again.")
    expect(page.locator("#note")).to_have_value("kept")
    page.unroute("**/audit/findings/**")
    page.evaluate("htmx.config.timeout = 15000")
    page.keyboard.press("t")
    expect(page.locator("[data-stored=true_positive]")).to_be_visible()
    expect(page.locator("#notice")).to_be_hidden()


def test_a_million_character_word_stays_in_its_place(shared_demo: Demo, visit: Visit) -> None:
    """Laid into the page, since no answer may be that long here; what is tested is the page's layout."""
    guard(shared_demo, visit)
    page = sign_in(visit(shared_demo.url, viewport={"width": 390, "height": 900}), shared_demo)
    page.locator("tr[data-session] a").first.click()
    expect(page.locator("[data-text=answer]")).to_be_visible()
    page.evaluate(
        "for (const one of document.querySelectorAll('[data-text], bdi, dd')) one.textContent = 'W'.repeat(1e6 / 20)"
    )
    page.evaluate("document.querySelector('[data-text]').textContent = 'W'.repeat(1e6)")
    assert fits(page)


def test_the_page_of_the_demo_leads_here_only_who_may_look(shared_demo: Demo, visit: Visit) -> None:
    expect(visit(shared_demo.url).open().page.get_by_role("link", name="Audit")).to_have_count(0)
    page = sign_in(visit(shared_demo.url), shared_demo)
    page.goto(shared_demo.url)
    page.get_by_role("link", name="Audit").click()
    expect(page).to_have_url(re.compile(r"/audit/$"))


def fill(running: Demo, number: int) -> None:
    """So many old sessions, copies of the newest one."""
    with contextlib.closing(sqlite3.connect(running.data_dir / "sluicegate.sqlite3", timeout=30)) as file:
        names = [row[1] for row in file.execute("pragma table_info(streaming_auditsession)")]
        own = {"id": "lower(hex(randomblob(16)))", "started_at": "'2020-01-01 00:00:' || printf('%02d', value % 60)",
               "correlation_id": "'old-' || value", "prompt_id": "null", "answer_id": "null"}  # fmt: skip
        file.execute(
            f"with recursive n(value) as (select 1 union all select value + 1 from n where value < {number})"
            f" insert into streaming_auditsession ({', '.join(names)})"
            f" select {', '.join(own.get(name, name) for name in names)}"
            " from n, (select * from streaming_auditsession order by started_at desc limit 1)"
        )
        file.commit()


def test_the_list_goes_on_as_it_is_scrolled_and_after_a_lost_connection(shared_demo: Demo, visit: Visit) -> None:
    guard(shared_demo, visit)
    fill(shared_demo, 120)
    visitor = visit(shared_demo.url)
    page = sign_in(visitor, shared_demo)
    page.goto(f"{shared_demo.url}/audit/?q=old-")
    rows = page.locator("tr[data-session]")
    expect(rows).to_have_count(50)
    page.route("**/audit/?*cursor=*", lambda route: route.abort())
    page.locator(".more").scroll_into_view_if_needed()
    expect(page.locator("#notice")).to_contain_text("The server cannot be reached")
    expect(page.get_by_role("link", name="Older sessions")).to_be_visible()
    page.unroute("**/audit/?*cursor=*")
    page.evaluate("window.dispatchEvent(new Event('online'))")
    expect(rows).to_have_count(100)
    expect(page.locator("#notice")).to_be_hidden()
    page.locator(".more").scroll_into_view_if_needed()
    expect(rows).to_have_count(120)
    expect(page.get_by_text("That is all of them.")).to_be_visible()
    names = page.locator("tr[data-session] td.mono").all_inner_texts()
    assert len(set(names)) == 120
    with page.expect_download() as download:
        page.get_by_role("link", name="CSV").click()
    assert Path(download.value.path()).read_text().count("\n") == 121
    visitor.assert_clean("ERR_FAILED", "htmx:", "/audit/?")
