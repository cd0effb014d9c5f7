"""A piece of a program, rebuilt from the node's own description of it.

The node splits programs itself, and a piece is known by what it computes, not by where
it was cut out: what is compiled is made of ``src/native/portable.rs``'s text alone,
which the key covers.

Invariant: an operation is called only as its schema says and only if it changes none of
its inputs; a text that does not hang together is refused, whoever wrote it.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from . import formula
from .program import Program, describe, forget_expressions
from .refused import INCOMPATIBLE, INVALID_INPUT, UNSUPPORTED_OP, Refused, brief

FORMAT = 1
CONSTANT = "constant"
# Exporter's numbers of memory formats and layouts have the same type in a graph.
_MEMORY_FORMAT = "memory_format"
_OPERATION = re.compile(r"(aten|prims)\.(\w+)\.(\w+)")
_DTYPES = {
    "u8": "uint8",
    "i8": "int8",
    "i16": "int16",
    "i32": "int32",
    "i64": "int64",
    "u16": "uint16",
    "f16": "float16",
    "bf16": "bfloat16",
    "f32": "float32",
    "f64": "float64",
    "c32": "complex32",
    "c64": "complex64",
    "c128": "complex128",
    "bool": "bool",
    "f8e4m3": "float8_e4m3fn",
    "f8e5m2": "float8_e5m2",
    "f8e4m3fnuz": "float8_e4m3fnuz",
    "f8e5m2fnuz": "float8_e5m2fnuz",
}
# What a symbol is taken to be while it is traced, if its range allows it: hardly a
# product of other sizes.
_SAMPLE = 97


def rebuild(graph: bytes, constants: bytes, device: str) -> Program:
    """Return the program in ``graph``, on ``device``; ``constants`` is its baked data."""
    try:
        told = json.loads(graph)
        if told["format"] != FORMAT:
            raise Refused(INCOMPATIBLE, f"graph of format {told['format']}, not {FORMAT}")
        return _Rebuilder(told, constants, device).program()
    except Refused:
        raise
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as e:
        raise Refused(INVALID_INPUT, f"the piece's graph does not hang together: {brief(e)}") from e


class _Rebuilder:
    def __init__(self, told: dict[str, Any], constants: bytes, device: str) -> None:
        import torch
        from torch._subclasses.fake_tensor import FakeTensorMode
        from torch.fx.experimental.symbolic_shapes import ShapeEnv

        self.told, self.data = told, memoryview(constants)
        self.device = torch.device(device, 0) if device == "cuda" else torch.device(device)
        self.environment = ShapeEnv(assume_static_by_default=True)
        self.mode = FakeTensorMode(
            allow_fallback_kernels=False, allow_non_fake_inputs=True, shape_env=self.environment
        )
        self.graph = torch.fx.Graph()
        self.taken = set(_sizes(told))
        self.sizes = {
            each["name"]: self._symbol(at, each) for at, each in enumerate(told["symbols"])
        }
        # The nodes of the graph that are symbols: made when the first operation needs one.
        self.symbols: dict[str, Any] = {}
        self.values: list[Any] = []
        self.inputs: list[dict[str, Any]] = []
        self.constants: dict[str, Any] = {}

    def program(self) -> Program:
        import torch

        for at, each in enumerate(self.told["inputs"]):
            self._input(at, each)
        holders = list(self.values)
        fakes = [node.meta["val"] for node in holders]
        for wanted, fake in zip(self.inputs, fakes):
            describe(wanted, fake)
        for each in self.told["nodes"]:
            self._operation(each)
        outputs = [self._output(at, each) for at, each in enumerate(self.told["outputs"])]
        self.graph.output(tuple(outputs))
        self.graph.lint()
        module = torch.fx.GraphModule(torch.nn.Module(), self.graph)
        forget_expressions(fakes)
        described = [
            {"name": f"out{at}", "kind": "user_output", "target": None}
            for at in range(len(outputs))
        ]
        return Program(module, self.inputs, described, fakes, self.constants)

    def _symbol(self, at: int, told: Mapping[str, Any]) -> Any:
        """A size that is known when the piece is called."""
        import sympy
        from torch.utils._sympy.numbers import int_oo
        from torch.utils._traceback import CapturedTraceback

        if not re.fullmatch(r"s\d+", told["name"]):
            raise ValueError(f"a symbol {told['name']!r}")
        least, most = told.get("min"), told.get("max")
        sample = max(_SAMPLE + 6 * at, least or 0)
        sample = sample if most is None else min(sample, most)
        # One that equals another size would be taken for that size, and fixed.
        while sample in self.taken and sample - 1 >= max(least or 0, 2):
            sample -= 1
        self.taken.add(sample)
        symbol = sympy.Symbol(told["name"], positive=True, integer=True)
        self.environment.add_backed_var_to_val(symbol, sample)
        self.environment.constrain_symbol_range(
            symbol,
            compiler_min=-int_oo if least is None else least,
            compiler_max=int_oo if most is None else most,
        )
        self.environment.var_to_stack[symbol] = CapturedTraceback.extract(skip=1)
        return self.environment.create_symintnode(symbol, hint=sample)

    def _input(self, at: int, told: Mapping[str, Any]) -> None:
        import torch

        dtype = _dtype(told["dtype"])
        shape, strides = ([self._size(each) for each in told[of]] for of in ("shape", "strides"))
        with self.mode:
            fake = torch.empty_strided(shape, strides, dtype=dtype, device=self.device)
        is_constant = told["kind"] == CONSTANT
        target = f"constant{at}" if is_constant else None
        if is_constant:
            data = bytearray(self.data[: told["bytes"]])
            self.data = self.data[told["bytes"] :]
            flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
            # Row-major, as it was written.
            tensor = flat.reshape(tuple(fake.shape)).to(self.device)
            self.constants[str(target)] = torch.empty_strided(
                shape, strides, dtype=dtype, device=self.device
            ).copy_(tensor)
        kind = "constant_tensor" if is_constant else str(told["kind"])
        self.inputs.append({"name": f"in{at}", "kind": kind, "target": target})
        self._keep(self.graph.placeholder(f"in{at}"), fake)

    def _operation(self, told: Mapping[str, Any]) -> None:
        import torch
        from torch._dispatch.python import enable_python_dispatcher

        op = _operation(told["op"])
        args, kwargs = self._arguments(op, dict(told["args"]))
        try:
            # With the shape rules that are in Python: in C++ some take a size for the number
            # that it is now.
            with self.mode, enable_python_dispatcher():
                made = op(*_faked(args), **_faked(kwargs))
        except Exception as e:
            raise Refused(UNSUPPORTED_OP, f"{told['op']}: torch here refuses it: {brief(e)}") from e
        node = self.graph.call_function(op, tuple(args), kwargs)
        if isinstance(made, torch.Tensor):
            if told["outputs"] != 1:
                raise ValueError(f"{told['op']} gives one tensor, not {told['outputs']}")
            self._keep(node, made)
            return
        _describe_node(node, made)
        # Numbers among the results are no values of a graph.
        results = list(made) if isinstance(made, (tuple, list)) else []
        tensors = [at for at, each in enumerate(results) if isinstance(each, torch.Tensor)]
        if len(tensors) != told["outputs"]:
            raise ValueError(f"{told['op']} gives {len(tensors)} tensors, not {told['outputs']}")
        for at in tensors:
            self._keep(self.graph.call_function(operator.getitem, (node, at)), results[at])

    def _output(self, at: int, told: Mapping[str, Any]) -> Any:
        """The value, dense: that is how pieces leave what others read."""
        import torch

        node = self.values[told["value"]]
        fake = node.meta["val"]
        wanted = [self._size(each) for each in told["shape"]]
        if fake.dtype != _dtype(told["dtype"]) or not _same(fake.shape, wanted):
            found = f"{fake.dtype} {list(fake.shape)}, not {told['dtype']} {told['shape']}"
            raise Refused(UNSUPPORTED_OP, f"output {at} is {found} to torch here")
        dense, step = [], 1
        for size in reversed(fake.shape):
            dense.append(step)
            step = step * size
        if _same(fake.stride(), reversed(dense)):
            return node
        with self.mode:
            made = fake.clone(memory_format=torch.contiguous_format)
        op = torch.ops.aten.clone.default
        copied = self.graph.call_function(op, (node,), {"memory_format": torch.contiguous_format})
        return _describe_node(copied, made)

    def _arguments(self, op: Any, given: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """As the schema orders them; what is not given is as it says."""
        known = {argument.name for argument in op._schema.arguments}
        if unknown := given.keys() - known:
            raise Refused(UNSUPPORTED_OP, f"{op} has no argument {sorted(unknown)[0]!r} here")
        positional = [each for each in op._schema.arguments if not each.kwarg_only]
        last = max((at for at, each in enumerate(positional) if each.name in given), default=-1)
        args = [self._argument(op, each, given) for each in positional[: last + 1]]
        named = {
            each.name: self._argument(op, each, given)
            for each in op._schema.arguments
            if each.kwarg_only and each.name in given
        }
        return args, named

    def _argument(self, op: Any, wanted: Any, given: Mapping[str, Any]) -> Any:
        if wanted.name in given:
            return self._value(wanted.name, given[wanted.name])
        if wanted.has_default_value():
            return wanted.default_value
        raise Refused(UNSUPPORTED_OP, f"{op} needs an argument {wanted.name!r} here")

    def _value(self, name: str, told: Any) -> Any:
        if told == "none":
            return None
        if told == "device":
            return self.device
        ((kind, value),) = told.items()
        if kind == "tensor":
            return self.values[value]
        if kind == "tensors":
            return [None if each is None else self.values[each] for each in value]
        if kind == "int":
            return self._number(value)
        if kind == "ints":
            return [self._number(each) for each in value]
        if kind == "float":
            return float(value)
        if kind == "floats":
            return [float(each) for each in value]
        if kind == "dtype":
            return _dtype(value)
        if kind == "layout":
            return _layout(name, value)
        if kind in ("bool", "bools", "string"):
            return value
        raise ValueError(f"an argument of kind {kind!r}")

    def _size(self, told: int | str) -> Any:
        """A size as torch computes with it."""
        if isinstance(told, int):
            return told
        return formula.read(told, self.sizes, lambda function, *args: function(*args))

    def _number(self, told: int | str) -> Any:
        """A size as an argument: computed in the graph, of its inputs' sizes."""
        if isinstance(told, int):
            return told
        return formula.read(told, _Lazy(self), self._computed)

    def _computed(self, function: Any, *args: Any) -> Any:
        made = function(*_faked(args))
        if isinstance(made, int):
            return made
        return _describe_node(self.graph.call_function(function, args), made)

    def symbol(self, name: str) -> Any:
        """The node that is a symbol: read off the first input that decides it."""
        import torch

        if name in self.symbols:
            return self.symbols[name]
        wanted = self.sizes[name].node.expr
        for node in self.values[: len(self.inputs)]:
            for dim, size in enumerate(node.meta["val"].shape):
                found = size.node.expr if isinstance(size, torch.SymInt) else None
                if found is None or found.free_symbols != {wanted}:
                    continue
                scale = found.coeff(wanted, 1)
                offset = found - scale * wanted
                if not (scale.is_Integer and offset.is_Integer and scale > 0):
                    continue
                op = torch.ops.aten.sym_size.int
                read = _describe_node(self.graph.call_function(op, (node, dim)), size)
                if offset != 0:
                    read = self._computed(operator.sub, read, int(offset))
                if scale != 1:
                    read = self._computed(operator.floordiv, read, int(scale))
                self.symbols[name] = read
                return read
        raise Refused(UNSUPPORTED_OP, f"no input's shape says what {name!r} is")

    def _keep(self, node: Any, fake: Any) -> None:
        self.values.append(_describe_node(node, fake))


# What has numbers that are no sizes.
_NO_SIZES = ("tensor", "tensors", "value", "bytes", "format")


def _sizes(told: Any) -> Iterator[int]:
    """All whole numbers that are, or may be, sizes: not the numbers of values."""
    if isinstance(told, int):
        yield told
    elif isinstance(told, list):
        for each in told:
            yield from _sizes(each)
    elif isinstance(told, dict):
        for name, each in told.items():
            if name not in _NO_SIZES:
                yield from _sizes(each)


class _Lazy(Mapping[str, Any]):
    """Symbols as nodes, made when they are asked for."""

    def __init__(self, of: _Rebuilder) -> None:
        self.of = of

    def __getitem__(self, name: str) -> Any:
        return self.of.symbol(name)

    def __iter__(self) -> Any:
        return iter(self.of.sizes)

    def __len__(self) -> int:
        return len(self.of.sizes)


def _operation(name: str) -> Any:
    import torch

    parts = _OPERATION.fullmatch(name)
    packet = parts and getattr(getattr(torch.ops, parts[1]), parts[2], None)
    op = packet and getattr(packet, parts[3], None)
    if not isinstance(op, torch._ops.OpOverload):
        raise Refused(UNSUPPORTED_OP, f"torch here has no operation {name!r}")
    if op._schema.is_mutable:
        raise Refused(UNSUPPORTED_OP, f"{name} changes its inputs: no piece may")
    return op


def _dtype(name: str) -> Any:
    import torch

    found = getattr(torch, _DTYPES[name], None)
    if found is None:
        raise Refused(UNSUPPORTED_OP, f"torch here has no elements of {name}")
    return found


def _layout(name: str, number: int) -> Any:
    from torch._export.serde import serialize

    formats = serialize._SERIALIZE_TO_TORCH_MEMORY_FORMAT
    layouts = serialize._SERIALIZE_TO_TORCH_LAYOUT
    return (formats if name == _MEMORY_FORMAT else layouts)[number]


def _describe_node(node: Any, value: Any) -> Any:
    # standalone_compile of torch 2.11 looks for the shapes' environment in the second.
    node.meta["val"] = node.meta["example_value"] = value
    return node


def _faked(given: Any) -> Any:
    """The values behind nodes."""
    import torch

    if isinstance(given, torch.fx.Node):
        return given.meta["val"]
    if isinstance(given, (list, tuple)):
        return [_faked(each) for each in given]
    if isinstance(given, dict):
        return {name: _faked(each) for name, each in given.items()}
    return given


def _same(found: Sequence[Any], wanted: Any) -> bool:
    """Whether sizes are the same ones whatever the symbols are: no guard comes of it."""
    import sympy
    import torch

    def expression(size: Any) -> Any:
        return size.node.expr if isinstance(size, torch.SymInt) else sympy.Integer(size)

    pairs = list(zip(found, wanted := list(wanted)))
    same = (sympy.expand(expression(a) - expression(b)) == 0 for a, b in pairs)
    return len(found) == len(wanted) and all(same)
