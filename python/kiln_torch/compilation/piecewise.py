"""Piecewise compilation: split, compile the pieces at once, stitch, check.

Lookups, waits and compiles of what goes to processes of their own overlap; what is
compiled in this process is looked up and compiled one piece after another.
Invariant: equal pieces are compiled once; a piece that fails fails alone, and
what the others gave is kept.
"""

from __future__ import annotations

import itertools
import secrets
import time
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .. import report
from . import checking
from .complexity import calls
from .errors import CompilationError, CompilationModuleError
from .repeats import marks_of
from .splitting import SplitItem, analyze_graph_for_splitting, split_graph_into_pieces
from .stitching import create_piecewise_callable, create_split_graph_module
from .tracing import restarts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .config import CompilationConfig
    from .manager import CompilerManager
    from .request import Request
    from .splitting import SplitStrategy
    from .traced import Traced

# What the document sets for a graph as one, and is not for pieces: a CUDA graph of a
# piece would be overwritten when the next one is recorded; and a pool within a piece
# saves little memory, while each value taken from it is a call more than an allocation.
_OF_PIECES = {"triton.cudagraphs": False, "memory_planning": False}
# Threads that look and wait: they cost nothing meanwhile.
_MOST_LOOKING = 16


@dataclass(frozen=True)
class PieceResult:
    """How one piece came about."""

    index: int
    # In hex; "": no key says all that decides it.
    key: str
    # compiled, memory, disk, shared (equal to another piece) or eager (it failed).
    outcome: str
    compile_seconds: float
    error: str = ""
    # Whether a process of its own compiled it; if so, the seconds until that began.
    elsewhere: bool = False
    waited_seconds: float = 0.0
    # Where torch says that the seconds went, in that process; some are within others.
    phases: Mapping[str, float] = field(default_factory=dict)


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
) -> PiecewiseResult:
    """Compile ``traced``, in its context, by pieces."""
    strategy = analyze_graph_for_splitting(traced.gm, config)
    items = split_graph_into_pieces(traced.gm, strategy)
    if not items:
        raise CompilationError("the graph computes nothing: there is nothing to split")
    stitching = create_split_graph_module(traced.gm, items)
    started = time.monotonic()
    compiling = _Compiling(manager, traced, items, config, options, runtime_shape)
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
    compiling: _Compiling,
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


class _Compiling:
    """The pieces on their way."""

    def __init__(
        self,
        manager: CompilerManager,
        traced: Traced,
        items: Sequence[SplitItem],
        config: CompilationConfig,
        options: Mapping[str, Any] | None,
        runtime_shape: int | None,
    ) -> None:
        self._manager = manager
        self._traced = traced
        self._items = items
        self._config = config
        inductor = manager.compiler_of(config).portable
        before = _OF_PIECES if inductor else {}
        self._options = {**before, **config.inductor_config, **(options or {})}
        self._shape = runtime_shape
        self.compiled: dict[str, Callable[..., Any]] = {}
        self.results: list[PieceResult] = []
        self._failures: list[Exception] = []

    def run(self) -> None:
        first: dict[bytes, int] = {}
        found: dict[int, PieceResult] = {}
        here: list[tuple[SplitItem, Request]] = []
        away: dict[Future[None], tuple[SplitItem, Request]] = {}
        shared: dict[int, tuple[int, Request]] = {}
        with ThreadPoolExecutor(_MOST_LOOKING) as threads:
            for item in _ordered(self._items, self._config.parallel_compiles):
                request = self._request(item)
                request.describe()
                if request.key is not None and request.key in first:
                    shared[item.index] = first[request.key], request
                    continue
                if request.key is not None:
                    first[request.key] = item.index
                run = request.in_memory()
                if run is not None:
                    self._have(found, item, request, run, "memory")
                elif request.sent:
                    # Its compile begins while the next ones are described.
                    away[threads.submit(request.look)] = item, request
                else:
                    here.append((item, request))
            for item, request in here:
                request.look()
                self._finish(found, item, request)
            for future in as_completed(away):
                self._finish(found, *away[future])
        for index, (original, request) in shared.items():
            self._share(found, self._items[index], self._items[original], request)
        if self._failures and not self._config.fallback:
            raise self._failures[0]
        self.results = [found[item.index] for item in self._items]

    def _request(self, item: SplitItem) -> Request:
        self._manager.compilation_counter.count("num_backend_compilations")
        traced = self._traced.piece(item.graph)
        return self._manager.request(traced, self._options, self._config, self._shape)

    def _finish(self, found: dict[int, PieceResult], item: SplitItem, request: Request) -> None:
        try:
            run = request.finish()
        except Exception as error:
            if restarts(error):
                raise
            # Alone: the others are compiled, and stay so.
            self._failures.append(error)
            why = (
                error
                if isinstance(error, CompilationModuleError)
                else CompilationError(repr(error))
            )
            report.count("compilation.piece_failed")
            report.log.warning("%s runs uncompiled: %s", item.name, why)
            self._have(found, item, request, item.graph.forward, "eager", str(why))
            return
        self._have(found, item, request, run, "compiled" if request.missed else "disk")

    def _share(
        self,
        found: dict[int, PieceResult],
        item: SplitItem,
        original: SplitItem,
        request: Request,
    ) -> None:
        """Give a piece what an equal one has: from memory, where that keeps it."""
        before = found[original.index]
        if before.outcome == "eager":
            self._have(found, item, request, item.graph.forward, "eager", before.error)
            return
        run = request.in_memory()
        if run is None and self._traced.piece(item.graph).fixed:
            run = self.compiled[original.name]
        if run is not None:
            self._have(found, item, request, run, "shared")
            return
        # For other sizes than the equal one's, or out of memory again.
        request.look()
        self._finish(found, item, request)

    def _have(
        self,
        found: dict[int, PieceResult],
        item: SplitItem,
        request: Request,
        run: Callable[..., Any],
        outcome: str,
        error: str = "",
    ) -> None:
        self.compiled[item.name] = run
        key = "" if request.key is None else request.key.hex()
        found[item.index] = PieceResult(
            item.index,
            key,
            outcome,
            request.seconds,
            error,
            request.elsewhere,
            request.waited,
            request.phases,
        )


def _ordered(items: Sequence[SplitItem], at_once: int) -> list[SplitItem]:
    """Put one piece of each kind first, so that all compile before equal ones are described."""
    nodes = [calls(item.graph) for item in items]
    marks = iter(marks_of([node for each in nodes for node in each]))
    kinds: dict[tuple[int, ...], SplitItem] = {}
    for item, own in zip(items, nodes):
        kinds.setdefault(tuple(itertools.islice(marks, len(own))), item)
    first = sorted(kinds.values(), key=lambda item: item.complexity, reverse=True)
    if len(first) > at_once:
        # Processes that start together begin at different pieces, and share the work.
        start = secrets.randbelow(len(first))
        first = [*first[start:], *first[:start]]
    taken = {item.index for item in first}
    return [*first, *(item for item in items if item.index not in taken)]
