"""The stitching graph: pieces called one after another, values passed on and let go.

Invariant: it computes nothing itself; a value is held no longer than until its
last use, and one that nobody uses is not passed at all.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

from torch import fx, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .splitting import SplitItem


class Piece(nn.Module):
    """A compiled piece as a module of the stitching graph."""

    def __init__(self, run: Callable[..., Any]) -> None:
        """Call ``run``."""
        super().__init__()
        self.run = run

    def forward(self, *args: Any) -> Any:
        """Run it."""
        return self.run(*args)


def create_split_graph_module(gm: fx.GraphModule, items: Sequence[SplitItem]) -> fx.GraphModule:
    """Return the graph that calls the pieces as they are: it equals ``gm``."""
    graph = build_connection_graph(gm, items)
    optimize_data_flow(graph)
    graph.lint()
    return fx.GraphModule(nn.ModuleDict({item.name: item.graph for item in items}), graph)


def build_connection_graph(gm: fx.GraphModule, items: Sequence[SplitItem]) -> fx.Graph:
    """Connect what pieces give with what later ones take."""
    graph = fx.Graph()
    known: dict[str, fx.Node] = {}
    for node in gm.graph.nodes:
        if node.op == "placeholder":
            new = known[node.name] = graph.node_copy(node)
            new.meta = dict(node.meta)
    for item in items:
        call = graph.call_module(item.name, tuple(known[name] for name in item.inputs))
        for at, name in enumerate(item.outputs):
            known[name] = graph.call_function(operator.getitem, (call, at))
    (output,) = (node for node in gm.graph.nodes if node.op == "output")
    graph.output(fx.map_arg(output.args[0], lambda node: known[node.name]))
    return graph


def optimize_data_flow(graph: fx.Graph) -> None:
    """Drop values that no piece uses. FX lets the others go after their last use."""
    for node in reversed(graph.nodes):
        if node.target is operator.getitem and not node.users:
            graph.erase_node(node)


def create_piecewise_callable(
    stitching: fx.GraphModule, compiled: Mapping[str, Callable[..., Any]]
) -> fx.GraphModule:
    """Put the compiled pieces in place of their graphs."""
    modules = nn.ModuleDict({name: Piece(run) for name, run in compiled.items()})
    return fx.GraphModule(modules, stitching.graph)
