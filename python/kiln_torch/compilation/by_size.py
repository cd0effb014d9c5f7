"""Static sizes beside the dynamic one: compiled together, chosen by the inputs at each call.

Invariant: code for one size runs for that size alone; for any other the dynamic
code does, and a size that cannot be compiled by itself costs its speed and no more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ..graph import value_of
from . import plain_graph
from .plain_values import Unsent

if TYPE_CHECKING:
    from collections.abc import Callable

    import sympy
    from torch import fx


class BySize:
    """A compiled graph that is compiled for some sizes as well."""

    def __init__(
        self, dynamic: Callable[..., Any], size_of: Callable[[tuple[Any, ...]], int]
    ) -> None:
        """Run ``dynamic`` for all sizes, as yet."""
        self.dynamic = dynamic
        self.static: dict[int, Callable[..., Any]] = {}
        self._size_of = size_of

    def __call__(self, *args: Any) -> Any:
        """Run what is for this size."""
        return self.static.get(self._size_of(args), self.dynamic)(*args)


def symbol_of(gm: fx.GraphModule) -> sympy.Symbol:
    """Return the one size that is a symbol. ``Unsent``: there is none, or several are."""
    found: set[Any] = set()
    for value in _inputs(gm):
        numbers = (*value.shape, *value.stride()) if isinstance(value, torch.Tensor) else (value,)
        for number in numbers:
            if isinstance(number, torch.SymInt):
                found |= number.node.expr.free_symbols
    if len(found) != 1:
        raise Unsent(f"{len(found)} sizes of its inputs are symbols, not one")
    return found.pop()


def reader_of(gm: fx.GraphModule, symbol: sympy.Symbol) -> Callable[[tuple[Any, ...]], int]:
    """Return what reads the size from the inputs of a call."""
    for at, value in enumerate(_inputs(gm)):
        if isinstance(value, torch.SymInt) and value.node.expr == symbol:
            return lambda args: args[at]
    for at, value in enumerate(_inputs(gm)):
        if not isinstance(value, torch.Tensor):
            continue
        for place, number in enumerate(value.shape):
            if isinstance(number, torch.SymInt) and number.node.expr == symbol:
                return lambda args: args[at].shape[place]
    raise Unsent(f"no input is of size {symbol} itself")


def fixed(gm: fx.GraphModule, symbol: sympy.Symbol, size: int) -> tuple[fx.GraphModule, Any]:
    """Return the graph for one size, and the fake mode of its values.

    ``Unsent``: it cannot be, or is never called with that size.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    mode = FakeTensorMode(shape_env=ShapeEnv())
    return plain_graph.read(plain_graph.write(gm), mode, {symbol: size}), mode


def _inputs(gm: fx.GraphModule) -> list[Any]:
    return [value_of(node) for node in gm.graph.nodes if node.op == "placeholder"]
