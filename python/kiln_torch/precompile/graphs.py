"""What Dynamo's graph calls, and where.

Invariant: a graph passes only if all that it calls is torch's own: the code of a
user's operation, Triton kernel or opaque function is not traced, so that nobody
would notice when it is another.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_flatten

from .errors import NotShared

if TYPE_CHECKING:
    from collections.abc import Iterator

_OURS = ("aten", "prim", "prims", "inductor", "quantized", "rngprims", "c10d_functional")
_MODULES = ("torch", "math", "operator", "_operator", "builtins", "itertools")


def refuse_foreign(graph: torch.fx.Graph | None) -> None:
    """Raise ``NotShared`` for a graph that calls what is not torch's."""
    for node in _nodes(graph):
        target = node.target
        if node.op == "call_module":
            raise NotShared("foreign", f"calls the module {target}")
        if node.op != "call_function":
            continue
        if isinstance(target, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
            name = str(getattr(target, "_qualified_op_name", target)).partition("::")[0]
            known = name.partition(".")[0] in _OURS
        elif isinstance(target, torch._ops.HigherOrderOperator):
            known = "triton" not in target.name() and "flat_apply" not in target.name()
        else:
            known = _of_torch(target)
        if not known:
            raise NotShared("foreign", f"calls {target}")


def has_cpu(graph: torch.fx.Graph | None) -> bool:
    """Whether a value of the graph is on the CPU, or none is known."""
    known = False
    for node in _nodes(graph):
        values, _ = tree_flatten(node.meta.get("example_value"))
        for value in values:
            if isinstance(value, torch.Tensor):
                known = True
                if value.device.type == "cpu":
                    return True
    return not known


def _nodes(graph: torch.fx.Graph | None) -> Iterator[torch.fx.Node]:
    """Yield all nodes, those of graphs that are called by this one among them."""
    if graph is None:
        return
    graphs = [graph]
    owner = graph.owning_module
    if owner is not None:
        graphs += [m.graph for m in owner.modules() if isinstance(m, torch.fx.GraphModule)]
    elif any(isinstance(node.target, torch._ops.HigherOrderOperator) for node in graph.nodes):
        raise NotShared("foreign", "calls graphs that cannot be looked at")
    for each in {id(each): each for each in graphs}.values():
        yield from each.nodes


def _of_torch(target: Any) -> bool:
    if getattr(operator, getattr(target, "__name__", ""), None) is target:
        return True
    owner = getattr(target, "__self__", None)
    module = getattr(target, "__module__", None) or getattr(owner, "__module__", None) or ""
    return module.partition(".")[0] in _MODULES
