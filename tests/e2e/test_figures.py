"""The page is there at once, weighs little and stays smooth while a long answer full of redactions streams in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from statistics import median

import pytest
from playwright.sync_api import Browser, Page

from tests.e2e.conftest import Visit
from tests.e2e.figures import (
    ASSET_BYTES,
    FRAME_MS,
    LONG,
    PAINT_MS,
    TraceLost,
    busy_ms,
    first_paint_ms,
    transferred_bytes,
)
from tests.e2e.server import Demo
from tests.e2e.test_audit_pages import guard, sign_in

TRIES = 3
VISITS = 5


def test_it_works(shared_demo: Demo, browser: Browser) -> None:
    """The middle one of five visits, each with nothing cached; once more where others keep the machine busy."""
    rounds: list[list[float]] = []
    while len(rounds) < TRIES and not any(0 < median(one) < PAINT_MS for one in rounds):
        rounds.append([first_paint_ms(browser, shared_demo.url) for _ in range(VISITS)])
    assert 0 < median(rounds[-1]) < PAINT_MS, rounds


@pytest.mark.parametrize("address", ["/", "/compare/", "/welcome/", "/v1/docs"])
def test_a_first_visit_transfers_little(shared_demo: Demo, visit: Visit, address: str) -> None:
    loaded = transferred_bytes(visit(shared_demo.url).page.context, shared_demo.url + address)
    assert any(path.endswith("sluicegate.css") for path in loaded)
    assert 10_000 < sum(loaded.values()) < ASSET_BYTES, loaded


def test_the_audit_pages_transfer_little(shared_demo: Demo, visit: Visit) -> None:
    guard(shared_demo, visit)
    page = sign_in(visit(shared_demo.url), shared_demo)
    session = str(page.locator("tr[data-session]").first.get_attribute("data-session"))
    for path in ("", f"sessions/{session}/", "review/", "precision/", "chain/"):
        loaded = transferred_bytes(page.context, f"{shared_demo.url}/audit/{path}")
        assert any(one.endswith("audit.css") for one in loaded)
        assert 10_000 < sum(loaded.values()) < ASSET_BYTES, loaded


def whole_trace(browser: Browser, page: Page, work: Callable[[], object]) -> Sequence[float]:
    """As ``busy_ms``; once more where the browser lost the trace."""
    for _ in range(TRIES - 1):
        with suppress(TraceLost):
            return busy_ms(browser, page, work)
    return busy_ms(browser, page, work)


def test_a_long_answer_with_200_redactions_never_keeps_the_page_busy_for_50_ms(
    quick_demo: Demo, browser: Browser, visit: Visit
) -> None:
    """Cores are shared, and their caches: the best of three answers counts."""
    assert len(LONG) > 20_000
    longest: list[float] = []
    while len(longest) < TRIES and not any(one < FRAME_MS for one in longest):
        visitor = visit(quick_demo.url).open()
        tasks = whole_trace(browser, visitor.page, partial(visitor.stream_to_end, LONG))
        chips = visitor.page.locator(".answer [data-chip]").count()
        assert chips > 0
        assert chips % 200 == 0, chips
        assert len(tasks) > 1_000, "the trace holds the page's tasks"
        longest.append(tasks[0])
    assert min(longest) < FRAME_MS, longest


def test_control_a_page_that_computes_for_long_is_noticed(quick_demo: Demo, browser: Browser, visit: Visit) -> None:
    visitor = visit(quick_demo.url).open()
    busy = "new Promise((done) => setTimeout(() => { for (let n = 0; n < 3e8; n++); done(); }))"
    tasks = whole_trace(browser, visitor.page, lambda: visitor.page.evaluate(busy))
    assert tasks[0] > FRAME_MS
