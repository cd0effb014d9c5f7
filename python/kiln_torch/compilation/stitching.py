"""The stitching graph: pieces called one after another, values passed on and let go.

It is run as one generated function, which calls each piece with a list of its
inputs and does nothing else in between.
Invariant: it computes nothing itself; a value is held no longer than until its
last use, and one that nobody uses is not passed at all.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from .errors import CompilationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .splitting import SplitItem


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
    """Drop values that no piece uses."""
    for node in reversed(graph.nodes):
        if node.target is operator.getitem and not node.users:
            graph.erase_node(node)


def create_piecewise_callable(
    stitching: fx.GraphModule, compiled: Mapping[str, Callable[..., Any]]
) -> Callable[..., Any]:
    """Return a function that runs the compiled pieces as ``stitching`` connects them."""
    layered = _function(stitching.graph, {name: _unboxed(run) for name, run in compiled.items()})
    bare = _function(
        stitching.graph,
        {name: getattr(run, "boxed", None) or _unboxed(run) for name, run in compiled.items()},
    )
    ready = False

    def run(*args: Any) -> Any:
        nonlocal ready
        if ready and not torch.is_grad_enabled():
            return bare(*args)
        outputs = layered(*args)
        # What torch does at the first call of each piece is done.
        ready = True
        return outputs

    return run


def _unboxed(run: Callable[..., Any]) -> Callable[[list[Any]], Any]:
    def boxed(args: list[Any]) -> Any:
        given = tuple(args)
        args.clear()
        return run(*given)

    return boxed


def _function(
    graph: fx.Graph, pieces: Mapping[str, Callable[[list[Any]], Any]]
) -> Callable[..., Any]:
    """Generate the function: a line for each piece, with its values let go after their last use."""
    held: dict[str, Any] = {}
    names: dict[fx.Node, str] = {}
    lines: list[str] = []
    last = _last_uses(graph)
    for at, node in enumerate(graph.nodes):
        if node.op == "placeholder":
            names[node] = f"v{at}"
        elif node.op == "call_module":
            held[f"f{at}"] = pieces[str(node.target)]
            names[node] = f"v{at}"
            lines.append(f"given = [{', '.join(names[each] for each in node.args)}]")
            # The list has them alone, and a piece lets go of what it is done with.
            gone = [names[each] for each in dict.fromkeys(node.args) if last[each] is node]
            lines.extend([f"del {', '.join(gone)}"] if gone else [])
            lines.append(f"v{at} = f{at}(given)")
            values = [each for each in node.users if each.target is operator.getitem]
            for each in values:
                names[each] = f"{names[node]}_{each.args[1]}"
                lines.append(f"{names[each]} = v{at}[{each.args[1]}]")
            lines.append(f"del v{at}")
        elif node.op == "output":
            lines.append(f"return {_expression(node.args[0], names, held)}")
        elif node.target is not operator.getitem:
            raise CompilationError(f"no part of a stitching graph: {node.format_node()}")
    inputs = [names[node] for node in graph.nodes if node.op == "placeholder"]
    source = f"def stitched({', '.join(inputs)}):\n" + "".join(f"    {each}\n" for each in lines)
    # Of names and numbers made here alone.
    exec(compile(source, "<kiln stitching>", "exec"), held)  # noqa: S102
    return held["stitched"]


def _last_uses(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    last: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        for each in node.all_input_nodes:
            last[each] = node
    return last


def _expression(given: Any, names: Mapping[fx.Node, str], held: dict[str, Any]) -> str:
    """Write what the graph gives as an expression; constants by reference."""
    if isinstance(given, fx.Node):
        return names[given]
    if isinstance(given, (tuple, list)):
        parts = "".join(f"{_expression(each, names, held)}, " for each in given)
        return f"({parts})" if isinstance(given, tuple) else f"[{parts}]"
    if isinstance(given, dict):
        pairs = (f"{key!r}: {_expression(each, names, held)}" for key, each in given.items())
        return "{" + ", ".join(pairs) + "}"
    name = f"c{len(held)}"
    held[name] = given
    return name
