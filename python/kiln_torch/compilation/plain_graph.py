"""A graph as bytes for another process: operations by name, values as plain data.

Invariant: of a node's metadata the recorded value alone is looked at, so nothing
else that is kept there can fail; what is written is read again as the same graph,
or ``write`` raises.
"""

from __future__ import annotations

import enum
import io
import pickle
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from ..graph import PROCESS_LOCAL
from .plain_values import Reader, Size, Unsent, Writer, shared_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import sympy

# Metadata under which Dynamo and make_fx keep a node's fake value.
_VALUES = ("example_value", "val")
# Arguments that are what they are in every process.
_PLAIN = (
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    type(None),
    type(Ellipsis),
    torch.dtype,
    torch.device,
    torch.layout,
    torch.memory_format,
    enum.Enum,
)
# Tags of what is not: containers, nodes by their place, and symbolic sizes.
_NODE, _LIST, _TUPLE, _DICT, _SLICE, _AS_IS = "node", "list", "tuple", "dict", "slice", "as is"


def write(gm: fx.GraphModule) -> bytes:
    """Write ``gm`` down. Raises where it holds what only this process has."""
    writer = Writer()
    nodes = _written(gm, writer)
    inputs = [value for op, *_, value in nodes if op == "placeholder"]
    told = {
        "nodes": nodes,
        "symbols": list(writer.symbols.values()),
        "shared": shared_memory(inputs),
    }
    buffer = io.BytesIO()
    _Pickler(buffer, pickle.HIGHEST_PROTOCOL).dump(told)
    return buffer.getvalue()


def read(data: bytes, mode: Any, fixed: Mapping[sympy.Symbol, int] | None = None) -> fx.GraphModule:
    """Make the graph again, with fake values of ``mode``; ``fixed``: with numbers for symbols.

    ``data`` is this process's own, or of the one that started it.
    """
    told = pickle.loads(data)  # noqa: S301
    reader = Reader(mode, told["symbols"], told["shared"], fixed or {})
    return _read(told["nodes"], reader)


def _written(gm: fx.GraphModule, writer: Writer) -> list[tuple[Any, ...]]:
    if type(gm.graph._codegen) is not fx.graph.CodeGen:
        # It takes or gives other than its nodes say.
        raise Unsent(f"a graph with code of its own: {type(gm.graph._codegen).__name__}")
    places: dict[fx.Node, int] = {}
    lines = []
    for node in gm.graph.nodes:
        target: Any = node.target
        if node.op == "get_attr":
            target = target, _held(gm, str(target), writer)
        elif node.op == "call_module":
            raise Unsent("a module that is not in the graph")
        name = next((name for name in _VALUES if name in node.meta), None)
        value = None if name is None else writer.value(node.meta[name])
        if any(key in PROCESS_LOCAL for key in node.kwargs):
            raise Unsent("a kernel of the user's, by its place in a table of this process")
        args = [_argument(each, places, writer) for each in node.args]
        kwargs = {key: _argument(each, places, writer) for key, each in node.kwargs.items()}
        lines.append((node.op, node.name, target, args, kwargs, name, value))
        places[node] = len(places)
    return lines


def _held(gm: fx.GraphModule, target: str, writer: Writer) -> list[tuple[Any, ...]]:
    """Write down a graph within the graph, as a branch is."""
    held: Any = gm
    for step in target.split("."):
        held = getattr(held, step)
    if not isinstance(held, fx.GraphModule):
        raise Unsent(f"the graph holds a {type(held).__name__} by value")
    return _written(held, writer)


def _argument(given: Any, places: dict[fx.Node, int], writer: Writer) -> tuple[str, Any]:
    def inner(each: Any) -> tuple[str, Any]:
        return _argument(each, places, writer)

    if isinstance(given, fx.Node):
        return _NODE, places[given]
    if isinstance(given, (list, tuple)):
        # torch.Size and fx's own lists are what they hold.
        return (_LIST if isinstance(given, list) else _TUPLE), [inner(each) for each in given]
    if isinstance(given, dict):
        return _DICT, [(inner(key), inner(each)) for key, each in given.items()]
    if isinstance(given, slice):
        return _SLICE, [inner(each) for each in (given.start, given.stop, given.step)]
    if isinstance(given, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return _AS_IS, writer.number(given)
    if isinstance(given, _PLAIN):
        return _AS_IS, given
    raise Unsent(f"an argument of type {type(given).__qualname__}")


def _read(lines: Sequence[tuple[Any, ...]], reader: Reader) -> fx.GraphModule:
    gm, graph = fx.GraphModule({}, fx.Graph()), fx.Graph()
    nodes: list[fx.Node] = []
    for op, node_name, target, args, kwargs, name, value in lines:
        if op == "get_attr":
            target, inner = target
            gm.add_submodule(target, _read(inner, reader))
        given = tuple(_given(each, nodes, reader) for each in args)
        named = {key: _given(each, nodes, reader) for key, each in kwargs.items()}
        node = graph.create_node(op, target, given, named, node_name)
        if name is not None:
            make: Callable[[Any], Any] = reader.input if op == "placeholder" else reader.value
            node.meta[name] = make(value)
        nodes.append(node)
    return fx.GraphModule(gm, graph)


def _given(told: tuple[str, Any], nodes: Sequence[fx.Node], reader: Reader) -> Any:
    tag, held = told
    if tag == _NODE:
        return nodes[held]
    if tag == _DICT:
        return {_given(k, nodes, reader): _given(v, nodes, reader) for k, v in held}
    if tag == _AS_IS:
        return reader.number(held) if isinstance(held, Size) else held
    parts = [_given(each, nodes, reader) for each in held]
    if tag == _SLICE:
        return slice(*parts)
    return parts if tag == _LIST else tuple(parts)


class _Pickler(pickle.Pickler):
    """Operators have no pickled form: their names do."""

    def reducer_override(self, obj: Any) -> Any:
        """Name an operator; the rest as ever."""
        if isinstance(obj, torch._ops.OpOverload):
            space, _, name = obj._schema.name.partition("::")
            return _overload, (space, name, obj._overloadname)
        if isinstance(obj, torch._ops.OpOverloadPacket):
            space, _, name = obj._qualified_op_name.partition("::")
            return _packet, (space, name)
        if isinstance(obj, torch._ops.HigherOrderOperator):
            return _higher_order, (obj.name(),)
        return NotImplemented


def _packet(space: str, name: str) -> Any:
    return getattr(getattr(torch.ops, space), name)


def _overload(space: str, name: str, overload: str) -> Any:
    return getattr(_packet(space, name), overload)


def _higher_order(name: str) -> Any:
    return getattr(torch.ops.higher_order, name)
