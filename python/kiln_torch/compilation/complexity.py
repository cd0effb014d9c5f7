"""What a graph costs, as far as it can be told without compiling it.

Invariant: an estimate reads shapes and operations alone, so that equal parts of a
graph have equal estimates; none of them decides what code is made.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..graph import value_of
from .repeats import Repeats, find_repeats

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import fx

# Operations that read every element of a row for every row: they are costly both
# to compile and to run. By parts of their names; all others count one.
_WEIGHTS = {
    "scaled_dot_product": 8.0,
    "conv": 6.0,
    "matmul": 4.0,
    "linear": 4.0,
    "addmm": 4.0,
    "bmm": 4.0,
    "mm": 4.0,
    "softmax": 3.0,
    "norm": 3.0,
}
_CALLS = ("call_function", "call_method", "call_module")


@dataclass(frozen=True)
class GraphComplexity:
    """A graph's size, and where it could be split."""

    nodes: int
    score: float
    memory_bytes: int
    split_points: int
    repeats: Repeats | None


def calls(gm: fx.GraphModule) -> list[fx.Node]:
    """Return the nodes that compute, in order."""
    return [node for node in gm.graph.nodes if node.op in _CALLS]


def operation(node: fx.Node) -> str:
    """Return the name of a node's operation, the same for Dynamo's and for aten's graphs."""
    target: Any = node.target
    if isinstance(target, str):
        return target.strip("_") if node.op == "call_method" else target
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.split("::")[-1].strip("_")
    name = getattr(target, "__name__", str(target))
    return name.strip("_")


def is_named(node: fx.Node, names: Sequence[str]) -> bool:
    """Whether ``node`` is one of these operations: ``aten.linear``, ``ns.op`` or ``linear``."""
    if node.op not in ("call_function", "call_method"):
        return False
    mine = operation(node)
    overload = node.target if isinstance(node.target, torch._ops.OpOverload) else None
    space = overload.namespace if overload is not None else ""
    for name in names:
        wanted_space, _, wanted = name.replace("::", ".").rpartition(".")
        if wanted.strip("_") != mine:
            continue
        # Before it is lowered an operation of aten is a function of torch.
        if not wanted_space or wanted_space == space or (wanted_space == "aten" and not space):
            return True
    return False


def identify_split_points(gm: fx.GraphModule, names: Sequence[str]) -> list[fx.Node]:
    """Return the nodes that are named operations."""
    return [node for node in gm.graph.nodes if is_named(node, names)]


def estimate_memory_requirements(gm: fx.GraphModule) -> dict[fx.Node, int]:
    """Return the bytes of what each node gives; 0 where it is not known."""
    return {node: _bytes(value_of(node)) for node in gm.graph.nodes}


def calculate_complexity_scores(gm: fx.GraphModule) -> dict[fx.Node, float]:
    """Return how much compiling each node costs, of its own kind."""
    return {node: _score(node) for node in calls(gm)}


def analyze_graph_complexity(gm: fx.GraphModule, splitting_ops: Sequence[str]) -> GraphComplexity:
    """Describe a graph."""
    nodes = calls(gm)
    return GraphComplexity(
        nodes=len(nodes),
        score=sum(calculate_complexity_scores(gm).values()),
        memory_bytes=sum(estimate_memory_requirements(gm).values()),
        split_points=len(identify_split_points(gm, splitting_ops)),
        repeats=find_repeats(nodes),
    )


def _score(node: fx.Node) -> float:
    name = operation(node)
    return next((weight for part, weight in _WEIGHTS.items() if part in name), 1.0)


def _bytes(value: Any) -> int:
    if isinstance(value, (tuple, list)):
        return sum(map(_bytes, value))
    if not isinstance(value, torch.Tensor):
        return 0
    sizes = [_now(size) for size in value.shape]
    return math.prod(sizes) * value.element_size()


def _now(size: Any) -> int:
    if isinstance(size, torch.SymInt):
        hint = size.node.hint
        return 1 if hint is None else int(hint)
    return int(size)
