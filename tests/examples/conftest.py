"""One real installation for all examples: they are run as a reader would run them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.stack.servers import Stack, stack


@pytest.fixture(scope="package")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Two web processes on one socket, two workers, one Valkey, on SQLite."""
    with stack(tmp_path_factory.mktemp("examples"), "sqlite") as running:
        yield running
