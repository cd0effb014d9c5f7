"""``robust_compile``: the graph runs, whatever the compiler does.

Invariant: it raises nothing that a compiler raised; the configuration that it was
given stays as it is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .. import report
from .errors import CompilationError, IncompatibleConfigError, TimeoutError  # noqa: A004
from .manager import CompilerManager
from .piecewise import piecewise_compile
from .tracing import restarts, torch_lock

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
    """Compile; step down to eager where that fails, to pieces where it takes too long.

    The last resort is the graph itself. A configuration that means nothing is the
    caller's to mend, and raises.
    """
    manager = compiler_manager or CompilerManager(config)
    options = additional_inductor_config
    try:
        return manager.compile(graph, example_inputs, options, config, runtime_shape=runtime_shape)
    except IncompatibleConfigError:
        raise
    except CompilationError as error:
        report.count("compilation.fell_back")
        report.log.warning("Inductor compilation failed, eager instead: %s", error)
        eager = replace(config, use_inductor=False)
        return manager.compile(graph, example_inputs, options, eager)
    except TimeoutError as error:
        report.count("compilation.fell_back")
        report.log.warning("compilation timeout, by pieces instead: %s", error)
        return _by_pieces(manager, graph, example_inputs, config, options, runtime_shape)
    except Exception as error:
        if restarts(error):
            raise
        report.count("compilation.fell_back")
        report.log.error("unexpected compilation error, not compiled: %r", error)
        return graph


def _by_pieces(
    manager: CompilerManager,
    graph: fx.GraphModule,
    example_inputs: Sequence[Any],
    config: CompilationConfig,
    options: Mapping[str, Any] | None,
    runtime_shape: int | None,
) -> Callable[..., Any]:
    pieces = replace(config, compilation_level="piecewise", fallback=True)
    try:
        with torch_lock():
            traced = manager.trace(graph, example_inputs, pieces)
            with traced.context():
                result = piecewise_compile(manager, traced, pieces, options, runtime_shape)
        return traced.callable(result.run)
    except Exception as error:
        if restarts(error):
            raise
        report.log.error("not compiled by pieces either: %r", error)
        return graph
