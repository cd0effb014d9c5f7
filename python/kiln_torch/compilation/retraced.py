"""A graph from elsewhere than Dynamo, traced once more with fake tensors.

Its parameters become inputs, and where its sizes are not fixed, those of its
inputs become symbols.
Invariant: what is compiled for some sizes is called with those alone; for others,
and where gradients are wanted, the graph itself runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from .. import report
from .traced import Traced

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Retraced(Traced):
    """A graph from elsewhere than Dynamo."""

    def __init__(
        self, graph: fx.GraphModule, example_inputs: Sequence[Any], mode: Any, *, dynamic: bool
    ) -> None:
        """Trace ``graph`` in ``mode``; ``dynamic``: for all sizes that it can be for."""
        self._graph = graph
        lifted = _lifted(graph)
        leaves, self._spec = pytree.tree_flatten(tuple(example_inputs))
        self._tensors = [at for at, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
        self._leaves = leaves
        self._lifted = list(lifted.values())
        self._dynamic = dynamic
        fakes = [_fake(mode, tensor, f"p{at}") for at, tensor in enumerate(self._lifted)]
        fakes += [_fake(mode, leaves[at], f"x{at}", dynamic=dynamic) for at in self._tensors]
        held = len(lifted)

        def flat(*given: torch.Tensor) -> list[Any]:
            state = dict(zip(lifted, given[:held]))
            inputs = self._unflatten(given[held:])
            out = torch.func.functional_call(_copied(graph), state, inputs)
            outputs, self._out_spec = pytree.tree_flatten(out)
            return outputs

        gm = _make_fx(flat, fakes, mode)
        super().__init__(gm, mode, dynamo=False)
        self._needs_grad = any(each.requires_grad for each in self._lifted)
        self._for = {self._signature([leaves[at] for at in self._tensors])}

    def callable(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """Bind the graph's own tensors, and check every new shape."""
        guards = self.guards()

        def call(*args: Any) -> Any:
            leaves, spec = pytree.tree_flatten(args)
            tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
            if spec != self._spec or not self._fits(leaves, tensors, guards):
                report.count("compilation.other_inputs")
                report.once("other inputs", "compiled for other inputs: these run uncompiled")
                return self._graph(*args)
            if torch.is_grad_enabled() and (
                self._needs_grad or any(each.requires_grad for each in tensors)
            ):
                report.once("gradients", "compiled without gradients: runs uncompiled; use no_grad")
                return self._graph(*args)
            outputs = run(*self._lifted, *tensors)
            if not isinstance(outputs, (tuple, list)):
                outputs = [outputs]
            return pytree.tree_unflatten(list(outputs), self._out_spec)

        return call

    def _fits(self, leaves: Sequence[Any], tensors: Sequence[torch.Tensor], guards: str) -> bool:
        fixed = zip(leaves, self._leaves)
        if any(new != old for new, old in fixed if not isinstance(old, torch.Tensor)):
            return False
        signature = self._signature(tensors)
        if signature in self._for:
            return True
        if not self._dynamic:
            return False
        like = self._signature([self._leaves[at] for at in self._tensors])
        if [(len(s), *kind) for s, _, *kind in signature] != [
            (len(s), *kind) for s, _, *kind in like
        ]:
            return False
        if guards:
            from torch.fx.experimental.symbolic_shapes import ShapeEnv

            values = [*self._lifted, *tensors]
            if not ShapeEnv().evaluate_guards_expression(guards, values):
                return False
        elif [s for s, *_ in signature] != [s for s, *_ in like]:
            return False
        self._for.add(signature)
        return True

    def _unflatten(self, tensors: Sequence[Any]) -> Any:
        leaves = list(self._leaves)
        for at, tensor in zip(self._tensors, tensors):
            leaves[at] = tensor
        return pytree.tree_unflatten(leaves, self._spec)

    @staticmethod
    def _signature(tensors: Sequence[torch.Tensor]) -> tuple[Any, ...]:
        return tuple((tuple(t.shape), tuple(t.stride()), t.dtype, t.device) for t in tensors)


def _lifted(graph: fx.GraphModule) -> dict[str, torch.Tensor]:
    """Return all tensors that the graph holds, by name; each once."""
    held = dict(_copied(graph).named_parameters(remove_duplicate=True))
    held.update(_copied(graph).named_buffers(remove_duplicate=True))
    return held


def _copied(graph: fx.GraphModule) -> fx.GraphModule:
    """Return the graph with its plain tensors as buffers; tensors are not copied."""
    copied = fx.GraphModule(graph, graph.graph)
    for node in graph.graph.nodes:
        if node.op == "get_attr" and "." not in str(node.target):
            value = getattr(copied, str(node.target))
            named = str(node.target) in copied._buffers or str(node.target) in copied._parameters
            if isinstance(value, torch.Tensor) and not named:
                delattr(copied, str(node.target))
                copied.register_buffer(str(node.target), value, persistent=False)
    return copied


def _fake(mode: Any, tensor: torch.Tensor, name: str, *, dynamic: bool = False) -> Any:
    from torch._dynamo.source import LocalSource
    from torch.fx.experimental.symbolic_shapes import DimDynamic, StatelessSymbolicContext

    kind = DimDynamic.DUCK if dynamic else DimDynamic.STATIC
    context = StatelessSymbolicContext(dynamic_sizes=[kind] * tensor.dim())
    return mode.from_tensor(tensor, symbolic_context=context, source=LocalSource(name))


def _make_fx(function: Callable[..., Any], fakes: Sequence[Any], mode: Any) -> fx.GraphModule:
    from torch._dispatch.python import enable_python_dispatcher
    from torch.fx.experimental.proxy_tensor import make_fx

    with mode, enable_python_dispatcher():
        return make_fx(function, tracing_mode="real", pre_dispatch=True)(*fakes)
