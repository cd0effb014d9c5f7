"""Artifacts of the node's eager compiler that only PyTorch can run: operations as it has them.

The node writes them where its own interpreter does not know all of a graph
(``src/native/portable.rs``). Invariant: an operation is called only as its schema says,
and only if it changes none of its inputs; constants are copied to a device once.
"""

from __future__ import annotations

import threading
from typing import Any

import torch

from .graph_inputs import TorchGraph, owned
from .sizes import BrokenArtifact
from .worker.rebuilt import rebuild
from .worker.refused import Refused

GRAPH = "portable.json"


class Foreign(TorchGraph):
    """A graph of PyTorch's operations."""

    def __init__(
        self, graph: bytes, plan_json: bytes, constants: bytes = b"", signature: bytes | None = None
    ) -> None:
        """Read and check the files."""
        super().__init__(plan_json, signature)
        self._files = (graph, constants)
        self._lock = threading.Lock()
        # By kind of device: what is open is told by the inputs of each call.
        self._on: dict[torch.device, tuple[Any, list[torch.Tensor | None]]] = {}
        self._rebuilt(torch.device("cpu"))

    def __call__(self, *tensors: torch.Tensor) -> Any:
        """Run it once; a tensor, or a tuple where the graph has several outputs."""
        _, device = self.check(tensors)
        module, constants = self._rebuilt(device)
        given = iter(tensors)
        inputs = [next(given) if each is None else each for each in constants]
        return owned(module(*inputs), inputs)

    def _rebuilt(self, device: torch.device) -> tuple[Any, list[torch.Tensor | None]]:
        with self._lock:
            if device not in self._on:
                try:
                    program = rebuild(*self._files, device.type)
                except Refused as error:
                    raise BrokenArtifact(f"{GRAPH}: {error}") from error
                held = [
                    program.constants[str(each["target"])].to(device)
                    if each["kind"] == "constant_tensor"
                    else None
                    for each in program.inputs
                ]
                wanted = [at for at, each in enumerate(held) if each is None]
                if wanted != list(self.plan.given) or len(program.outputs) != len(
                    self.plan.outputs
                ):
                    raise BrokenArtifact(
                        f"{GRAPH}: its inputs or outputs are not those of plan.json"
                    )
                self._on[device] = (program.module, held)
            return self._on[device]
