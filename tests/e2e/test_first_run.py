"""The first minute: the terminal says where to look, an empty live page says where everything else is."""

from __future__ import annotations

import re

from playwright.sync_api import expect

from tests.e2e.conftest import Visit
from tests.e2e.server import Demo


def test_it_works(shared_demo: Demo, visit: Visit) -> None:
    assert re.search(rf"what there is +{re.escape(shared_demo.url)}/welcome/", shared_demo.log)
    visitor = visit(shared_demo.url).open()
    page = visitor.page
    page.get_by_role("link", name="What this is, and where its other faces are").click()
    expect(page).to_have_url(f"{shared_demo.url}/welcome/")
    for name, place in {"Live demo": "/", "Administration": "/admin/", "Audit review": "/audit/"}.items():
        link = page.get_by_role("heading", name=name).get_by_role("link")
        expect(link).to_have_attribute("href", place)
    page.get_by_role("heading", name="Live demo").get_by_role("link").click()
    visitor.connected()
    visitor.scenario("clean")
    visitor.over("allowed")
    expect(page.get_by_role("link", name="What this is, and where its other faces are")).to_be_hidden()
    visitor.assert_clean()
