"""Artifacts of the node's eager compiler, run by PyTorch: on any device, without machine code.

They are the last rung of the node's failure ladder; ``kiln exec`` runs them by the
interpreter (``src/native/interp``), which this agrees with but for the last bits.
Invariant: what was read refers to nothing that it does not have; outputs are memory
of their own, and dense.
"""

from __future__ import annotations

import json
import math
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from . import binding, core_ops, plan
from .launching import DTYPES
from .sizes import BrokenArtifact, read, shape_shown, value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .sizes import Expr

VERSION = 1
GRAPH = "graph.json"
CONSTANTS = "constants.bin"


@dataclass(frozen=True)
class _Value:
    dtype: torch.dtype
    shape: tuple[Expr, ...]


@dataclass(frozen=True)
class _Node:
    name: str
    told: Any
    reads: tuple[int, ...]
    writes: int
    # What nothing reads after it.
    last: tuple[int, ...]


class Eager:
    """A graph as it is: call it with all of its inputs, parameters and buffers first.

    Inputs may lie as they like, on one device of any kind.
    """

    def __init__(
        self, graph: bytes, plan_json: bytes, constants: bytes = b"", signature: bytes | None = None
    ) -> None:
        """Read and check the files."""
        self.plan = plan.read(plan_json)
        self.given = [self.plan.inputs[at] for at in self.plan.given]
        self.names = binding.names_of(self.plan, signature)
        self.named = binding.named(self.plan, self.names)
        try:
            told = json.loads(graph)
            if told["version"] != VERSION:
                raise BrokenArtifact(f"{GRAPH}: version {told['version']}, not {VERSION}")
            self._read(told["program"])
        except BrokenArtifact:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise BrokenArtifact(f"{GRAPH} cannot be read: {error!r}") from error
        self._constants = self._held(constants)
        self._lock = threading.Lock()
        # By device: constants are copied there once.
        self._on: dict[torch.device, dict[int, torch.Tensor]] = {}

    def bind(self, *first: Any) -> BoundEager:
        """Fix inputs, as ``Native.bind`` does."""
        if len(first) != 1 or isinstance(first[0], torch.Tensor):
            if len(first) > len(self.given):
                raise TypeError(f"{len(first)} inputs, at most {len(self.given)}")
            return BoundEager(self, dict(enumerate(first)))
        return BoundEager(self, binding.by_name(self.plan, self.names, first[0]))

    def __call__(self, *tensors: torch.Tensor) -> Any:
        """Run it once; a tensor, or a tuple where the graph has several outputs."""
        symbols, device = self._check(tensors)
        values: dict[int, torch.Tensor] = dict(self._constants_on(device))
        values.update(zip((self._inputs[at] for at in self.plan.given), tensors))
        given = {_memory(each) for each in values.values()}
        for node in self._nodes:
            kind = self._values[node.writes]
            shape = tuple(value(size, symbols) for size in kind.shape)
            reads = [values[each] for each in node.reads]
            step = core_ops.Step(reads, kind.dtype, shape, symbols, device)
            values[node.writes] = core_ops.compute(node.name, node.told, step)
            for each in node.last:
                values.pop(each, None)
        made = []
        for each in self._outputs:
            output = values[each].contiguous()
            if _memory(output) in given:
                # It is a view of what somebody else has.
                output = output.clone()
            given.add(_memory(output))
            made.append(output)
        return made[0] if len(made) == 1 else tuple(made)

    def shown(self, position: int) -> str:
        """Return what an input that is given is called, for messages."""
        tensor = self.named.inputs[self.plan.given[position]]
        return f"{tensor.name} ({tensor.kind})"

    def _read(self, told: dict[str, Any]) -> None:
        self._values = [
            _Value(DTYPES[each["dtype"]], tuple(map(read, each["shape"])))
            for each in told["values"]
        ]
        self._inputs = [int(each["value"]) for each in told["inputs"]]
        self._outputs = [int(each) for each in told["outputs"]]
        if len(self._inputs) != len(self.plan.inputs):
            raise BrokenArtifact(f"{GRAPH}: {len(self._inputs)} inputs, not those of plan.json")
        if len(self._outputs) != len(self.plan.outputs):
            raise BrokenArtifact(f"{GRAPH}: {len(self._outputs)} outputs, not those of plan.json")
        pairs = zip((*self._inputs, *self._outputs), (*self.plan.inputs, *self.plan.outputs))
        for each, tensor in pairs:
            if self._values[each] != _Value(DTYPES[tensor.dtype], tensor.shape):
                raise BrokenArtifact(f"{GRAPH}: {tensor.name} is not that of plan.json")
        defined: set[int] = set()
        for each in self._inputs:
            self._define(defined, each)
        nodes = []
        for each in told["nodes"]:
            op = each["op"]
            ((name, attributes),) = op.items() if isinstance(op, dict) else [(op, None)]
            if not core_ops.known(name, attributes):
                raise BrokenArtifact(f"{GRAPH}: no operation {name} {attributes!r}")
            reads, writes = tuple(map(int, each["reads"])), int(each["writes"])
            if not defined.issuperset(reads):
                raise BrokenArtifact(f"{GRAPH}: {name} reads what is not there")
            self._define(defined, writes)
            nodes.append((name, attributes, reads, writes))
        if not defined.issuperset(self._outputs):
            raise BrokenArtifact(f"{GRAPH}: an output is never computed")
        last = {each: at for at, (_, _, reads, w) in enumerate(nodes) for each in (*reads, w)}
        dead: dict[int, list[int]] = {}
        for each, at in last.items():
            if each not in self._outputs:
                dead.setdefault(at, []).append(each)
        self._nodes = [_Node(*node, tuple(dead.get(at, ()))) for at, node in enumerate(nodes)]

    def _define(self, defined: set[int], each: int) -> None:
        if each in defined or not 0 <= each < len(self._values):
            raise BrokenArtifact(f"{GRAPH}: value {each} is not defined once")
        defined.add(each)

    def _held(self, data: bytes) -> dict[int, torch.Tensor]:
        """Return the constants, by value."""
        found, rest = {}, memoryview(data)
        for each, tensor in zip(self._inputs, self.plan.inputs):
            if tensor.kind != plan.CONSTANT:
                continue
            shape = tuple(value(size, ()) for size in tensor.shape)
            dtype = DTYPES[tensor.dtype]
            size = math.prod(shape) * dtype.itemsize
            if size > len(rest):
                raise BrokenArtifact(f"{CONSTANTS} is too short")
            own = bytearray(rest[:size])
            flat = torch.frombuffer(own, dtype=dtype) if size else torch.empty(0, dtype=dtype)
            found[each], rest = flat.reshape(shape), rest[size:]
        if rest:
            raise BrokenArtifact(f"{CONSTANTS} is too long")
        return found

    def _constants_on(self, device: torch.device) -> dict[int, torch.Tensor]:
        with self._lock:
            if device not in self._on:
                moved = {at: each.to(device) for at, each in self._constants.items()}
                self._on[device] = moved
            return self._on[device]

    def _check(self, tensors: Sequence[Any]) -> tuple[list[int], torch.device]:
        if len(tensors) != len(self.given):
            wanted = ", ".join(
                f"{self.shown(at)} {each.dtype} {shape_shown(each.shape)}"
                for at, each in enumerate(self.given)
            )
            raise TypeError(f"{len(tensors)} inputs, not {len(self.given)}: {wanted}")
        for at, (tensor, told) in enumerate(zip(tensors, self.given)):
            if not isinstance(tensor, torch.Tensor):
                kind = type(tensor).__name__
                raise ValueError(f"input {self.shown(at)} is no tensor but a {kind}")
            if tensor.dtype != DTYPES[told.dtype]:
                wanted = DTYPES[told.dtype]
                raise ValueError(
                    f"input {self.shown(at)} has elements of {tensor.dtype}, not {wanted}"
                )
        symbols, _, _ = plan.laid_out(self.named, [each.shape for each in tensors])
        devices = {each.device for each in tensors}
        if len(devices) > 1:
            raise ValueError(f"inputs are on {', '.join(sorted(map(str, devices)))}: want one")
        return symbols, devices.pop() if devices else torch.get_default_device()


class BoundEager:
    """A graph some of whose inputs are fixed: call it with the others, in their order."""

    def __init__(self, eager: Eager, fixed: dict[int, torch.Tensor]) -> None:
        """Hold the fixed tensors."""
        self.plan = eager.plan
        self._eager = eager
        self._fixed = fixed
        self._open = [at for at in range(len(eager.given)) if at not in fixed]

    def __call__(self, *tensors: torch.Tensor) -> Any:
        """Run it once."""
        if len(tensors) != len(self._open):
            names = ", ".join(map(self._eager.shown, self._open))
            raise TypeError(f"{len(tensors)} inputs, not {len(self._open)}: {names}")
        whole = {**self._fixed, **dict(zip(self._open, tensors))}
        return self._eager(*(whole[at] for at in range(len(whole))))


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
