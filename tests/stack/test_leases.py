"""On PostgreSQL, where writers do not wait for each other, a guardrail has no more checks under way than it may."""

from __future__ import annotations

from pathlib import Path

import pytest

from streaming.conf import conf
from tests.stack.runs import begin, end, installed


@pytest.mark.long
@pytest.mark.timeout(600)
def test_it_works(tmp_path: Path) -> None:
    with installed(tmp_path, "postgresql") as env:
        end(begin(env, "prepare"))
        assert end(begin(env, "leases", 20, conf().checks_at_once + 8)) == [conf().checks_at_once] * 20
