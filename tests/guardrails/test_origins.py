"""An origin is kept in the form in which a browser sends it, or refused."""

from __future__ import annotations

import pytest

from guardrails.origins import origin


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("https://shop.example", "https://shop.example"),
        (" https://Shop.Example:443 ", "https://shop.example"),
        ("http://localhost:80", "http://localhost"),
        ("http://localhost:8443", "http://localhost:8443"),
        ("http://[::1]:5173", "http://[::1]:5173"),
        ("chrome-extension://abcdefghijklmnop", "chrome-extension://abcdefghijklmnop"),
    ],
)
def test_it_works(written: str, sent: str) -> None:
    assert origin(written) == sent


@pytest.mark.parametrize(
    "written",
    ["", "*", "null", "shop.example", "https://", "https://shop.example/", "https://shop.example/path", "file:///etc",
     "https://user@shop.example", "https://shop.example?q", "https://shop.example:port", "javascript:alert(1)",
     "https://a.example\nhttps://b.example", "https://bücher.example"],
)  # fmt: skip
def test_what_no_browser_sends_is_refused(written: str) -> None:
    with pytest.raises(ValueError, match="not an origin"):
        origin(written)
