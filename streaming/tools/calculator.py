"""Arithmetic: the model writes a formula, nothing is ever evaluated but numbers and operators.

Protects the event loop, in which it computes: no whole number in a formula, on the way to its value either, is longer
than what takes no time.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable

from pydantic import BaseModel, Field

from streaming.tools.base import Context, ToolError, tool

MAX_POWER = 1_000
"""Digits grow with powers; a number nobody can read helps nobody."""
MAX_BITS = 10_000
"""Of a whole number: some 3,000 digits."""
MAX_PLACES = 1_000
"""To round to, before or behind the point. Python writes out a power of ten with as many digits."""

_BINARY: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


def _round(number: float, places: int = 0) -> float:
    if abs(places) > MAX_PLACES:
        raise ValueError(f"numbers are rounded to at most {MAX_PLACES} places")
    return round(number, places) if places else round(number)


_FUNCTIONS: dict[str, Callable[..., float]] = {
    "sqrt": math.sqrt, "abs": abs, "round": _round, "floor": math.floor, "ceil": math.ceil, "sin": math.sin,
    "cos": math.cos, "tan": math.tan, "log": math.log, "exp": math.exp, "min": min, "max": max,
}  # fmt: skip
_NAMES = {"pi": math.pi, "e": math.e}


class Formula(BaseModel):
    """What is to be worked out."""

    expression: str = Field(min_length=1, max_length=500, description="A formula such as (3 + 4) * sqrt(2).")


@tool("calculator", "Works out a formula: + - * / // % **, brackets, sqrt, abs, round, min, max, log, pi and the like.")
async def calculate(given: Formula, context: Context) -> str:
    """The value of the formula."""
    try:
        tree = ast.parse(given.expression.strip(), mode="eval")
        value = _value(tree.body)
        return f"{value:.12g}" if isinstance(value, float) else str(value)
    except (SyntaxError, ValueError, TypeError, ArithmeticError, RecursionError, MemoryError) as error:
        raise ToolError(f"the formula cannot be worked out: {error}") from None


def _value(node: ast.expr) -> float:
    """The value of a part of the formula: what is worked out with it is never longer than it may be."""
    value = _worked_out(node)
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise ValueError("a number in it has too many digits")
    return value


def _worked_out(node: ast.expr) -> float:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return number
        case ast.Name(id=name) if name in _NAMES:
            return _NAMES[name]
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -_value(inner)
        case ast.UnaryOp(op=ast.UAdd(), operand=inner):
            return _value(inner)
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _power(_value(left), _value(right))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _BINARY[type(op)](_value(left), _value(right))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*map(_value, args))
    raise ValueError("only numbers, operators and the functions named in the description are allowed")


def _power(base: float, exponent: float) -> float:
    if abs(exponent) > MAX_POWER or abs(base) > 1e100:
        raise ValueError(f"powers go up to {MAX_POWER}")
    if isinstance(base, int) and isinstance(exponent, int) and base.bit_length() * exponent > MAX_BITS + MAX_POWER:
        raise ValueError("a number in it has too many digits")
    result = base**exponent
    if isinstance(result, complex):
        raise ValueError("the result is not a real number")
    return float(result) if isinstance(result, float) else result
