"""One server for all tests of a file's process: starting one takes seconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.streaming.gateway.served import OPENED, Gateway, gateway


@pytest.fixture(scope="session")
def served(valkey_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateway(tmp_path_factory.mktemp("gateway"), valkey_url) as found:
        yield found


@pytest.fixture(autouse=True)
def clients_closed() -> Iterator[None]:
    yield
    while OPENED:
        OPENED.pop()()
