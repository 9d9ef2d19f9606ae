"""Compare and welcome in a real browser: three lanes, one clock, a clean console, on a wide screen and on a phone."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from streaming.providers.scripted import SCENARIOS
from tests.e2e.conftest import Visit
from tests.e2e.expected import visible
from tests.e2e.server import Demo, Wire, wait_for
from tests.e2e.visitor import until

WIDTHS = {"desk": {"width": 1280, "height": 860}, "phone": {"width": 390, "height": 844}}
TAKES_MS = 30_000
ODD = (
    "\u202eסוד " + "שלום לכולם. " * 40 + "\u200b\u200d\ufeff" * 500 + "Z\u0351\u036b\u0343\u036a" * 100
    + "<script>document.title='!'</script><img src=x onerror=\"document.title='!'\">" * 10
)  # fmt: skip


def figure(words: str) -> int:
    found = re.search(r"(\d+) ms", words)
    assert found, words
    return int(found[1])


@pytest.mark.parametrize("size", WIDTHS)
def test_it_works(shared_demo: Demo, visit: Visit, size: str) -> None:
    visitor = visit(shared_demo.url, viewport=WIDTHS[size]).open("/compare/")
    page = visitor.page
    page.get_by_role("button", name="Personal data").click()
    for lane in ("raw", "buffered", "gated"):
        expect(page.locator(f"#{lane}-figures")).not_to_contain_text("–", timeout=TAKES_MS)
    answer = SCENARIOS["pii"].answer
    assert page.locator("#raw-text").text_content() == answer
    assert page.locator("#buffered-text").text_content() == visible(answer)
    assert page.locator("#conversation .answer .text[data-visible]").text_content() == visible(answer)
    assert page.locator(".leak").all_text_contents() == [
        "536-22-8145", "4111 1111 1111 1111", "desk.seven@example.com",
    ]  # fmt: skip
    expect(page.locator("#raw-figures")).to_contain_text("3 values, 52 characters")
    expect(page.locator("#gated-figures")).to_contain_text("nothing that is hidden")
    first = {lane: figure(page.locator(f"#{lane}-figures dd").first.inner_text()) for lane in ("buffered", "gated")}
    assert first["gated"] < first["buffered"]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    visitor.assert_clean()


def test_a_blocked_answer_and_then_another_on_an_empty_page(shared_demo: Demo, visit: Visit) -> None:
    visitor = visit(shared_demo.url).open("/compare/")
    page = visitor.page
    page.get_by_role("button", name="A blocked phrase").click()
    expect(page.locator(".way [data-block]")).to_have_count(2, timeout=TAKES_MS)
    expect(page.locator("#raw-figures")).to_contain_text("1 value", timeout=TAKES_MS)
    page.get_by_role("button", name="A clean answer").click()
    expect(page.locator("#buffered-text")).to_have_text(SCENARIOS["clean"].answer, timeout=TAKES_MS)
    expect(page.locator(".way [data-block]")).to_have_count(0)
    expect(page.locator("#conversation .answer")).to_have_count(1)
    expect(page.locator("#raw-figures")).to_contain_text("nothing that is hidden")
    visitor.assert_clean()


def test_by_keyboard_and_stopped_by_it(shared_demo: Demo, visit: Visit) -> None:
    visitor = visit(shared_demo.url).open("/compare/")
    page = visitor.page
    page.locator("body").press("Tab")
    expect(page.get_by_text("Skip to the scenarios")).to_be_focused()
    page.get_by_text("A text of your own").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    text = "all is well. " * 400
    page.get_by_label("Your own text").fill(text)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#stop")).to_be_enabled(timeout=TAKES_MS)
    expect(page.locator("#raw-text")).not_to_be_empty(timeout=TAKES_MS)
    page.keyboard.press("Escape")
    expect(page.locator("#conversation .state")).to_contain_text("Stopped", timeout=TAKES_MS)
    expect(page.locator("#raw-figures")).not_to_contain_text("–", timeout=TAKES_MS)
    assert len(page.locator("#raw-text").text_content() or "") < len(text)
    visitor.assert_clean()


def test_very_long_and_odd_text_stays_in_its_lane_and_too_much_is_refused(quick_demo: Demo, visit: Visit) -> None:
    visitor = visit(quick_demo.url, viewport=WIDTHS["phone"]).open("/compare/")
    page, title = visitor.page, visitor.page.title()
    page.get_by_text("A text of your own").click()
    box = page.get_by_label("Your own text")
    for text in (ODD, "W" * 12_000):
        box.fill(text)
        page.get_by_role("button", name="Compare it").click()
        until(page, f"document.getElementById('buffered-text').textContent.length === {len(text)}", 60)
        for lane in ("raw", "buffered", "gated"):
            expect(page.locator(f"#{lane}-figures")).to_contain_text("nothing that is hidden", timeout=60_000)
        for lane in ("#raw-text", "#buffered-text", "#conversation [data-visible]"):
            assert page.locator(lane).text_content() == text
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        expect(page.locator("#buffered-wait")).to_be_hidden()
    assert page.title() == title
    assert page.locator(".paper script, .paper img").count() == 0
    box.evaluate("(box) => { box.value = 'W'.repeat(1e6); }")
    page.get_by_role("button", name="Compare it").click()
    expect(page.locator("#notices [data-error]")).to_contain_text("1,000,000 characters; at most 200,000")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert len(box.input_value()) == 1_000_000
    expect(page.locator("#raw-text")).to_have_text("W" * 12_000)
    visitor.assert_clean()


@pytest.mark.parametrize("size", ["desk", pytest.param("phone", marks=pytest.mark.long)])
def test_a_comparison_that_is_cut_off_says_so_and_is_run_again(
    shared_demo: Demo, wire: Wire, visit: Visit, size: str
) -> None:
    visitor = visit(wire.url, viewport=WIDTHS[size]).open("/compare/")
    page = visitor.page
    page.get_by_text("A text of your own").click()
    page.get_by_label("Your own text").fill("all is well. " * 400)
    page.get_by_role("button", name="Compare it").click()
    expect(page.locator("#conversation .answer [data-visible]")).to_contain_text("well", timeout=TAKES_MS)
    wire.cut()
    expect(page.locator("#connection")).to_contain_text("Reconnecting", timeout=TAKES_MS)
    wire.mend()
    visitor.connected()
    said = page.locator("#notices [data-error=cut_off]")
    expect(said).to_contain_text("Run it again")
    for lane in ("raw", "buffered", "gated"):
        expect(page.locator(f"#{lane}-figures")).to_contain_text("cut off")
        expect(page.locator(f"#{lane}-figures")).not_to_contain_text("–")
    expect(page.locator("#buffered-wait")).to_be_hidden()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.get_by_role("button", name="A clean answer").click()
    for lane in ("raw", "buffered", "gated"):
        expect(page.locator(f"#{lane}-figures")).to_contain_text("nothing that is hidden", timeout=TAKES_MS)
        expect(page.locator(f"#{lane}-figures")).not_to_contain_text("cut off")
    expect(said).to_have_count(0)
    expect(page.locator("#conversation .answer")).to_have_text(re.compile(re.escape(SCENARIOS["clean"].answer)))
    before = "select outcome from streaming_auditsession order by started_at desc limit 1 offset 1"
    wait_for("the one that was cut off is over", lambda: shared_demo.rows(before) == [("interrupted",)])


@pytest.mark.parametrize("size", WIDTHS)
def test_the_welcome_page_leads_to_the_three_faces(shared_demo: Demo, visit: Visit, size: str) -> None:
    visitor = visit(shared_demo.url, viewport=WIDTHS[size])
    page = visitor.page
    page.goto(f"{shared_demo.url}/welcome/")
    faces = (("Live demo", "/"), ("Compare", "/compare/"), ("Administration", "/admin/"), ("Audit", "/audit/"))
    for name, where in faces:
        link = page.get_by_role("main").get_by_role("link", name=name).first
        assert (link.get_attribute("href") or "") == where
    expect(page.get_by_role("main")).to_contain_text("demo v1")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    visitor.assert_clean()
