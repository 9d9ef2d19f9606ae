"""What the live page and the comparison show when there is nothing, not yet, no more or too much: and that they stay
usable, on a wide screen and on a phone, on a line that is slow or gone."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from streaming.providers.scripted import SCENARIOS
from tests.e2e.conftest import Visit
from tests.e2e.expected import visible
from tests.e2e.server import Demo, Wire
from tests.e2e.test_compare_page import WIDTHS
from tests.e2e.test_demo_page import SECRETS
from tests.e2e.test_following import rested
from tests.e2e.visitor import LOST, Visitor, until

SLOW = 25_000.0
"""Bytes per second: half of what a slow third-generation phone line carries."""

LONG = {
    "one word": "W" * 30_000,
    "right to left": "\u202eסוד\u202c " + "שלום לכולם, זה טקסט ארוך מאוד. " * 60 + "\u2067א\u2069",
    "zero width": "\u200b\u200d\ufeff\u2060" * 2_000 + "end",
    "markup": "<script>document.title='!'</script><img src=x onerror=\"document.title='!'\">" * 30,
    "high marks": "Z\u0351\u036b\u0343\u036a" * 300,
}

AT_END = "(box) => box.scrollHeight - box.scrollTop - box.clientHeight < 48"


def fits(visitor: Visitor) -> bool:
    return bool(visitor.page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


@pytest.mark.parametrize("size", WIDTHS)
def test_it_works(shared_demo: Demo, visit: Visit, size: str) -> None:
    visitor = visit(shared_demo.url, viewport=WIDTHS[size]).open()
    expect(visitor.page.get_by_role("heading", name="Watch the gate think.")).to_be_visible()
    expect(visitor.page.locator("#timeline")).to_contain_text("appear here when it has ended")
    assert fits(visitor)
    visitor.scenario("clean")
    expect(visitor.page.get_by_role("heading", name="Watch the gate think.")).to_be_hidden()
    visitor.over("allowed")
    assert fits(visitor)
    visitor.assert_clean()


@pytest.mark.parametrize("size", ["desk", pytest.param("phone", marks=pytest.mark.long)])
@pytest.mark.parametrize("kind", LONG)
def test_very_long_and_odd_text_stays_in_its_place(quick_demo: Demo, visit: Visit, size: str, kind: str) -> None:
    visitor = visit(quick_demo.url, viewport=WIDTHS[size]).open()
    title = visitor.page.title()
    visitor.guard(LONG[kind])
    visitor.over("allowed", timeout_s=120)
    assert visitor.answer == LONG[kind]
    assert fits(visitor)
    assert visitor.page.title() == title
    assert visitor.page.locator(".answer script, .answer img").count() == 0
    expect(visitor.page.get_by_role("button", name="Stream it")).to_be_in_viewport(ratio=1)
    visitor.guard("And on it goes.")
    expect(visitor.page.locator(".answer")).to_have_count(2)
    visitor.over("allowed")
    visitor.assert_clean()


@pytest.mark.long
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("size", WIDTHS)
def test_the_longest_word_that_is_taken_streams_and_the_page_stays_usable(
    quick_demo: Demo, visit: Visit, size: str
) -> None:
    visitor = visit(quick_demo.url, viewport=WIDTHS[size]).open()
    visitor.page.set_default_timeout(300_000)
    visitor.stream_to_end("W" * 200_000, timeout_s=900)
    assert visitor.answer == "W" * 200_000
    assert fits(visitor)
    visitor.guard("And on it goes.")
    expect(visitor.page.locator(".answer")).to_have_count(2, timeout=120_000)
    visitor.over("allowed", timeout_s=120)
    visitor.assert_clean()


def test_a_million_characters_are_refused_by_name_and_not_lost(visitor: Visitor) -> None:
    page = visitor.page
    page.get_by_role("button", name="Guard my own text").click()
    box = page.get_by_label("Your own text")
    box.evaluate("(box) => { box.value = 'W'.repeat(1e6); }")
    page.get_by_role("button", name="Stream it").click()
    expect(page.locator("#notices [data-error]")).to_contain_text(re.compile(r"1,000,000 characters; at most 200,000"))
    assert fits(visitor)
    assert len(box.input_value()) == 1_000_000
    box.fill("A short one.")
    page.get_by_role("button", name="Stream it").click()
    visitor.over("allowed")
    visitor.assert_clean()


@pytest.mark.parametrize("size", WIDTHS)
def test_the_page_follows_until_the_reader_scrolls_up(quick_demo: Demo, visit: Visit, size: str) -> None:
    visitor = visit(quick_demo.url, viewport=WIDTHS[size]).open()
    page, box = visitor.page, visitor.page.locator("#scroller")
    jump = page.get_by_role("button", name="Jump to the latest")
    visitor.guard("one line and another\n" * 1_400)
    until(page, "document.getElementById('scroller').scrollTop > 300")
    assert page.locator("#jump").is_hidden()
    box.hover()
    page.mouse.wheel(0, -250)
    expect(jump).to_be_visible()
    at, length = rested(box), len(visitor.answer)
    visitor.grown(length + 400)
    assert box.evaluate("(box) => box.scrollTop") == at, "text that arrives must not move what is read"
    jump.click()
    expect(jump).to_be_hidden()
    length = len(visitor.answer)
    visitor.grown(length + 400)
    until(page, f"({AT_END})(document.getElementById('scroller'))")
    assert jump.is_hidden()
    page.keyboard.press("Escape")
    visitor.over("interrupted", timeout_s=60)
    visitor.assert_clean()


@pytest.mark.parametrize("address", ["/", "/compare/"])
def test_offline_is_said_and_over_when_the_network_is_back(shared_demo: Demo, visit: Visit, address: str) -> None:
    visitor = visit(shared_demo.url).open(address)
    page = visitor.page
    page.locator("[data-scenario=clean]").click()
    visitor.over("allowed", timeout_s=60)
    before = visitor.answer
    page.context.set_offline(True)
    expect(page.locator("#connection")).to_contain_text("You are offline")
    assert visitor.answer == before
    page.context.set_offline(False)
    visitor.connected()
    expect(page.locator("#connection")).to_have_text("")
    page.locator("[data-scenario=pii]").click()
    visitor.over("redacted", timeout_s=60)
    visitor.assert_clean(*LOST)


def test_a_server_that_is_gone_is_said_and_what_was_sent_meanwhile_goes_out_later(wire: Wire, visit: Visit) -> None:
    visitor = visit(wire.url).open()
    wire.cut()
    expect(visitor.page.locator("#connection")).to_contain_text("Reconnecting")
    visitor.ask("Said into the void.")
    wire.mend()
    visitor.connected()
    visitor.over("allowed")
    assert "Said into the void." in visitor.conversation
    assert visitor.page.locator(".prompt").count() == 1
    visitor.assert_clean(*LOST)


def test_a_page_whose_socket_takes_its_time_says_that_it_connects(shared_demo: Demo, visit: Visit) -> None:
    visitor = visit(shared_demo.url)
    page = visitor.page
    page.add_init_script("""
      const Real = window.WebSocket;
      const real = new Promise((go) => { window.__go = go; });
      window.WebSocket = function () {
        const fake = new EventTarget();
        fake.readyState = 0;
        fake.send = () => {};
        fake.close = () => {};
        real.then(() => fake.dispatchEvent(new CloseEvent("close", { code: 1006 })));
        real.then(() => { fake.readyState = 3; window.WebSocket = Real; fake.onclose?.({ code: 1006 }); });
        return fake;
      };
      Object.assign(window.WebSocket, { CONNECTING: 0, OPEN: 1, CLOSING: 2, CLOSED: 3 });
    """)
    page.goto(shared_demo.url)
    expect(page.locator("#connection")).to_contain_text("Connecting…")
    page.evaluate("window.__go()")
    visitor.connected()
    expect(page.locator("#connection")).to_have_text("")
    visitor.assert_clean()


@pytest.fixture
def slow_line(shared_demo: Demo) -> Iterator[Wire]:
    """The shared demo at the end of a slow line."""
    relay = Wire(shared_demo.port, SLOW)
    yield relay
    relay.close()


def test_on_a_slow_line_nothing_leaks_and_all_arrives(slow_line: Wire, visit: Visit) -> None:
    began = time.monotonic()
    visitor = visit(slow_line.url, viewport=WIDTHS["phone"])
    visitor.page.set_default_timeout(120_000)
    visitor.open()
    visitor.scenario("pii")
    visitor.over("redacted", timeout_s=120)
    visitor.state("COMPLETE", timeout_s=120)
    took = time.monotonic() - began
    assert slow_line.carried > 80_000
    assert took >= slow_line.carried / SLOW
    visitor.assert_grew_to(visible(SCENARIOS["pii"].answer))
    visitor.assert_never_seen(*SECRETS["pii"])
    visitor.assert_clean()
