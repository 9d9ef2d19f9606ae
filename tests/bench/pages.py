"""What the demo page costs its reader: first paint, bytes on the wire, and the longest task while text streams in."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from statistics import median

from playwright.sync_api import Page, sync_playwright

from tests.bench.registry import Row, at_most, bench
from tests.e2e.conftest import QUIET, chromium
from tests.e2e.figures import ASSET_BYTES, FRAME_MS, LONG, PAINT_MS, busy_ms, first_paint_ms, transferred_bytes
from tests.e2e.server import demo
from tests.e2e.visitor import Visitor

VISITS = 5
PAGES = ("/", "/compare/", "/welcome/", "/v1/docs")


@bench("pages")
def pages() -> Iterable[Row]:
    """The pages in Chromium on this machine, each visit with nothing cached."""
    path = chromium()
    if path is None:
        raise RuntimeError("no Chromium found (set CHROMIUM to its path)")
    with (
        tempfile.TemporaryDirectory() as folder,
        demo(Path(folder), SLUICEGATE_SCRIPTED_RATE="500") as running,
        sync_playwright() as driver,
    ):
        browser = driver.chromium.launch(executable_path=path, args=QUIET)
        paints = [first_paint_ms(browser, running.url) for _ in range(VISITS)]
        said = f"median of {VISITS}, each in a browser of its own; first {paints[0]:.0f} ms, worst {max(paints):.0f} ms"
        yield at_most("page_paint", "live page, nothing cached: first paint", median(paints), PAINT_MS, "ms", said)
        context = browser.new_context()
        weights = {one: sum(transferred_bytes(context, running.url + one).values()) / 1000 for one in PAGES}
        said = ", ".join(f"{one} {weight:.0f} kB" for one, weight in weights.items())
        most = max(weights.values())
        yield at_most("page_assets", "heaviest page, first visit, compressed", most, ASSET_BYTES / 1000, "kB", said)
        visitor = Visitor(context.new_page(), running.url).open()
        streamed = busy_ms(browser, visitor.page, lambda: visitor.stream_to_end(LONG))
        idle = busy_ms(browser, visitor.page, lambda: _wait(visitor.page, 5))
        said = f"{len(LONG) / 1000:.0f} kB with 200 redactions, {len(streamed)} tasks; idle page {max(idle):.1f} ms"
        yield at_most("page_frames", "… longest task of the page's main thread, CPU", streamed[0], FRAME_MS, "ms", said)
        browser.close()


def _wait(page: Page, seconds: int) -> None:
    page.evaluate("(ms) => new Promise((done) => setTimeout(done, ms))", 1000 * seconds)
