"""The conversation follows its end, and never pulls a reader back who has gone up: by keys, by wheel, by finger."""

from __future__ import annotations

import pytest
from playwright.sync_api import Locator, expect

from tests.e2e.conftest import Visit
from tests.e2e.server import Demo
from tests.e2e.test_compare_page import WIDTHS
from tests.e2e.visitor import Visitor, until

LINES = "one line and another\n" * 1_400


def streaming(visitor: Visitor) -> Locator:
    """A long answer is under way and higher than its box."""
    visitor.guard(LINES)
    until(visitor.page, "document.getElementById('scroller').scrollTop > 600")
    return visitor.page.locator("#scroller")


def top(box: Locator) -> float:
    return float(box.evaluate("(box) => box.scrollTop"))


RESTED = """(box) => new Promise((done) => {
  let last = -1, same = 0;
  const look = () => {
    same = box.scrollTop === last ? same + 1 : 0;
    last = box.scrollTop;
    if (same > 10) done(last); else requestAnimationFrame(look);
  };
  look();
})"""


def rested(box: Locator) -> float:
    """Where it stands once what a hand began has come to rest: for ten frames it has not moved."""
    return float(box.evaluate(RESTED))


def test_it_works(quick_demo: Demo, visit: Visit) -> None:
    visitor = visit(quick_demo.url).open()
    box = streaming(visitor)
    before = top(box)
    visitor.grown(len(visitor.answer) + 400)
    assert top(box) > before
    expect(visitor.page.locator("#jump")).to_be_hidden()


def test_who_stops_an_answer_reads_on_where_they_are(quick_demo: Demo, visit: Visit) -> None:
    visitor = visit(quick_demo.url, viewport=WIDTHS["desk"]).open()
    page, box = visitor.page, streaming(visitor)
    box.hover()
    page.mouse.wheel(0, -300)
    expect(page.locator("#jump")).to_be_visible()
    at = rested(box)
    page.keyboard.press("Escape")
    visitor.over("interrupted", timeout_s=60)
    visitor.state("COMPLETE", timeout_s=60)
    assert top(box) == at
    expect(page.locator("#jump")).to_be_visible()
    visitor.guard("And on it goes.")
    expect(page.locator(".answer")).to_have_count(2)
    until(
        page, "(box => box.scrollHeight - box.scrollTop - box.clientHeight < 48)(document.getElementById('scroller'))"
    )
    visitor.assert_clean()


def test_a_finger_leaves_the_end_however_slowly_it_moves(quick_demo: Demo, visit: Visit) -> None:
    visitor = visit(quick_demo.url, viewport=WIDTHS["phone"], has_touch=True, is_mobile=True).open()
    page, box = visitor.page, streaming(visitor)
    place = box.bounding_box()
    assert place is not None
    x, y = place["x"] + place["width"] / 2, place["y"] + place["height"] / 3
    finger = page.context.new_cdp_session(page)

    def touch(kind: str, *at: dict[str, float]) -> None:
        finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": list(at)})

    touch("touchStart", {"x": x, "y": y})
    for down in range(1, 41):
        touch("touchMove", {"x": x, "y": y + 4 * down})
    touch("touchEnd")
    expect(page.locator("#jump")).to_be_visible()
    at, length = rested(box), len(visitor.answer)
    assert at > 0
    visitor.grown(length + 400)
    assert top(box) == at
    page.get_by_role("button", name="Jump to the latest").tap()
    expect(page.locator("#jump")).to_be_hidden()
    until(
        page, "(box => box.scrollHeight - box.scrollTop - box.clientHeight < 48)(document.getElementById('scroller'))"
    )
    visitor.assert_clean()


@pytest.mark.long
def test_a_scroll_bar_that_is_held_is_not_torn_away(quick_demo: Demo, visit: Visit) -> None:
    visitor = visit(quick_demo.url, viewport=WIDTHS["desk"]).open()
    page, box = visitor.page, streaming(visitor)
    place = box.bounding_box()
    assert place is not None
    page.mouse.move(place["x"] + place["width"] - 40, place["y"] + 40)
    page.mouse.down()  # held down anywhere in the box: a selection that is being made must not run away either
    at, length = top(box), len(visitor.answer)
    visitor.grown(length + 400)
    assert top(box) == at
    page.mouse.up()
    visitor.grown(len(visitor.answer) + 400)
    assert top(box) > at
