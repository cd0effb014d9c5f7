"""Whether a graph may write to what it is given.

Invariant: "no" is said only where every operation is known to write to none of
its arguments.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import fx

# Python's own operations that write; those of tensors are seen by their names.
_WRITING = frozenset(
    (
        operator.setitem,
        operator.delitem,
        *(
            getattr(operator, name)
            for name in dir(operator)
            if name.startswith("i")
            and hasattr(operator, f"__{name}__")
            and name not in ("inv", "invert", "index", "is_", "is_not", "indexOf")
        ),
    )
)


def may_write(gm: fx.GraphModule) -> bool:
    """Whether an operation of ``gm`` may write to an argument."""
    return any(_writes(node) for node in gm.graph.nodes)


def _writes(node: fx.Node) -> bool:
    if node.op in ("placeholder", "output", "get_attr"):
        return False
    target: Any = node.target
    if node.op == "call_method":
        return _in_place(target) or "out" in node.kwargs
    if node.op != "call_function":
        return True
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.is_mutable
    if isinstance(target, torch._ops.HigherOrderOperator):
        return True
    if target in _WRITING or "out" in node.kwargs or node.kwargs.get("inplace"):
        return True
    module = (getattr(target, "__module__", "") or "").partition(".")[0]
    known = module in ("torch", "_operator", "operator", "builtins", "math")
    return not known or _in_place(getattr(target, "__name__", "_"))


def _in_place(name: str) -> bool:
    return name.endswith("_") and not name.endswith("__")
