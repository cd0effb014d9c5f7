"""A stitched whole of which Inductor compiled at least one piece, over torch tensors.

Each piece runs by itself, in the stitching's order; ``graphed`` records all of them
as one CUDA graph.

Invariant: no piece runs unless all inputs are what the whole takes, and what a piece
leaves has the type and the sizes that the stitching says; all memory is torch's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from . import plan
from .launching import DTYPES
from .native import Graphed
from .sizes import BrokenArtifact, shape_shown, value

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .stitching import Step, Stitching


class Mixed:
    """A stitched whole: call it with all of its inputs, parameters and buffers first."""

    def __init__(
        self, told: Stitching, pieces: Sequence[Callable[..., Any]], names: Sequence[str]
    ) -> None:
        """Take callables of the pieces; names are for messages."""
        self._told, self._pieces, self._names = told, pieces, names
        self.plan = told.whole
        tensors = (*self.plan.inputs, *self.plan.outputs, *told.values)
        unknown = {each.dtype for each in tensors} - DTYPES.keys()
        if unknown:
            raise BrokenArtifact(f"stitching.json: element types {sorted(unknown)}")

    def graphed(self, *example: torch.Tensor) -> Graphed:
        """Record one run as a CUDA graph, to replay for inputs of the same shapes."""
        return Graphed(self, example)

    def __call__(self, *tensors: torch.Tensor) -> Any:
        """Run once, on torch's current stream."""
        symbols, outputs = self._check(tensors)
        given = dict(zip(self.plan.given, tensors))
        values: dict[int, torch.Tensor] = {}
        results: dict[int, torch.Tensor] = {}
        for at, step in enumerate(self._told.steps):
            takes = zip(step.args, self._told.pieces[step.piece].takes)
            args = [
                given[where] if kind == "input" else values[where]
                for (kind, where), spec in takes
                if not spec.constant
            ]
            found = self._pieces[step.piece](*args)
            found = found if isinstance(found, (tuple, list)) else (found,)
            for result, tensor in zip(step.results, self._left(at, step, found, symbols)):
                values[result] = tensor
                place = self._told.values[result].memory
                if place.base == "output":
                    results[value(place.at, ())] = tensor
            # What nobody reads any more is torch's to use again.
            values = {each: t for each, t in values.items() if self._told.values[each].read > at}
        for copy in self._told.copies:
            kind, where = copy.source
            if kind == "input":
                results[copy.output] = given[where].clone(memory_format=torch.contiguous_format)
            else:
                results[copy.output] = results[
                    value(self._told.values[where].memory.at, ())
                ].clone()
        made = tuple(results[at] for at in range(len(outputs)))
        return made[0] if len(made) == 1 else made

    def _check(self, tensors: Sequence[Any]) -> tuple[list[int], tuple[plan.Layout, ...]]:
        wanted = [self.plan.inputs[at] for at in self.plan.given]
        if len(tensors) != len(wanted):
            raise TypeError(f"{len(tensors)} inputs, not {len(wanted)}")
        for tensor, told in zip(tensors, wanted):
            if not isinstance(tensor, torch.Tensor) or tensor.dtype != DTYPES[told.dtype]:
                got = getattr(tensor, "dtype", type(tensor).__name__)
                described = f"{told.name} ({told.kind})"
                raise ValueError(f"input {described} is {got}, not {DTYPES[told.dtype]}")
        symbols, inputs, outputs = plan.laid_out(self.plan, [each.shape for each in tensors])
        for tensor, told, layout in zip(tensors, wanted, inputs):
            steps = zip(tensor.shape, tensor.stride(), layout.strides)
            if 0 not in tensor.shape and any(n > 1 and own != want for n, own, want in steps):
                strides = f"{list(tensor.stride())}, not {list(layout.strides)}"
                raise ValueError(f"input {told.name} ({told.kind}) has strides {strides}")
        return symbols, outputs

    def _left(
        self, at: int, step: Step, found: Sequence[Any], symbols: Sequence[int]
    ) -> list[torch.Tensor]:
        """Return what a piece left, dense, as the next one takes it."""
        where = f"{self._names[step.piece]}, call {at}"
        if len(found) != len(step.results):
            raise BrokenArtifact(f"{where}: it gives {len(found)} tensors, not {len(step.results)}")
        for result, tensor in zip(step.results, found):
            told = self._told.values[result]
            shape = tuple(value(each, symbols) for each in told.shape)
            if tuple(tensor.shape) != shape or tensor.dtype != DTYPES[told.dtype]:
                got = f"{tensor.dtype} {list(tensor.shape)}"
                wanted = f"{told.dtype} {shape_shown(shape)}"
                raise BrokenArtifact(f"{where}: it gives {got} for value {result}, not {wanted}")
        return [tensor.contiguous() for tensor in found]
