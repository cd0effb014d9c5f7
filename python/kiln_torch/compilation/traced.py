"""A graph as compilers take it: no tensors of its own, and all sizes known to an environment.

Invariant: what a compile assumed of the sizes is told (``guards``), and is asked
for (``admits``) before its result is used for another graph.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from torch._guards import TracingContext, tracing

from .. import standalone
from ..graph import value_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import fx


class Traced:
    """A graph with fake inputs, in a shape environment."""

    def __init__(
        self,
        gm: fx.GraphModule,
        mode: Any,
        *,
        dynamo: bool,
        examples: Sequence[Any] | None = None,
    ) -> None:
        """Take ``gm``, all of whose inputs have values of ``mode``."""
        self.gm = gm
        self.mode = mode
        # Dynamo checks sizes itself, by guards on the inputs that are sizes.
        self.dynamo = dynamo
        self.inputs = [value_of(n) for n in gm.graph.nodes if n.op == "placeholder"]
        # What Dynamo's own way to Inductor takes.
        self.examples = examples
        self._outer: Any = None

    @property
    def checked(self) -> list[Any]:
        """The inputs on whose sizes guards can be checked where it is loaded."""
        return standalone.symbolic_sizes(self.gm) if self.dynamo else self.inputs

    @property
    def fixed(self) -> bool:
        """Whether all sizes are numbers, so that no guards are needed."""
        return not any(map(_symbolic, self.inputs))

    @property
    def needs_gradients(self) -> bool:
        """Whether its result is to be differentiated."""
        tensors = [each for each in self.inputs if isinstance(each, torch.Tensor)]
        return torch.is_grad_enabled() and any(each.requires_grad for each in tensors)

    @contextlib.contextmanager
    def context(self) -> Iterator[None]:
        """Work on it: in Dynamo's tracing context, or in one of its own."""
        context = TracingContext.try_get()
        if context is None or not same_sizes(context.fake_mode, self.mode):
            with tracing(TracingContext(self.mode)), torch.no_grad():
                yield
            return
        # Dynamo has another mode for backends by now, over the same sizes.
        before, context.fake_mode = context.fake_mode, self.mode
        self._outer = before
        try:
            yield
        finally:
            context.fake_mode = before

    @contextlib.contextmanager
    def as_given(self) -> Iterator[list[Any]]:
        """Work on it as Dynamo gave it, whole; a part of it is as in ``context``."""
        context = TracingContext.get()
        if self.examples is None or self._outer is None:
            yield self.inputs
            return
        before, context.fake_mode = context.fake_mode, self._outer
        try:
            yield list(self.examples)
        finally:
            context.fake_mode = before

    def guards(self) -> str:
        """Return what must hold of the sizes for what was compiled in ``context``."""
        environment = self.mode.shape_env
        sizes = self.checked
        if not any(_symbolic(each) for each in sizes):
            return ""
        if self.dynamo:
            kept = environment.get_pruned_guards(sizes)
            return environment.produce_guards_expression(placeholders=sizes, guards=kept) or ""
        return environment.produce_guards_expression(placeholders=sizes) or ""

    def admits(self, guards: str) -> bool:
        """Whether ``guards`` hold for this graph; if so they are its own from now on."""
        if not guards:
            return True
        environment = self.mode.shape_env
        sizes = self.checked
        now = [_hinted(size) for size in sizes]
        if not environment.evaluate_guards_expression(guards, now):
            return False
        # Again with the symbols: what is assumed becomes a guard when it is asked for.
        return bool(environment.evaluate_guards_expression(guards, sizes))

    def piece(self, gm: fx.GraphModule) -> Traced:
        """Return a part of it, in the same environment."""
        return Traced(gm, self.mode, dynamo=self.dynamo)

    def callable(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """Return what its caller calls, of ``run``, which takes all inputs of ``gm``."""
        return run


def same_sizes(one: Any, other: Any) -> bool:
    """Whether two fake modes have the sizes in common."""
    return one is other or (one is not None and one.shape_env is other.shape_env is not None)


def _symbolic(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        numbers = (*value.shape, *value.stride(), value.storage_offset())
        return any(isinstance(number, torch.SymInt) for number in numbers)
    return isinstance(value, torch.SymInt)


def _hinted(value: Any) -> Any:
    """Return a stand-in of the size that ``value`` has now."""
    if isinstance(value, torch.SymInt):
        return standalone.hints([value])[0]
    if not isinstance(value, torch.Tensor):
        return value

    def now(number: Any) -> int:
        return standalone.hints([number])[0] if isinstance(number, torch.SymInt) else number

    size, stride = [now(s) for s in value.shape], [now(s) for s in value.stride()]
    return torch.empty_strided(size, stride, dtype=value.dtype, device="meta")
