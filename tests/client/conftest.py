"""Fixtures of the browser library's tests: Chromium, and a server of pages, rules and streams that a test commands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from tests.client.pages import Pages, pages_server
from tests.e2e.conftest import browser

__all__ = ["browser"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that asks for a browser."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and {"browser", "tab"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.browser)


@pytest.fixture
def pages() -> Iterator[Pages]:
    """A server with the library, a blank page, and answers that the test writes."""
    with pages_server() as running:
        yield running


@pytest.fixture
def tab(browser: Browser, pages: Pages) -> Iterator[Page]:
    """A blank page of that server; what the page reports as an error fails the test."""
    context = browser.new_context()
    fresh = context.new_page()
    fresh.set_default_timeout(60_000)
    errors: list[str] = []
    fresh.on("pageerror", lambda error: errors.append(str(error)))
    fresh.goto(f"{pages.url}/blank")
    yield fresh
    context.close()
    assert not errors
