"""The function that Inductor generated for a graph, without the layers around it.

AOTAutograd wraps it to replay aliases and writes, to detach, to switch gradients
and autocast; a piece that needs none of that pays for all of it at each call.
Invariant: only a function around which every layer does nothing (gradients are
off) is given out; what is not known to be so keeps its layers.
"""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .. import report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import fx


class Runnable:
    """A compiled graph: called with its inputs, or, through ``boxed``, with a list of them."""

    __slots__ = ("boxed", "run")

    def __init__(self, run: Callable[..., Any], boxed: Callable[[list[Any]], Any] | None) -> None:
        """``boxed``: the same, where gradients are off and ``run`` was called before."""
        self.run = run
        self.boxed = boxed

    def __call__(self, *args: Any) -> Any:
        """Run it, with all its layers."""
        return self.run(*args)


@dataclass
class Seen:
    """The parts of what was compiled or loaded."""

    # Inductor's results, and AOTAutograd's layers with what they know of the graph.
    graphs: list[Any] = field(default_factory=list)
    layers: list[tuple[Any, Any]] = field(default_factory=list)


_watching = threading.local()
_install = threading.Lock()


@contextlib.contextmanager
def watched() -> Iterator[Seen]:
    """See the parts of what this thread compiles or loads meanwhile."""
    _installed()
    seen, before = Seen(), getattr(_watching, "seen", None)
    _watching.seen = seen
    try:
        yield seen
    finally:
        _watching.seen = before


def generated(seen: Seen, gm: fx.GraphModule) -> Callable[[list[Any]], Any] | None:
    """Return the generated function of ``gm`` if no layer around it does anything."""
    try:
        (graph,), ((layer, told),) = seen.graphs, seen.layers
        if _does_nothing(layer, told, gm):
            return graph.current_callable
    except (AttributeError, TypeError, ValueError) as error:
        # Several parts, or another torch's: as it is called by everybody.
        report.log.debug("called with all layers: %r", error)
    report.count("compilation.layered")
    return None


def _does_nothing(layer: Any, told: Any, gm: fx.GraphModule) -> bool:
    inputs = sum(node.op == "placeholder" for node in gm.graph.nodes)
    (output,) = (node for node in gm.graph.nodes if node.op == "output")
    outputs = output.args[0]
    count = len(outputs) if isinstance(outputs, (tuple, list)) else 1
    return not (
        layer.trace_joint
        or layer.disable_amp
        or layer.indices_of_inps_to_detach
        # Fewer: one input stands for several.
        or len(told.input_info) != inputs
        or len(told.output_info) != count
        or told.num_mutated_inp_runtime_indices
        or told.mutated_graph_handled_indices_seen_by_autograd
        or told.num_outputs_aliased
        or told.num_intermediate_bases
        or told.dynamic_outputs
        or told.grad_enabled_mutation is not None
        or told.is_rng_op_functionalized
        or told.tokens
        or any(type(each).__name__ != "PlainTensorMeta" for each in told.subclass_inp_meta)
    )


def _installed() -> None:
    """Have torch's own steps say what they make; they do what they did."""
    from torch._functorch._aot_autograd.runtime_wrappers import RuntimeWrapper
    from torch._inductor.output_code import CompiledFxGraph

    with _install:
        if hasattr(RuntimeWrapper.post_compile, "kiln"):
            return
        wrap: Any = RuntimeWrapper.post_compile
        finish: Any = CompiledFxGraph.post_compile

        def wrapping(self: Any, *args: Any, **kwargs: Any) -> Any:
            if (seen := getattr(_watching, "seen", None)) is not None:
                seen.layers.append((self, kwargs.get("runtime_metadata")))
            return wrap(self, *args, **kwargs)

        def finishing(self: Any, *args: Any, **kwargs: Any) -> Any:
            seen = getattr(_watching, "seen", None)
            if seen is not None and not any(each is self for each in seen.graphs):
                seen.graphs.append(self)
            return finish(self, *args, **kwargs)

        finishing.kiln = wrapping.kiln = True  # pyrefly: ignore
        CompiledFxGraph.post_compile = finishing
        RuntimeWrapper.post_compile = wrapping
