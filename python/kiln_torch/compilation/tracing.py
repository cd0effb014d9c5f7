"""Any graph made ready for a compiler: as Dynamo gave it, or traced once more.

Invariant: a graph of Dynamo's is left as it is, so that its guards stay Dynamo's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch._guards import TracingContext

from ..graph import value_of
from .errors import IncompatibleConfigError
from .retraced import Retraced
from .traced import Traced, same_sizes

if TYPE_CHECKING:
    from collections.abc import Sequence


def trace(
    graph: fx.GraphModule, example_inputs: Sequence[Any], runtime_shape: int | None = None
) -> Traced:
    """Make ``graph`` ready."""
    context = TracingContext.try_get()
    mode = None if context is None else _ready(graph, context.fake_mode)
    if mode is not None:
        return Traced(graph, mode, dynamo=_from_dynamo(graph), examples=example_inputs)
    if any(isinstance(each, torch.SymInt) for each in example_inputs):
        raise IncompatibleConfigError("an input is a symbolic size, and Dynamo is not tracing")
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    mode = FakeTensorMode(shape_env=ShapeEnv())
    with torch.no_grad():
        return Retraced(graph, example_inputs, mode, dynamic=runtime_shape is None)


def torch_lock() -> Any:
    """Return torch's own lock for compiling, to be held while its compiler state is used.

    Dynamo holds it while it calls a backend; the same thread may take it again.
    """
    from torch._dynamo.convert_frame import compile_lock

    return compile_lock


def restarts(error: BaseException) -> bool:
    """Whether it is no failure but tells Dynamo to trace again, and must reach it."""
    from torch._dynamo.exc import RestartAnalysis

    return isinstance(error, RestartAnalysis)


def _ready(graph: fx.GraphModule, mode: Any) -> Any:
    """Return the mode of the graph's values if it needs no tracing; ``mode`` where it has none."""
    found = mode
    for node in graph.graph.nodes:
        if node.op == "call_module":
            return None
        if node.op == "get_attr":
            held = graph
            for step in str(node.target).split("."):
                held = getattr(held, step)
            if not isinstance(held, fx.GraphModule):
                return None
        if node.op == "placeholder":
            value = value_of(node)
            if value is None:
                return None
            own = getattr(value, "fake_mode", found)
            if own is not found:
                if not same_sizes(mode, own):
                    return None
                found = own
    return found


def _from_dynamo(graph: fx.GraphModule) -> bool:
    return not any(
        "val" in n.meta and "example_value" not in n.meta
        for n in graph.graph.nodes
        if n.op == "placeholder"
    )
