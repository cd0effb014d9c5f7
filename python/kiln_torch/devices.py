"""Which GPU a graph is for: the current one, or GPUs that it names by itself.

The ranks of a job run one graph, each on a GPU of its own. Invariant: ``only_index``
gives an index only where all that names a GPU names that one, and it is the current
device; not where the graph holds tensors of a GPU by value, gives a device as a
number, or communicates, be it within a distributed tensor: such graphs belong to the
GPUs that they were traced on.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

GPU = "cuda"
# The index under which a graph that has an only one is known.
FIRST = 0
_NAMED = re.compile(rf"{GPU}(?::(\d+))?\Z")
# Metadata under which Dynamo and make_fx keep a node's fake value.
VALUES = ("example_value", "val")
# Namespaces of operations that communicate: their code may differ from rank to rank.
_COLLECTIVE = ("c10d", "symm_mem", "dtensor")
# Methods whose numbers may be a device: ``x.to(1)``.
_MOVES = ("to", "cuda")


class Devices:
    """Names of devices, in the order in which they turn up."""

    def __init__(self) -> None:
        """Start without any."""
        self._met: dict[torch.device, str] = {}

    def name(self, device: torch.device) -> str:
        """Return the name of a device: its type and its place among those of the graph."""
        if device.type != GPU or device.index is None:
            return str(device)
        return self._met.setdefault(device, f"{device.type}:{len(self._met)}")

    @property
    def met(self) -> tuple[str, ...]:
        """Return the devices that have an index, as they are called here."""
        return tuple(map(str, self._met))


def named(given: object) -> torch.device | None:
    """Return the GPU that an argument names, or ``None``."""
    if isinstance(given, torch.device):
        return given if given.type == GPU else None
    return torch.device(given) if isinstance(given, str) and _NAMED.match(given) else None


def input_index(inputs: Sequence[Any]) -> int | None:
    """Return the index of the only GPU that these values are on."""
    found = {each.device.index for each in inputs if _on_gpu(each)}
    return found.pop() if len(found) == 1 else None


def only_index(gm: fx.GraphModule, inputs: Sequence[Any]) -> int | None:
    """Return the index of the graph's only GPU, if it is the current one; else ``None``."""
    index = input_index(inputs)
    if index is None or any(map(_wrapper, inputs)):
        return None
    for module in graphs(gm):
        for node in module.graph.nodes:
            if _bound(module, node) or any(map(_wrapper, _values(node))):
                return None
            for device in _devices(node):
                # Without an index it is the current one.
                if device.index not in (None, index):
                    return None
    try:
        # Last, because it is the only question to the driver.
        return index if torch.cuda.current_device() == index else None
    except (RuntimeError, AssertionError):
        # Fake tensors, on a machine without a GPU.
        return None


def graphs(gm: fx.GraphModule) -> Iterator[fx.GraphModule]:
    """Yield a graph and those inside of it."""
    return (module for module in gm.modules() if isinstance(module, fx.GraphModule))


def renamed(gm: fx.GraphModule, name: Callable[[Any], Any]) -> Callable[[], None]:
    """Replace what ``name`` gives for each argument that names a GPU; return the way back."""
    before: list[tuple[fx.Node, Any, Any]] = []
    changed: list[fx.GraphModule] = []

    def replace(given: Any) -> Any:
        return given if named(given) is None else name(given)

    def back() -> None:
        for node, args, kwargs in before:
            node.args, node.kwargs = args, kwargs
        for module in changed:
            module.recompile()

    try:
        for module in graphs(gm):
            found = len(before)
            for node in module.graph.nodes:
                if any(named(leaf) is not None for leaf in _leaves(node)):
                    before.append((node, node.args, node.kwargs))
                    node.args = fx.node.map_aggregate(node.args, replace)
                    node.kwargs = fx.node.map_aggregate(node.kwargs, replace)
            if len(before) > found:
                changed.append(module)
                module.recompile()
    except BaseException:
        back()
        raise
    return back


def _devices(node: fx.Node) -> Iterator[torch.device]:
    for value in _values(node):
        device = value.device if _on_gpu(value) else named(value)
        if device is not None:
            yield device
    for leaf in _leaves(node):
        device = named(leaf)
        if device is not None:
            yield device


def _values(node: fx.Node) -> list[Any]:
    return [value for name in VALUES for value in pytree.tree_leaves(node.meta.get(name))]


def _wrapper(value: object) -> bool:
    """Whether it is several tensors as one: of what ranks, its type knows."""
    return isinstance(value, torch.Tensor) and is_traceable_wrapper_subclass(value)


def _bound(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the node's code may be for the GPU, or the rank, that it was traced on."""
    if node.op == "get_attr":
        held: Any = module
        for step in str(node.target).split("."):
            held = getattr(held, step, None)
        return _on_gpu(held) or isinstance(held, torch.ScriptObject)
    if _number(node.kwargs.get("device")):
        return True
    if node.op == "call_method":
        return node.target in _MOVES and any(map(_number, _leaves(node)))
    if node.op != "call_function":
        return node.op == "call_module"
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return target.namespace.strip("_").startswith(_COLLECTIVE) or _numbered(target, node)
    where = getattr(target, "__module__", None) or ""
    return where.startswith(("torch.distributed", "torch.cuda", "torch.accelerator"))


def _numbered(target: Any, node: fx.Node) -> bool:
    """Whether a device is given to an operation as a number."""
    given = dict(zip((each.name for each in target._schema.arguments), node.args, strict=False))
    given.update(node.kwargs)
    takes = (each for each in target._schema.arguments if "Device" in str(each.type))
    return any(_number(given.get(each.name)) for each in takes)


def _number(given: object) -> bool:
    return isinstance(given, int) and not isinstance(given, bool)


def _on_gpu(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.device.type == GPU


def _leaves(node: fx.Node) -> list[Any]:
    found: list[Any] = []
    fx.node.map_aggregate((node.args, node.kwargs), found.append)
    return found
