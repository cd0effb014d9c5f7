"""Sizes of a launch plan: numbers over symbols (``src/native/plan/expr.rs``).

Invariant: what was read has a value for all values of its symbols, or raises
``BrokenArtifact``; nothing is evaluated but arithmetic.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeAlias

    # A number, ("symbol", 3), or an operation's name and its operands.
    Expr: TypeAlias = "int | tuple[Any, ...]"

_MANY = {"add": sum, "mul": math.prod, "max": max, "min": min}
_SIGNS = {"add": " + ", "mul": "*", "div": " // ", "mod": " % "}


class BrokenArtifact(ValueError):
    """Fetch it again, or compile it again."""


def read(told: Any) -> Expr:
    """Read one as JSON has it."""
    if isinstance(told, int) and not isinstance(told, bool):
        return told
    if isinstance(told, dict) and len(told) == 1:
        ((name, operands),) = told.items()
        if name == "symbol" and isinstance(operands, int) and operands >= 0:
            return name, operands
        pair = name in ("div", "mod") and len(operands) == 2
        if pair or (name in _MANY and operands):
            return name, *(read(each) for each in operands)
    raise BrokenArtifact(f"plan.json: {told!r} is no size")


def value(expr: Expr, symbols: Sequence[int]) -> int:
    """Return the number that it is."""
    if isinstance(expr, int):
        return expr
    name, *operands = expr
    if name == "symbol":
        if operands[0] >= len(symbols):
            raise BrokenArtifact(f"plan.json: there is no symbol s{operands[0]}")
        return symbols[operands[0]]
    numbers = [value(each, symbols) for each in operands]
    if name in _MANY:
        return int(_MANY[name](numbers))
    a, b = numbers
    if b == 0:
        raise BrokenArtifact(f"plan.json: {shown(expr)} divides by zero")
    # Both round down, as Python's do.
    return a // b if name == "div" else a % b


def shown(expr: Expr) -> str:
    """Return it as people read it: ``2*s0 + 1``."""
    if isinstance(expr, int):
        return str(expr)
    name, *operands = expr
    if name == "symbol":
        return f"s{operands[0]}"
    parts = [shown(each) for each in operands]
    if name in ("max", "min"):
        return f"{name}({', '.join(parts)})"
    if name != "add":
        nested = [isinstance(each, tuple) and each[0] in ("add", "div", "mod") for each in operands]
        parts = [f"({part})" if deep else part for part, deep in zip(parts, nested)]
    return _SIGNS[name].join(parts)


def shape_shown(shape: Sequence[Expr]) -> str:
    """Return a shape as people read it: ``[s0, 64]``."""
    return f"[{', '.join(map(shown, shape))}]"
