"""Sizes of a piece: formulas over its symbols, as ``src/native/parse/expression.rs`` has them.

Invariant: a formula is read as text and never evaluated as code; what passes is whole
numbers, symbols that are known, and the arithmetic below.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from .refused import INVALID_INPUT, Refused

Value = TypeVar("Value")
# Applies a function of sizes to what stands for them.
Apply = Callable[..., Value]

_LONGEST = 4096
_OPERATORS: dict[type[ast.operator], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
}
# A power of more is no size of a tensor.
_HIGHEST = 8


def read(text: str, symbols: Mapping[str, Value], apply: Apply[Value]) -> Value | int:
    """What ``text`` is, where each symbol is what ``symbols`` has for it."""
    try:
        if len(text) > _LONGEST:
            raise ValueError
        return _term(ast.parse(text, mode="eval").body, symbols, apply)
    except (SyntaxError, ValueError, KeyError, RecursionError, MemoryError) as e:
        raise Refused(INVALID_INPUT, f"{text[:100]!r} is no size of this program") from e


def _term(node: ast.expr, symbols: Mapping[str, Value], apply: Apply[Value]) -> Value | int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.Name):
        return symbols[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return apply(operator.neg, _term(node.operand, symbols, apply))
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = (_term(each, symbols, apply) for each in (node.left, node.right))
        return apply(_OPERATORS[type(node.op)], left, right)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        times = _term(node.right, symbols, apply)
        if not isinstance(times, int) or not 1 <= times <= _HIGHEST:
            raise ValueError
        base = found = _term(node.left, symbols, apply)
        for _ in range(times - 1):
            found = apply(operator.mul, found, base)
        return found
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        args = [_term(each, symbols, apply) for each in node.args]
        return _called(node.func.id, args, apply)
    raise ValueError


def _called(name: str, args: list[Any], apply: Apply[Any]) -> Any:
    import torch

    if name in ("Max", "Min") and args:
        choose = torch.sym_max if name == "Max" else torch.sym_min
        found = args[0]
        for other in args[1:]:
            found = apply(choose, found, other)
        return found
    left, right = args
    if name in ("FloorDiv", "CleanDiv"):
        return apply(operator.floordiv, left, right)
    if name == "CeilDiv":
        negated = apply(operator.floordiv, apply(operator.neg, left), right)
        return apply(operator.neg, negated)
    if name in ("Mod", "PythonMod"):
        return apply(operator.mod, left, right)
    raise ValueError
