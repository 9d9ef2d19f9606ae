"""Both installations that a release must run on; each is started once for the tests of a file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.stack.servers import Stack, stack


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def servers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Two web processes on one socket, two workers, one Valkey."""
    with stack(tmp_path_factory.mktemp(request.param), request.param) as running:
        yield running
