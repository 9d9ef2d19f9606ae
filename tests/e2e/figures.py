"""What a page costs: when it is first painted, what it loads, and how long it keeps its reader waiting.

Used by the tests here and by the bench. Time on the processor is read from the browser's own trace and counts the main
thread of the page alone, so that a busy machine does not look like a slow page.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from playwright.sync_api import Browser, BrowserContext, Page

from tests.e2e.visitor import until

PAINT_MS, ASSET_BYTES, FRAME_MS = 1000.0, 200_000, 50.0
LONG = "The number on file is 536-22-8145, so we were told, and it is written down in the book of this house. " * 200
"""An answer of 20 kB with 200 redactions."""

PAINT = "performance.getEntriesByName('first-contentful-paint').map((one) => one.startTime)[0] ?? 0"


def first_paint_ms(browser: Browser, address: str) -> float:
    """Milliseconds from the start of a visit to the first text or picture, in a context that has cached nothing."""
    context = browser.new_context()
    try:
        page = context.new_page()
        page.goto(address)
        until(page, f"({PAINT}) > 0")
        return float(page.evaluate(PAINT))
    finally:
        context.close()


def transferred_bytes(context: BrowserContext, address: str) -> dict[str, int]:
    """Bytes on the wire (headers and compressed bodies) by path, in a first visit that caches nothing; no socket."""
    page = context.new_page()
    session = context.new_cdp_session(page)
    session.send("Network.enable")
    session.send("Network.setCacheDisabled", {"cacheDisabled": True})
    paths: dict[str, str] = {}
    loaded: dict[str, int] = {}
    session.on("Network.responseReceived", lambda told: paths.update({told["requestId"]: told["response"]["url"]}))
    session.on(
        "Network.loadingFinished",
        lambda told: loaded.update({paths.get(told["requestId"], "?"): int(told["encodedDataLength"])}),
    )
    page.goto(address, wait_until="networkidle")
    page.close()
    return loaded


class TraceLost(Exception):
    """The browser's trace lacks a part of what was to be measured."""


def busy_ms(browser: Browser, page: Page, work: Callable[[], object]) -> Sequence[float]:
    """Milliseconds of processor time of each task of the page's main thread while ``work`` runs, longest first.

    Raises ``TraceLost`` where the trace does not span all of the work: it may begin late on a busy machine.
    """
    browser.start_tracing(page=page, categories=["toplevel", "blink.user_timing", "__metadata"])
    try:
        page.evaluate("performance.mark('work begins')")
        work()
        page.evaluate("performance.mark('work ends')")
    finally:
        raw = browser.stop_tracing()
    events = json.loads(raw)["traceEvents"]
    if not {"work begins", "work ends"} <= {one.get("name") for one in events}:
        raise TraceLost(f"{len(events)} events, and not both ends of the work")
    main = {
        (one["pid"], one["tid"])
        for one in events
        if one.get("name") == "thread_name" and one["args"]["name"] == "CrRendererMain"
    }
    tasks = [
        one["tdur"] / 1000
        for one in events
        if one.get("ph") == "X" and "tdur" in one and (one["pid"], one["tid"]) in main and "RunTask" in one["name"]
    ]
    return sorted(tasks, reverse=True)
