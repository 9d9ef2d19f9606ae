"""Tools on the demo page in a real browser: cards that fill while they run, text that is one answer over all rounds."""

from __future__ import annotations

import re

from playwright.sync_api import expect

from tests.e2e.visitor import Visitor

ANSWER = (
    "Let me work that out. While it fills, I count along. "
    "The chamber holds 5280 cubic metres of water. Filling it took its time: I counted to 5 meanwhile."
)


def test_it_works(visitor: Visitor) -> None:
    visitor.scenario("tools")
    cards = visitor.page.locator(".answer section.tool")
    expect(cards.nth(1)).to_contain_text(re.compile(r"step \d of 5"))
    expect(cards.nth(0)).to_contain_text("5280")  # the quick one does not wait for the slow one
    visitor.over("allowed")
    expect(cards).to_have_count(2)
    expect(cards.nth(1)).to_contain_text("counted to 5")
    expect(cards.nth(1).locator("progress")).to_have_count(0)
    visitor.assert_grew_to(ANSWER)
    visitor.assert_clean()


def test_cards_are_there_again_after_a_reload(visitor: Visitor) -> None:
    visitor.scenario("tool_error")
    visitor.over("allowed")
    cards = visitor.page.locator(".answer section.tool")
    expect(cards.locator(".tool-error")).to_have_count(2)
    shown = cards.all_inner_texts()
    visitor.page.reload()
    visitor.connected()
    expect(cards).to_have_count(2)
    assert cards.all_inner_texts() == shown
    visitor.assert_clean()
