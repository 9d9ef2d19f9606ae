"""What a tool is, and how tools are found.

Adding a tool is adding one file to this package with one decorated function:

    class Sum(BaseModel):
        a: float
        b: float

    @tool("sum", "Adds two numbers.")
    async def add(given: Sum, context: Context) -> str:
        return str(given.a + given.b)

Its parameters are the fields of the model that its first argument names: they make the JSON schema that a provider is
told and validate what it asks for. No list is edited. A tool may raise; what it raises becomes the call's result.

    ToolError     the tool could not do it; its text is for the model and the reader
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import typing
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel

from streaming.providers.base import ToolSpec

TIME_LIMIT_S = 30.0
Tell = Callable[[float, str], Awaitable[None]]
Given = TypeVar("Given", bound=BaseModel)


class ToolError(Exception):
    """What a tool says when it cannot do what it was asked for."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a tool is lent."""

    tell: Tell

    async def progress(self, progress: float, message: str = "") -> None:
        """Say how far it is, 0..1, and with what."""
        await self.tell(min(1.0, max(0.0, progress)), message)


@dataclass(frozen=True, slots=True)
class Tool:
    """A registered tool. ``run`` takes validated parameters and returns text, or anything that JSON can carry."""

    name: str
    description: str
    parameters: type[BaseModel]
    time_limit_s: float
    run: Callable[[BaseModel, Context], Awaitable[object]]

    @property
    def spec(self) -> ToolSpec:
        """As a model is told of it."""
        schema = self.parameters.model_json_schema()
        schema.setdefault("properties", {})
        return ToolSpec(self.name, self.description, schema)


_tools: dict[str, Tool] = {}


def tool(
    name: str, description: str, *, time_limit_s: float = TIME_LIMIT_S
) -> Callable[[Callable[[Given, Context], Awaitable[object]]], Callable[[Given, Context], Awaitable[object]]]:
    """Register the decorated coroutine function.

    Raises ``TypeError`` for a plain function, which would hold up everybody while it works, and when the first argument
    is no pydantic model.
    """

    def register(run: Callable[[Given, Context], Awaitable[object]]) -> Callable[[Given, Context], Awaitable[object]]:
        if not inspect.iscoroutinefunction(run):
            raise TypeError(f"tool {name!r} must be an async function; work that blocks goes into asyncio.to_thread")
        first = next(iter(inspect.signature(run).parameters))
        model = typing.get_type_hints(run)[first]
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            raise TypeError(f"the first argument of tool {name!r} must be a pydantic model")
        known = _tools.setdefault(name, Tool(name, description, model, time_limit_s, run))  # type: ignore[arg-type]
        if known.run is not run:
            raise TypeError(f"two tools are named {name!r}")
        return run

    return register


@functools.cache
def _load() -> None:
    package = importlib.import_module("streaming.tools")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"streaming.tools.{module.name}")


def all_tools() -> dict[str, Tool]:
    """Every tool by name, in name order."""
    _load()
    return dict(sorted(_tools.items()))


def specs() -> tuple[ToolSpec, ...]:
    """All tools as a model is told of them."""
    return tuple(found.spec for found in all_tools().values())
