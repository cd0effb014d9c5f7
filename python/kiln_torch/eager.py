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

from . import core_ops, plan
from .graph_inputs import TorchGraph, owned
from .launching import DTYPES
from .sizes import BrokenArtifact, read, value

if TYPE_CHECKING:
    from .sizes import Expr

# Those that are read; the later one is that of programs that change some of their inputs.
VERSIONS = (1, 2)
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


class Eager(TorchGraph):
    """A core program, run by torch's own operations."""

    def __init__(
        self, graph: bytes, plan_json: bytes, constants: bytes = b"", signature: bytes | None = None
    ) -> None:
        """Read and check the files."""
        super().__init__(plan_json, signature)
        try:
            told = json.loads(graph)
            if told["version"] not in VERSIONS:
                raise BrokenArtifact(f"{GRAPH}: version {told['version']}, not {VERSIONS[-1]}")
            self._read(told["program"])
        except BrokenArtifact:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise BrokenArtifact(f"{GRAPH} cannot be read: {error!r}") from error
        self._constants = self._held(constants)
        self._lock = threading.Lock()
        # By device: constants are copied there once.
        self._on: dict[torch.device, dict[int, torch.Tensor]] = {}

    def __call__(self, *tensors: torch.Tensor) -> Any:
        """Run it once; a tensor, or a tuple where the graph has several outputs."""
        symbols, device = self.check(tensors)
        values: dict[int, torch.Tensor] = dict(self._constants_on(device))
        values.update(zip((self._inputs[at] for at in self.plan.given), tensors))
        given = [*values.values()]
        for node in self._nodes:
            kind = self._values[node.writes]
            shape = tuple(value(size, symbols) for size in kind.shape)
            reads = [values[each] for each in node.reads]
            step = core_ops.Step(reads, kind.dtype, shape, symbols, device)
            values[node.writes] = core_ops.compute(node.name, node.told, step)
            for each in node.last:
                values.pop(each, None)
        count = len(self.plan.outputs)
        found = owned([values[each] for each in self._outputs[:count]], given)
        left = [(at, values[each]) for at, each in zip(self._updates, self._outputs[count:])]
        # Of what one input is left with another may be a view.
        left = [(at, each.clone()) for at, each in left]
        with torch.no_grad():
            for at, each in left:
                tensors[self.plan.given.index(at)].copy_(each)
        return found

    def _read(self, told: dict[str, Any]) -> None:
        self._values = [
            _Value(DTYPES[each["dtype"]], tuple(map(read, each["shape"])))
            for each in told["values"]
        ]
        self._inputs = [int(each["value"]) for each in told["inputs"]]
        self._outputs = [int(each) for each in told["outputs"]]
        if len(self._inputs) != len(self.plan.inputs):
            raise BrokenArtifact(f"{GRAPH}: {len(self._inputs)} inputs, not those of plan.json")
        self._updates = [int(each) for each in told.get("updates", ())]
        updated = [at for at, each in enumerate(self.plan.inputs) if each.updated]
        if self._updates != updated or not set(updated).issubset(self.plan.given):
            raise BrokenArtifact(f"{GRAPH}: it changes other inputs than plan.json says")
        if len(self._outputs) != len(self.plan.outputs) + len(updated):
            raise BrokenArtifact(f"{GRAPH}: {len(self._outputs)} outputs, not those of plan.json")
        left = [self.plan.inputs[at] for at in updated]
        pairs = zip((*self._inputs, *self._outputs), (*self.plan.inputs, *self.plan.outputs, *left))
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
