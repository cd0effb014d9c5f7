"""The canonical form of an FX graph: what decides the code, and nothing else.

Invariant: two graphs with one form compile to interchangeable code under equal
options, each on its own devices; names of nodes, symbols, modules and files, and
which GPU of several it is, never enter. What cannot be written down exactly is
``Unkeyable``: that graph is then compiled without the cluster.
"""

from __future__ import annotations

import enum
import json
from typing import TYPE_CHECKING, Any

import sympy
import torch
from torch import fx
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils._sympy.symbol import SymT, symbol_is_type

from .devices import VALUES, Devices, named

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Arguments that are places in a table of this process; the kernels themselves are
# among the options (see ``options.py``).
PROCESS_LOCAL = ("kernel_idx", "constant_args_idx")
# Functions of these modules are part of torch's own key, or of Python.
_KNOWN_MODULES = ("torch", "_operator", "operator", "builtins", "math")


class Unkeyable(Exception):
    """No key says all of it: compile without the cluster."""


def form(
    gm: fx.GraphModule, *, guarded: bool = True, devices: Devices | None = None
) -> tuple[bytes, bytes]:
    """Return the structure of ``gm`` and the description of its inputs.

    ``guarded``: refuse what no guard on the inputs' sizes could check elsewhere.
    ``devices``: gets to know those that the graph names.
    """
    symbols = Symbols(hinted=guarded, devices=devices or Devices())
    held = [value_of(node) for node in gm.graph.nodes if node.op == "placeholder"]
    inputs = [_described(value, symbols) for value in held]
    if None in inputs:
        raise Unkeyable("an input without metadata")
    if guarded and symbols.met - {
        size.node.expr for size in held if isinstance(size, torch.SymInt)
    }:
        # A guard on it could not be checked where the artifact is loaded.
        raise Unkeyable("a size that is no input of its own")
    structure = _graph(gm, symbols)
    return _encode(structure), _encode([inputs, _shared(held), symbols.ranges()])


def _shared(held: Sequence[Any]) -> list[int | None]:
    """Which inputs share memory: for each the first that has the same."""
    first: dict[int, int] = {}
    return [
        first.setdefault(value.untyped_storage()._cdata, place)
        if isinstance(value, torch.Tensor)
        else None
        for place, value in enumerate(held)
    ]


def value_of(node: fx.Node) -> Any:
    """Return the fake value that was recorded for ``node``."""
    return next((node.meta[name] for name in VALUES if name in node.meta), None)


class Symbols:
    """Names of symbolic sizes, in the order in which they turn up; and of devices."""

    def __init__(self, *, hinted: bool, devices: Devices) -> None:
        """Start without any; ``hinted``: refuse those that are known at run time only."""
        self.devices = devices
        self._hinted = hinted
        self._renamed: dict[sympy.Symbol, sympy.Symbol] = {}
        self._ranges: list[str] = []

    def of(self, size: Any) -> int | str | float | bool:
        """Write down a size, which may be symbolic."""
        if isinstance(size, (bool, int, float)):
            return size
        node = size.node
        expression = node.expr
        if isinstance(size, torch.SymInt) and expression.is_Integer:
            # Fixed meanwhile: the number is all that compilers see.
            return int(expression)
        for symbol in sorted(expression.free_symbols, key=str):
            if symbol not in self._renamed:
                self._meet(symbol, node.shape_env)
        return f"{type(size).__name__}:{sympy.srepr(expression.xreplace(self._renamed))}"

    @property
    def met(self) -> set[sympy.Symbol]:
        """All symbols so far, under the names that they have here."""
        return set(self._renamed)

    def ranges(self) -> list[str]:
        """What is known of each symbol."""
        return self._ranges

    def _meet(self, symbol: sympy.Symbol, shape_env: Any) -> None:
        if self._hinted and not symbol_is_type(symbol, SymT.SIZE):
            raise Unkeyable(f"a symbol that is no size: {symbol}")
        new = sympy.Symbol(f"k{len(self._renamed)}", **symbol._assumptions_orig)
        self._renamed[symbol] = new
        known = shape_env.var_to_range.get(symbol)
        self._ranges.append("" if known is None else f"{known.lower}..{known.upper}")


def _graph(gm: fx.GraphModule, symbols: Symbols) -> list[Any]:
    places: dict[fx.Node, int] = {}
    lines = []
    for node in gm.graph.nodes:
        lines.append(
            [
                node.op,
                _target(gm, node, symbols),
                [_argument(given, places, symbols) for given in node.args],
                _named(node.kwargs, places, symbols),
                None if node.op == "output" else _described(value_of(node), symbols),
            ]
        )
        places[node] = len(places)
    return lines


def _target(gm: fx.GraphModule, node: fx.Node, symbols: Symbols) -> Any:
    target = node.target
    if node.op in ("placeholder", "output"):
        return None
    if node.op == "call_method":
        return target
    if node.op == "get_attr":
        held = gm
        for step in str(target).split("."):
            held = getattr(held, step)
        if isinstance(held, fx.GraphModule):
            return ["graph", _graph(held, symbols)]
        raise Unkeyable(f"the graph holds a {type(held).__name__} by value")
    if node.op == "call_function":
        return _function(target)
    raise Unkeyable(f"an operation of kind {node.op}")


def _function(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload):
        return f"op {target}"
    if isinstance(target, torch._ops.OpOverloadPacket):
        return f"ops {target}"
    if isinstance(target, torch._ops.HigherOrderOperator):
        return f"hop {target.name()}"
    module = getattr(target, "__module__", None) or ""
    name = getattr(target, "__qualname__", None) or getattr(target, "__name__", "")
    if isinstance(owner := getattr(target, "__objclass__", None), type):
        # A method of a built-in type has no module of its own.
        module, name = owner.__module__, f"{owner.__qualname__}.{target.__name__}"
    if not name or "<" in name or module.partition(".")[0] not in _KNOWN_MODULES:
        raise Unkeyable(f"a function that is not torch's: {module}.{name}")
    return f"function {module}.{name}"


def _named(given: Mapping[str, Any], places: dict[fx.Node, int], symbols: Symbols) -> list[Any]:
    return [
        [name, _argument(given[name], places, symbols)]
        for name in sorted(given)
        if name not in PROCESS_LOCAL
    ]


def _argument(given: Any, places: dict[fx.Node, int], symbols: Symbols) -> Any:
    """Write down an argument so that no two different ones look alike."""
    if (device := named(given)) is not None:
        return {type(given).__name__: symbols.devices.name(device)}
    if given is None or isinstance(given, (bool, int, str)):
        return given
    if isinstance(given, fx.Node):
        return {"node": places[given]}
    if isinstance(given, (tuple, list)):
        # Lists and tuples (torch.Size among them) mean the same to an operation.
        return [_argument(each, places, symbols) for each in given]
    if isinstance(given, dict):
        pairs = [
            [_argument(k, places, symbols), _argument(v, places, symbols)] for k, v in given.items()
        ]
        return {"dict": pairs}
    if isinstance(given, slice):
        parts = (given.start, given.stop, given.step)
        return {"slice": [_argument(part, places, symbols) for part in parts]}
    if isinstance(given, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return {"symbolic": symbols.of(given)}
    return {"value": scalar(given)}


def scalar(given: Any) -> str:
    """Write down a value that is neither a node nor a container."""
    if isinstance(given, (bool, int, float, complex, str, bytes, type(None), type(Ellipsis))):
        return f"{type(given).__name__}:{given!r}"
    if isinstance(given, (torch.dtype, torch.device, torch.layout, torch.memory_format)):
        return f"{type(given).__name__}:{given}"
    if isinstance(given, enum.Enum):
        return f"{type(given).__qualname__}:{given.name}"
    raise Unkeyable(f"an argument of type {type(given).__qualname__}")


def _described(value: Any, symbols: Symbols) -> Any:
    """What the compiler knows of a value: kind, dtype, sizes, strides, device."""
    if value is None:
        return None
    if isinstance(value, (tuple, list)):
        return [_described(each, symbols) for each in value]
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool, bool, int, float)):
        return symbols.of(value) if not isinstance(value, float) else scalar(value)
    if isinstance(value, torch.device):
        return {"device": symbols.devices.name(value)}
    if not isinstance(value, torch.Tensor):
        # Queues, generators, script objects: their state is in no key.
        raise Unkeyable(f"a value of type {type(value).__qualname__}")
    if is_traceable_wrapper_subclass(value) or value.layout != torch.strided or value.is_quantized:
        raise Unkeyable(f"a tensor of type {type(value).__qualname__}, {value.layout}")
    return {
        "dtype": str(value.dtype),
        "device": symbols.devices.name(value.device),
        "size": [symbols.of(size) for size in value.size()],
        "stride": [symbols.of(step) for step in value.stride()],
        "offset": symbols.of(value.storage_offset()),
        "flags": [value.is_conj(), value.is_neg(), value.is_inference(), value.requires_grad],
    }


def _encode(tree: Any) -> bytes:
    return json.dumps(tree, separators=(",", ":"), sort_keys=True, allow_nan=False).encode()
