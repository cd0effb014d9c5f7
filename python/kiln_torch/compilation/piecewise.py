"""Piecewise compilation: split, compile the pieces at once, stitch, check.

Invariant: what is given out computes what the graph computes, checked piece by piece
and as a whole where ``validate`` says so.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .. import report
from . import checking
from .compiling import Compiling
from .errors import CompilationError
from .splitting import analyze_graph_for_splitting, split_graph_into_pieces
from .stitching import create_piecewise_callable, create_split_graph_module

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from .compiling import Mender, PieceResult
    from .config import CompilationConfig
    from .manager import CompilerManager
    from .splitting import SplitItem, SplitStrategy
    from .traced import Traced


@dataclass(frozen=True)
class PiecewiseResult:
    """A graph compiled by pieces."""

    run: Callable[..., Any]
    strategy: SplitStrategy
    items: tuple[SplitItem, ...]
    pieces: tuple[PieceResult, ...]
    wall_seconds: float
    parallel_efficiency: float


def piecewise_compile(
    manager: CompilerManager,
    traced: Traced,
    config: CompilationConfig,
    options: Mapping[str, Any] | None = None,
    runtime_shape: int | None = None,
    *,
    strategy: SplitStrategy | None = None,
    uncompiled: Collection[str] = (),
    mender: Mender | None = None,
    deadline: float | None = None,
) -> PiecewiseResult:
    """Compile ``traced``, in its context, by pieces.

    ``strategy``: where to cut, where that is not to be found out; ``uncompiled``: nodes
    of which no piece is compiled; ``mender``: for pieces that fail, which else run
    as they are; ``deadline``: on the monotonic clock, for all compiles in other processes.
    """
    strategy = strategy or analyze_graph_for_splitting(traced.gm, config)
    items = split_graph_into_pieces(traced.gm, strategy)
    if not items:
        raise CompilationError("the graph computes nothing: there is nothing to split")
    stitching = create_split_graph_module(traced.gm, items)
    started = time.monotonic()
    compiling = Compiling(
        manager,
        traced,
        items,
        config,
        options,
        runtime_shape,
        frozenset(uncompiled),
        mender,
        deadline,
    )
    compiling.run()
    wall = time.monotonic() - started
    run = create_piecewise_callable(stitching, compiling.compiled)
    efficiency = manager.performance_monitor.record_piecewise_compilation_complete(
        tuple(each.compile_seconds for each in compiling.results if each.compile_seconds),
        wall,
        config.parallel_compiles,
    )
    if config.validate:
        validate_piecewise_execution(manager, traced, items, compiling, run)
    return PiecewiseResult(run, strategy, tuple(items), tuple(compiling.results), wall, efficiency)


def validate_piecewise_execution(
    manager: CompilerManager,
    traced: Traced,
    items: Sequence[SplitItem],
    compiling: Compiling,
    run: Callable[..., Any],
) -> None:
    """Run each distinct piece, then the whole; what a wrong piece stored is removed."""
    seen: set[str] = set()
    for item, result in zip(items, compiling.results):
        if result.key in seen and result.key:
            continue
        seen.add(result.key)
        inputs = checking.test_inputs(traced.piece(item.graph).inputs, seed=item.index)
        try:
            checking.test_piece_execution(
                compiling.compiled[item.name], item.graph, inputs, item.name
            )
        except checking.Mismatch:
            report.count("compilation.mismatch")
            manager.forget(result.key)
            raise
    whole = checking.test_inputs(traced.inputs)
    checking.verify_end_to_end_equivalence(run, traced.gm, whole)
