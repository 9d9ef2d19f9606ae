"""Writing that runs from right to left runs so wherever it stands, and turns nothing round that stands beside it."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Locator, WebSocketRoute, expect

from tests.e2e.conftest import Visit
from tests.e2e.server import Demo
from tests.e2e.test_audit_pages import TEXT
from tests.e2e.visitor import Visitor

HEBREW = "שלום לכולם, זה טקסט קצר."
OVERRIDE = "\u202ethis is turned round and never turned back"

COPIED = """(one) => {
  getSelection().selectAllChildren(one);
  return getSelection().toString();
}"""
PLACES = """(answer) => {
  const hold = answer.querySelector(".shimmer");
  hold.textContent = "\\u00a0".repeat(7);
  const range = document.createRange();
  range.selectNodeContents(answer.querySelector("[data-visible]"));
  const text = range.getBoundingClientRect(), held = hold.getBoundingClientRect();
  hold.textContent = "";
  return [text.left, text.right, held.left, held.right];
}"""


def direction(one: Locator) -> str:
    return str(one.evaluate("(one) => getComputedStyle(one).direction"))


def test_it_works(visitor: Visitor) -> None:
    page = visitor.page
    visitor.guard(HEBREW)
    visitor.over("allowed")
    assert direction(page.locator(".answer [data-visible]")) == "rtl"
    _, right, _, held_right = page.locator(".answer").evaluate(PLACES)
    assert held_right < right, "what is held goes on where the text does: on its left"
    page.get_by_role("button", name="Ask", exact=True).click()
    visitor.ask(HEBREW)
    expect(page.locator(".answer")).to_have_count(2)
    visitor.over("allowed")
    assert direction(page.locator(".prompt .text").last) == "rtl"
    assert direction(page.locator(".answer .foot").last) == "ltr"
    page.reload()
    visitor.connected()
    assert direction(page.locator(".answer [data-visible]").first) == "rtl"
    assert direction(page.locator(".prompt .text").last) == "rtl"
    assert page.locator(".answer [data-visible]").first.evaluate(COPIED) == HEBREW
    visitor.assert_clean()


def test_an_override_that_is_never_taken_back_turns_nothing_round_beside_the_text(visitor: Visitor) -> None:
    page = visitor.page
    visitor.guard(OVERRIDE)
    visitor.over("allowed")
    _, right, held_left, _ = page.locator(".answer").evaluate(PLACES)
    assert held_left >= right - 1, "what is held stands behind the text"
    assert page.locator(".answer [data-visible]").evaluate(COPIED) == OVERRIDE
    visitor.assert_clean()


def test_the_comparison_reads_from_right_to_left_in_all_three_lanes(shared_demo: Demo, visit: Visit) -> None:
    page = visit(shared_demo.url).open("/compare/").page
    page.get_by_text("A text of your own").click()
    page.get_by_label("Your own text").fill(f"{HEBREW} ann@example.org")
    assert direction(page.get_by_label("Your own text")) == "rtl"
    page.get_by_role("button", name="Compare it").click()
    for lane in ("raw", "buffered", "gated"):
        expect(page.locator(f"#{lane}-figures")).not_to_contain_text("–", timeout=30_000)
    for text in ("#raw-text", "#buffered-text", "#conversation [data-visible]"):
        assert direction(page.locator(text)) == "rtl"


def test_a_tool_that_answers_in_hebrew(shared_demo: Demo, visit: Visit) -> None:
    visitor = visit(shared_demo.url)
    page = visitor.page

    def in_hebrew(socket: WebSocketRoute) -> None:
        server = socket.connect_to_server()
        server.on_message(lambda frame: socket.send(re.sub("(<pre[^>]*>)5280", rf"\1{HEBREW}", str(frame))))

    page.route_web_socket("**/ws/chat/", in_hebrew)
    visitor.open()
    visitor.scenario("tools")
    result = page.locator(".tool-result pre").first
    expect(result).to_contain_text(HEBREW)
    assert direction(result) == "rtl"
    visitor.over("allowed")
    assert direction(page.locator(".answer [data-visible]")) == "ltr"
    assert direction(page.locator(".tool-arguments").first) == "ltr"


@pytest.mark.long
def test_a_note_in_hebrew_in_the_admin(shared_demo: Demo, visit: Visit) -> None:
    reader = visit(shared_demo.url).open()
    reader.guard(f"{HEBREW} {TEXT}")
    reader.over("redacted")
    reader.state("COMPLETE")
    page = visit(shared_demo.url).page
    (row,) = shared_demo.rows("select id, lower(hex(session_id)) from streaming_finding order by id desc limit 1")
    page.goto(f"{shared_demo.url}/admin/streaming/finding/{row[0]}/review/")
    page.locator("input[name=username]").fill(shared_demo.info["admin_user"])
    page.locator("input[name=password]").fill(shared_demo.info["admin_password"])
    page.keyboard.press("Enter")
    page.get_by_label("True positive").check()
    note = page.get_by_label("Note (optional)")
    note.fill(HEBREW)
    assert direction(note) == "rtl"
    page.get_by_role("button", name="Store the verdict").click()
    page.goto(f"{shared_demo.url}/admin/streaming/finding/{row[0]}/review/")
    said = page.locator(".people-note").first
    expect(said).to_have_text(HEBREW)
    assert direction(said) == "rtl"
