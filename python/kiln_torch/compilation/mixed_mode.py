"""Mixed execution: what the compiler has no rule for runs uncompiled, the rest is compiled.

Invariant: every node is in exactly one part, in the graph's order; only nodes that
come down to a named operation, and what takes their results apart, run uncompiled.
"""

from __future__ import annotations

import itertools
import operator
from typing import TYPE_CHECKING, Any

from torch import fx
from torch.utils._python_dispatch import TorchDispatchMode

from .. import report
from ..graph import value_of
from .classify import named_operations
from .complexity import calls
from .errors import UnsupportedOpError
from .piecewise import piecewise_compile
from .splitting import SplitStrategy

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from .compiling import Mender
    from .config import CompilationConfig
    from .manager import CompilerManager
    from .piecewise import PiecewiseResult
    from .traced import Traced


def identify_unsupported_ops(graph: fx.GraphModule, error: BaseException) -> list[fx.Node]:
    """Return the nodes that come down to what ``error`` says is not supported, in order."""
    wanted = {_bare(name) for name in named_operations(error)}
    if not wanted:
        return []
    found: dict[fx.Node, None] = {}
    for node in calls(graph):
        takes = node.target is operator.getitem and node.args[0] in found
        if takes or wanted & _operations(node):
            found.setdefault(node)
    return list(found)


def suggest_op_fallback(graph: fx.GraphModule, nodes: Collection[fx.Node]) -> SplitStrategy:
    """Cut ``graph`` where it goes from what is supported to what is not, and back."""
    own = set(nodes)
    parts = [tuple(part) for _, part in itertools.groupby(calls(graph), own.__contains__)]
    names = sorted({str(node.target) for node in nodes if node.target is not operator.getitem})
    return SplitStrategy(tuple(parts), (f"uncompiled: {', '.join(names)}",))


def create_mixed_mode_execution(
    manager: CompilerManager,
    traced: Traced,
    error: BaseException,
    config: CompilationConfig,
    options: Mapping[str, Any],
    runtime_shape: int | None,
    mender: Mender | None,
    deadline: float | None = None,
) -> PiecewiseResult:
    """Compile ``traced``, in its context, but for what ``error`` names.

    ``UnsupportedOpError``: nothing of it is known to be at fault, or nothing is left.
    """
    nodes = identify_unsupported_ops(traced.gm, error)
    if not nodes:
        raise UnsupportedOpError(f"no node is known to be at fault: {error}")
    if len(nodes) == len(calls(traced.gm)):
        raise UnsupportedOpError("nothing of the graph is supported")
    strategy = suggest_op_fallback(traced.gm, nodes)
    report.log.info("mixed: %s", "; ".join(strategy.reasons))
    return piecewise_compile(
        manager,
        traced,
        config,
        options,
        runtime_shape,
        strategy=strategy,
        uncompiled={node.name for node in nodes},
        mender=mender,
        deadline=deadline,
    )


class _Seen(TorchDispatchMode):
    """Notes all operations, those among them that Inductor takes apart with their parts."""

    def __init__(self, parts: Mapping[Any, Any]) -> None:
        super().__init__()
        self._parts = parts
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: Any = (), kwargs: Any = None
    ) -> Any:
        del types
        self.names.add(_bare(str(func)))
        given = kwargs or {}
        if func in self._parts:
            with self:
                made = self._parts[func](*args, **given)
            if made is not NotImplemented:
                return made
        return func(*args, **given)


def _operations(node: fx.Node) -> set[str]:
    """Return the operations of torch's own that a node comes down to in Inductor."""
    own = {_bare(str(node.target))}
    if node.op == "call_module":
        return own
    from torch._inductor.decomposition import select_decomp_table

    args, kwargs = fx.map_arg((node.args, node.kwargs), value_of)
    seen = _Seen(select_decomp_table())
    try:
        with seen:
            if node.op == "call_method":
                getattr(args[0], str(node.target))(*args[1:], **kwargs)
            else:
                node.target(*args, **kwargs)  # type: ignore[operator]
    except Exception as error:
        # What was seen until then counts.
        report.log.debug("%s cannot be run on made-up values: %r", node.name, error)
    return own | seen.names


def _bare(name: str) -> str:
    """``aten.fft.default`` and ``aten.fft`` alike: rules are for all overloads."""
    parts = name.replace("::", ".").split(".")
    return ".".join(parts[:2]) if len(parts) >= 2 else name
