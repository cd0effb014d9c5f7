"""Artifacts for static sizes beside the dynamic one: which of them a call launches.

``kiln compile --compile-sizes`` wrote them (``src/exec/by_size.rs`` chooses in the same way);
``compilation/by_size.py`` is the same for graphs of ``torch.compile``.

Invariant: what is chosen takes the shapes of the call and gives what the dynamic one
would, by type and by shape; where nothing does, it is the dynamic one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from . import plan
from .sizes import BrokenArtifact

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .plan import Call, Plan, Tensor
    from .program import Code, Program


class BySize:
    """A program for all sizes, with those for some of them."""

    def __init__(self, dynamic: Program, static: Mapping[int, Program]) -> None:
        """Check that all are one program, compiled for other sizes."""
        kernels = list(dynamic.plan.kernels)
        self.codes: list[Code] = list(dynamic.codes)
        self._dynamic = dynamic
        self.static: dict[int, Program] = {}
        # Where the kernels of each begin among those of all.
        self._first: dict[int, int] = {}
        for size, fixed in static.items():
            why = _misfit(dynamic.plan, fixed.plan)
            if why is not None:
                raise BrokenArtifact(f"size {size}: {why}")
            self._first[size] = len(kernels)
            self.static[size] = fixed
            kernels += fixed.plan.kernels
            self.codes += fixed.codes
        self.plan: Plan = replace(dynamic.plan, kernels=tuple(kernels))

    def size_for(self, shapes: Sequence[Sequence[int]]) -> int | None:
        """Return the static size whose code a call with these inputs runs, if one does."""
        outputs = _outputs(self._dynamic.plan, shapes)
        if outputs is None:
            return None
        sizes = (s for s, fixed in self.static.items() if _outputs(fixed.plan, shapes) == outputs)
        return next(sizes, None)

    def call(self, named: Plan, shapes: Sequence[Sequence[int]]) -> Call:
        """Return what a call launches; where no program takes it the dynamic one says why."""
        size = self.size_for(shapes)
        if size is None:
            return self._dynamic.call(replace(named, kernels=self._dynamic.plan.kernels), shapes)
        fixed, first = self.static[size], self._first[size]
        call = fixed.call(fixed.plan, shapes)
        launches = tuple(replace(each, kernel=first + each.kernel) for each in call.launches)
        return replace(call, launches=launches)


def _outputs(told: Plan, shapes: Sequence[Sequence[int]]) -> list[tuple[int, ...]] | None:
    try:
        return [layout.shape for layout in plan.laid_out(told, shapes)[2]]
    except ValueError:
        return None


def _misfit(dynamic: Plan, fixed: Plan) -> str | None:
    """Say why they are not one program."""

    def kinds(tensors: Sequence[Tensor]) -> list[tuple[str, str, int, bool]]:
        return [(each.kind, each.dtype, len(each.shape), each.updated) for each in tensors]

    if fixed.target != dynamic.target:
        return f"it is for {fixed.target}, the dynamic one for {dynamic.target}"
    same = kinds(dynamic.inputs) == kinds(fixed.inputs)
    if not same or kinds(dynamic.outputs) != kinds(fixed.outputs):
        return "it is of another program than the dynamic one"
    return None
