"""The tools themselves, and what makes one."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

import streaming.tools
from streaming.tools import base
from streaming.tools.base import Context, ToolError, all_tools, specs, tool


async def call(name: str, **given: object) -> tuple[str, list[tuple[float, str]]]:
    told: list[tuple[float, str]] = []

    async def tell(progress: float, message: str) -> None:
        told.append((progress, message))

    found = all_tools()[name]
    return str(await found.run(found.parameters.model_validate(given), Context(tell))), told


async def test_it_works() -> None:
    assert list(all_tools()) == ["calculator", "current_time", "search_docs", "slow_count"]
    assert await call("calculator", expression="80 * 12 * 5.5") == ("5280", [])


@pytest.mark.parametrize(
    ("formula", "value"),
    [("1+2*3", "7"), ("(1+2)*3", "9"), ("-2**2", "-4"), ("2**10", "1024"), ("7/2", "3.5"), ("7//2", "3"), ("7%4", "3"),
     ("sqrt(2)", "1.41421356237"), ("max(1, 2, 3)", "3"), ("pi", "3.14159265359"), ("0.1+0.2", "0.3"), ("+5", "5"),
     ("round(7/2)", "4"), ("round(2.5674, 2)", "2.57"), ("round(1234, -2)", "1200"), ("2**1000 // 2**999", "2")],
)  # fmt: skip
async def test_the_calculator_knows_its_arithmetic(formula: str, value: str) -> None:
    assert (await call("calculator", expression=formula))[0] == value


@pytest.mark.parametrize(
    "formula",
    ["7 / 0", "2 ** 10000", "9**9**9**9", "1e200 ** 2", "__import__('os').system('true')", "open('x')", "(1).real",
     "[1]", "'a' * 10", "x", "lambda: 1", "1 if 1 else 2", "True", "sqrt(-1)", "sqrt(x=1)", "1 +", "10 ** 900 ** 3",
     "(-8) ** 0.5", "log(0)", "round(1, 2, 3)", "(" * 240 + "1" + ")" * 240, "round(1.5, 0.5)"],
)  # fmt: skip
async def test_what_is_no_arithmetic_is_an_error_in_words(formula: str) -> None:
    with pytest.raises(ToolError, match="cannot be worked out"):
        await call("calculator", expression=formula)


HUGE = "*".join(["((10**99)**99)"] * 33)
"""A product of 300,000 digits, where every power is within its own limit."""


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "formula",
    ["round(5, -999999999)", "round(5, 999999999)", "round(5.5, -999999999)", HUGE, "9**999 ** 9",
     f"{HUGE} % 7", f"({HUGE[:479]}) // (7**999)", "(" * 9 + "9**99" + ")**99" * 9],
    ids=["digits before the point", "digits behind it", "of a fraction", "product", "tower", "remainder", "division",
         "powers of powers"],
)  # fmt: skip
async def test_no_formula_computes_for_long(formula: str) -> None:
    """Whole numbers are bounded at every step: the event loop stands still while one is worked out."""
    began = time.process_time()
    with pytest.raises(ToolError, match=r"too many digits|places|powers go up"):
        await call("calculator", expression=formula)
    assert time.process_time() - began < 1, "a few thousand digits take no time on any machine"


async def test_the_time_is_told_in_any_zone_and_no_other() -> None:
    assert "UTC" in (await call("current_time"))[0]
    assert (await call("current_time", time_zone="Europe/Berlin"))[0].endswith(("CET", "CEST"))
    for zone in ("Nowhere/Land", "../../etc/passwd", "/etc/passwd", ""):
        with pytest.raises(ToolError, match="no time zone"):
            await call("current_time", time_zone=zone)


async def test_the_documentation_is_searched() -> None:
    found, _ = await call("search_docs", query="hash chain audit log verify", results=2)
    assert "[audit.md]" in found
    with pytest.raises(ToolError, match="nothing"):
        await call("search_docs", query="xyzzy qwertz")


async def test_the_slow_one_tells_how_far_it_is() -> None:
    assert await call("slow_count", steps=3, seconds=0) == (
        "counted to 3", [(1 / 3, "step 1 of 3"), (2 / 3, "step 2 of 3"), (1.0, "step 3 of 3")]
    )  # fmt: skip


def test_every_tool_is_told_as_a_schema_of_type_object() -> None:
    for spec in specs():
        assert spec.parameters["type"] == "object"
        assert isinstance(spec.parameters["properties"], dict)
        assert spec.description.endswith(".")


DOCUMENTED = re.search(
    r"## Adding one.*?```python\n(.*?)```", (Path(base.__file__).parents[2] / "docs/tools.md").read_text(), re.DOTALL
)


@pytest.fixture
def documented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The example of the documentation as a file beside the tools that come with it, and nobody has looked yet."""
    assert DOCUMENTED is not None
    (tmp_path / "order_state_example.py").write_text(DOCUMENTED[1])
    monkeypatch.setattr(base, "_tools", dict(base._tools))
    monkeypatch.setattr(streaming.tools, "__path__", [*streaming.tools.__path__, str(tmp_path)])
    base._load.cache_clear()
    yield
    sys.modules.pop("streaming.tools.order_state_example", None)
    base._load.cache_clear()


@pytest.mark.usefixtures("documented")
async def test_the_example_of_the_documentation_is_one_file_and_no_list_is_edited() -> None:
    assert list(all_tools()) == ["calculator", "current_time", "order_state", "search_docs", "slow_count"]
    assert await call("order_state", number=7) == ("on its way", [(0.5, "asking the warehouse")])
    with pytest.raises(ToolError, match="there is no order 100000"):
        await call("order_state", number=100_000)
    (spec,) = (spec for spec in specs() if spec.name == "order_state")
    assert spec.parameters["required"] == ["number"]
    assert all_tools()["order_state"].time_limit_s == 5


def test_registering_a_tool_is_one_decorated_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_tools", dict(base._tools))

    class Sum(BaseModel):
        a: float
        b: float

    globals()["Sum"] = Sum

    @tool("sum", "Adds two numbers.")
    async def add(given: Sum, context: Context) -> str:
        return str(given.a + given.b)

    assert all_tools()["sum"].spec.parameters["required"] == ["a", "b"]
    with pytest.raises(TypeError, match="two tools"):

        @tool("sum", "Again.")
        async def again(given: Sum, context: Context) -> str:
            return ""

    with pytest.raises(TypeError, match="pydantic"):

        @tool("odd", "Odd.")  # type: ignore[type-var]
        async def odd(given: int, context: Context) -> str:
            return ""


def test_a_plain_function_is_refused_when_it_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_tools", {})

    def plain(given: BaseModel, context: Context) -> str:
        return "at once"

    with pytest.raises(TypeError, match="'plain' must be an async function"):
        tool("plain", "For a test.")(plain)  # type: ignore[type-var, arg-type]
    assert base._tools == {}
