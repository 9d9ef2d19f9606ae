"""The example in docs/writing-a-kind.md is a kind."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from guardrails.findings import AppliesTo
from guardrails.kinds import base
from guardrails.kinds.base import CheckRequest

PAGE = Path(__file__).parents[3] / "docs" / "writing-a-kind.md"


def test_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    base.all_kinds()
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    module: dict[str, object] = {"__name__": "guardrails.kinds.shouting"}
    exec(compile(code, str(PAGE), "exec"), module)
    kind = base._REGISTRY["shouting"]
    (example,) = kind.examples
    built = kind(kind.Config())
    assert all(built.judge(CheckRequest(text, AppliesTo.RESPONSE)).hit for text in example.hits)
    assert not any(built.judge(CheckRequest(text, AppliesTo.RESPONSE)).hit for text in example.passes)
