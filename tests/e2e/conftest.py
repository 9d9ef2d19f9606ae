"""Browser fixtures: Chromium, one demo for the tests that do not break it, one of its own for each that does.

The browser lives as long as this package's tests and no longer: the synchronous driver occupies the thread's event
loop, which the asynchronous tests of other packages need.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.e2e.server import Demo, Wire, demo, misbehaving_endpoint
from tests.e2e.visitor import Visitor

QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test here."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.browser)


def chromium() -> str | None:
    """Path of Chromium: ``$CHROMIUM``, or what is installed."""
    named = os.environ.get("CHROMIUM", "")
    return named or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Chromium without a window. Skips where there is none, unless ``REQUIRE_BROWSER=1``."""
    path = chromium()
    if path is None:
        message = "no Chromium found (set CHROMIUM to its path)"
        if os.environ.get("REQUIRE_BROWSER") == "1":
            pytest.fail(message)
        pytest.skip(message)
    with sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=path, args=QUIET)
        yield running
        running.close()


@pytest.fixture(scope="package")
def shared_demo(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """The demo that tests share; they leave it running."""
    with misbehaving_endpoint() as url:
        variables = {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": "sk-test", "OPENAI_MODEL": "test-model, other-model"}
        with demo(tmp_path_factory.mktemp("demo"), **variables) as running:
            yield running


@pytest.fixture(scope="package")
def quick_demo(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """A demo whose scripted model writes much faster than anybody reads: for long answers."""
    with demo(tmp_path_factory.mktemp("quick"), SLUICEGATE_SCRIPTED_RATE="500") as running:
        yield running


@pytest.fixture
def own_demo(browser: Browser, tmp_path: Path) -> Iterator[Demo]:
    """A demo whose parts a test may kill."""
    with demo(tmp_path) as running:
        yield running


Visit = Callable[..., Visitor]


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """``visit(base_url, **context)``: a watched visitor with cookies of their own."""
    with ExitStack() as stack:

        def open_page(base: str, **context: object) -> Visitor:
            fresh = browser.new_context(**context)  # type: ignore[arg-type]
            stack.callback(fresh.close)
            fresh.set_default_timeout(30_000)
            return Visitor(fresh.new_page(), base)

        yield open_page


@pytest.fixture
def visitor(shared_demo: Demo, visit: Visit) -> Visitor:
    """A visitor on the shared demo's page."""
    return visit(shared_demo.url).open()


@pytest.fixture
def wire(shared_demo: Demo) -> Iterator[Wire]:
    """A relay in front of the shared demo that can be cut."""
    relay = Wire(shared_demo.port)
    yield relay
    relay.close()
