"""What is given to a graph that PyTorch runs: checked, bound, named in messages.

Invariant: an input that does not fit is refused before anything runs, under the name that
its program has for it; so is one that lies in memory of another one that is written to.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch

from . import apart, binding, plan
from .launching import DTYPES
from .sizes import shape_shown

if TYPE_CHECKING:
    from collections.abc import Sequence


class TorchGraph(ABC):
    """A graph as it is: call it with all of its inputs, parameters and buffers first.

    Inputs may lie as they like, on one device of any kind.
    """

    def __init__(self, plan_json: bytes, signature: bytes | None) -> None:
        """Read what it takes and gives."""
        self.plan = plan.read(plan_json)
        self.given = [self.plan.inputs[at] for at in self.plan.given]
        self.names = binding.names_of(self.plan, signature)
        self.named = binding.named(self.plan, self.names)

    @abstractmethod
    def __call__(self, *tensors: torch.Tensor) -> Any:
        """Run it once; a tensor, or a tuple where the graph has several outputs."""

    def bind(self, *first: Any) -> BoundGraph:
        """Fix inputs, as ``Native.bind`` does."""
        if len(first) != 1 or isinstance(first[0], torch.Tensor):
            if len(first) > len(self.given):
                raise TypeError(f"{len(first)} inputs, at most {len(self.given)}")
            return BoundGraph(self, dict(enumerate(first)))
        return BoundGraph(self, binding.by_name(self.plan, self.names, first[0]))

    def shown(self, position: int) -> str:
        """Return what an input that is given is called, for messages."""
        tensor = self.named.inputs[self.plan.given[position]]
        return f"{tensor.name} ({tensor.kind})"

    def check(self, tensors: Sequence[Any]) -> tuple[list[int], torch.device]:
        """Return the sizes that the inputs have for the open dimensions, and their device."""
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
        pair = apart.among(tensors, [each.updated for each in self.given])
        if pair is not None:
            raise apart.refusal(pair, self.shown(pair.written), self.shown(pair.other))
        return symbols, devices.pop() if devices else torch.get_default_device()


class BoundGraph:
    """A graph some of whose inputs are fixed: call it with the others, in their order."""

    def __init__(self, graph: TorchGraph, fixed: dict[int, torch.Tensor]) -> None:
        """Hold the fixed tensors."""
        self.plan = graph.plan
        self._graph = graph
        self._fixed = fixed
        self._open = [at for at in range(len(graph.given)) if at not in fixed]
        written = [each for at, each in fixed.items() if graph.given[at].updated]
        self._initial = [(e, e.detach().clone()) for e in written if isinstance(e, torch.Tensor)]

    def reset(self) -> None:
        """Make the fixed inputs that runs have changed what they were when they were fixed."""
        with torch.no_grad():
            for mine, was in self._initial:
                mine.copy_(was)

    def __call__(self, *tensors: torch.Tensor) -> Any:
        """Run it once."""
        if len(tensors) != len(self._open):
            names = ", ".join(map(self._graph.shown, self._open))
            raise TypeError(f"{len(tensors)} inputs, not {len(self._open)}: {names}")
        whole = {**self._fixed, **dict(zip(self._open, tensors))}
        return self._graph(*(whole[at] for at in range(len(whole))))


def owned(outputs: Sequence[torch.Tensor], given: Sequence[torch.Tensor]) -> Any:
    """Return dense outputs in memory of their own: one, or a tuple of several."""
    taken = {_memory(each) for each in given}
    made = []
    for each in outputs:
        output = each.contiguous()
        if _memory(output) in taken:
            # It is a view of what somebody else has.
            output = output.clone()
        taken.add(_memory(output))
        made.append(output)
    return made[0] if len(made) == 1 else tuple(made)


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
