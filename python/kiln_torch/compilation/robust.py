"""``robust_compile``: the graph runs, whatever the compiler does.

Invariant: it raises nothing that a compiler raised; the configuration that it was
given stays as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .attempted import Whole
from .manager import CompilerManager
from .recovery import ErrorHandler

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import fx

    from .config import CompilationConfig


def robust_compile(
    graph: fx.GraphModule,
    example_inputs: Sequence[Any],
    config: CompilationConfig,
    compiler_manager: CompilerManager | None = None,
    additional_inductor_config: Mapping[str, Any] | None = None,
    runtime_shape: int | None = None,
) -> Callable[..., Any]:
    """Compile; where that fails, go down the failure ladder (``ladder.py``).

    What stands in for what was asked for is a ``Fallback``, which says so; the last
    resort is the graph itself. What is no graph raises ``ArgumentError``.
    """
    manager = compiler_manager or CompilerManager(config)
    handler = ErrorHandler(manager)
    work = Whole(
        manager,
        graph,
        example_inputs,
        config,
        additional_inductor_config,
        runtime_shape,
        mender=handler,
    )
    return handler.compile(work)
