"""The browser origins that an API key names.

Exists because an origin is compared with what a browser sends, character by character: one that is written in a form
that no browser sends would silently let nobody in. Form, command and service accept the same ones.
"""

from __future__ import annotations

import re

_DEFAULT_PORT = {"http": ":80", "https": ":443"}
_FORM = re.compile(
    r"(?P<scheme>https?|chrome-extension|moz-extension)://(?P<host>[a-z0-9._-]+|\[[0-9a-f:.]+\])(?P<port>:\d{1,5})?"
)


def origin(written: str) -> str:
    """An origin as browsers send it: lower case, without the default port. Raises ``ValueError``."""
    found = _FORM.fullmatch(written.strip().lower())
    if found is None:
        raise ValueError(f"“{written}” is not an origin; write scheme and host alone, such as https://shop.example")
    port = found["port"] or ""
    return f"{found['scheme']}://{found['host']}" + ("" if port == _DEFAULT_PORT.get(found["scheme"]) else port)
