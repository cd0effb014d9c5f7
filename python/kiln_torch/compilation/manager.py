"""``CompilerManager``: compile a graph once, and find it again ever after.

Invariant: what is returned computes what the graph computes; a cache that is
empty, corrupt, full or away costs a compile and is never an error.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .. import report
from ..graph import Unkeyable
from . import early
from .classify import classified
from .config import EAGER, CompilationConfig, compile_cache_disabled
from .counter import CompilationCounter, compilation_counter
from .emergency import Emergency
from .errors import ArgumentError
from .making import make_compiler, make_named
from .memory import MemoryCache
from .monitor import PerformanceMonitor, performance_monitor
from .opening import open_pool, open_store
from .request import Request
from .store import filename
from .tiers import Tiers
from .tracing import restarts, torch_lock, trace
from .verdicts import Verdicts
from .watch import watching

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import fx

    from .interface import CompilerInterface
    from .store import Store
    from .traced import Traced


# Processes that are started before a graph is seen: a model's distinct pieces are few.
_EARLY = 4


class CompilerManager:
    """The caches, the compiler and the numbers of one configuration."""

    def __init__(
        self,
        compilation_config: CompilationConfig,
        cache_dir: str = "./compilation_cache",
        disable_cache: bool = False,
    ) -> None:
        """Make the compiler; keep results in ``cache_dir``, or in KILN_ENDPOINT's cluster."""
        if not isinstance(compilation_config, CompilationConfig):
            raise ArgumentError(f"{compilation_config!r} is no CompilationConfig")
        self.compilation_config = compilation_config
        self.disable_cache = disable_cache or compile_cache_disabled()
        self.compilation_counter = CompilationCounter(compilation_counter)
        self.performance_monitor = PerformanceMonitor(performance_monitor)
        self.compiler = make_compiler(compilation_config, self.compilation_counter)
        self.cache_dir: Path | None = None
        self.cache: MemoryCache | None = None
        # What decides the code beside graph and options: passes, by their ids.
        self.facts: dict[str, str] = {}
        # What an optimizer set: the caller's options come on top.
        self.tuned: dict[str, Any] = {}
        store = None
        if not self.disable_cache:
            self.cache_dir = Path(cache_dir)
            self.cache = MemoryCache(compilation_config.memory_cache_entries)
            store = self._open_store()
        self._compilers = {self.compiler.name: self.compiler}
        self.tiers = Tiers(
            self.compilation_counter,
            self.performance_monitor,
            self.cache,
            store,
            open_pool(compilation_config),
        )
        self.verdicts = Verdicts()
        self.emergency = Emergency(self.tiers, None if self.disable_cache else self._open_store)
        self.watch = watching(self)

    def compile(
        self,
        graph: fx.GraphModule,
        example_inputs: Sequence[Any],
        additional_inductor_config: Mapping[str, Any] | None = None,
        compilation_config: CompilationConfig | None = None,
        graph_index: int = 0,
        num_graphs: int = 1,
        runtime_shape: int | None = None,
    ) -> Any:
        """Return the compiled graph, from a cache where one has it.

        ``runtime_shape`` fixes all sizes to those of the inputs. The piece's number
        is for the log: equal pieces are one entry.
        """
        _check(graph, graph_index, num_graphs, runtime_shape)
        self.compilation_counter.count("num_backend_compilations")
        config = compilation_config or self.compilation_config
        started = time.monotonic()
        if config.compiler == EAGER or self.emergency.eager:
            config = replace(config, use_inductor=False)
            return self.compiler_of(config).compile(graph, example_inputs, {})[0]
        with failing():
            with torch_lock():
                traced = self.trace(graph, example_inputs, config, runtime_shape)
                with traced.context():
                    request = self.request(
                        traced, additional_inductor_config, config, runtime_shape
                    )
                    run = request.begin()
                    compiled = None if run is None else traced.callable(run)
            if compiled is None:
                # Others may use torch meanwhile.
                request.look()
                with torch_lock(), traced.context():
                    compiled = traced.callable(request.finish())
        if request.missed:
            report.log.debug("graph %d of %d: compiled", graph_index + 1, num_graphs)
        else:
            self._log_cache_hit(started, graph_index, num_graphs)
        return compiled

    def load(
        self,
        graph: fx.GraphModule,
        example_inputs: Sequence[Any],
        graph_index: int,
        runtime_shape: int | None = None,
        *,
        additional_inductor_config: Mapping[str, Any] | None = None,
        compilation_config: CompilationConfig | None = None,
    ) -> Callable[..., Any] | None:
        """Return what a cache has, for the options that ``compile`` would be given."""
        _check(graph, graph_index, graph_index + 1, runtime_shape)
        if self.disable_cache:
            return None
        config = compilation_config or self.compilation_config
        with failing(), torch_lock():
            traced = self.trace(graph, example_inputs, config, runtime_shape)
            with traced.context():
                request = self.request(traced, additional_inductor_config, config, runtime_shape)
                run = request.begin() or request.found()
                return None if run is None else traced.callable(run)

    def save(
        self,
        handle: Any,
        graph: fx.GraphModule,
        example_inputs: Sequence[Any],
        graph_index: int,
        runtime_shape: int | None,
        compiled_graph: Callable[..., Any],
        *,
        additional_inductor_config: Mapping[str, Any] | None = None,
        compilation_config: CompilationConfig | None = None,
    ) -> None:
        """Store what a compiler of this module gave: its files, and its callable in memory.

        ``compiled_graph`` must take all inputs of the graph; one that holds tensors
        of its own graph (any but Dynamo's) is found again on disk alone.
        """
        _check(graph, graph_index, graph_index + 1, runtime_shape)
        if self.disable_cache:
            return
        config = compilation_config or self.compilation_config
        with failing(), torch_lock():
            traced = self.trace(graph, example_inputs, config, runtime_shape)
            with traced.context():
                request = self.request(traced, additional_inductor_config, config, runtime_shape)
                if not request.describe():
                    return
                if traced.dynamo:
                    request.keep(compiled_graph, traced.guards())
                if handle is not None:
                    request.save(handle)

    def warm(self, config: CompilationConfig | None = None) -> None:
        """Start processes that will compile pieces, where there is nothing to find yet."""
        config, pool = config or self.compilation_config, self.tiers.pool
        if pool is None or not early.wanted(config):
            return
        store = self.tiers.store
        if store is None or store.empty():
            pool.warm(min(config.parallel_compiles, _EARLY))

    def trace(
        self,
        graph: fx.GraphModule,
        example_inputs: Sequence[Any],
        config: CompilationConfig,
        runtime_shape: int | None = None,
    ) -> Traced:
        """Make a graph ready for the compiler that ``config`` names."""
        if self.compiler_of(config).fixed_sizes and runtime_shape is None:
            return trace(graph, example_inputs, runtime_shape=1)
        return trace(graph, example_inputs, runtime_shape)

    def request(
        self,
        traced: Traced,
        additional_inductor_config: Mapping[str, Any] | None,
        config: CompilationConfig,
        runtime_shape: int | None,
        deadline: float | None = None,
    ) -> Request:
        """Make the request for a graph, in its context; ``deadline``: on the monotonic clock."""
        compiler = self.compiler_of(config)
        tuned = self.tuned if compiler.portable else {}
        options = {**tuned, **config.inductor_config, **(additional_inductor_config or {})}
        return Request(
            self.tiers,
            compiler,
            traced,
            options,
            runtime_shape,
            self.facts,
            timeout=config.compile_timeout,
            deadline=deadline,
            # Of one that may have several at once.
            alone=config.parallel_compiles == 1,
        )

    def compiler_of(self, config: CompilationConfig) -> CompilerInterface:
        """Return the compiler that ``config`` names."""
        name = config.compiler
        if name not in self._compilers:
            self._compilers[name] = make_named(name, self.compilation_counter)
        return self._compilers[name]

    def forget(self, key: str) -> None:
        """Remove an entry that is wrong from memory and, where it can be, from the store."""
        if not key:
            return
        if not self.tiers.discard(bytes.fromhex(key)) and self.tiers.store is not None:
            report.log.warning("the cluster has a wrong artifact: kiln rm %s", key)

    def _open_store(self) -> Store | None:
        assert self.cache_dir is not None
        return open_store(self.cache_dir, self.compilation_config)

    def _log_cache_hit(self, start_time: float, graph_index: int, num_graphs: int) -> None:
        report.log.debug(
            "graph %d of %d: from a cache in %.0f ms",
            graph_index + 1,
            num_graphs,
            1000 * (time.monotonic() - start_time),
        )

    def _generate_cache_key(
        self, graph: fx.GraphModule, example_inputs: Sequence[Any], runtime_shape: int | None
    ) -> str:
        return self._compute_hash_keys(graph, example_inputs, 0, runtime_shape)[0]

    def _compute_hash_keys(
        self,
        graph: fx.GraphModule,
        example_inputs: Sequence[Any],
        graph_index: int,  # noqa: ARG002 - where a graph stands does not change its code
        runtime_shape: int | None = None,
    ) -> tuple[str, str]:
        """Return the full key in hex, and the name of its file."""
        with torch_lock():
            traced = trace(graph, example_inputs, runtime_shape)
        with torch_lock(), traced.context():
            request = self.request(traced, None, self.compilation_config, runtime_shape)
            if not request.describe() or request.key is None:
                raise Unkeyable("no key says all that decides the code of this graph")
        return request.key.hex(), filename(request.key)


class failing:  # noqa: N801 - reads as what it is: with failing(): ...
    """Turns what a compiler raises into this module's error of its kind."""

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, kind: Any, error: BaseException | None, trace_: Any) -> None:
        """Wrap the error."""
        if not isinstance(error, Exception) or restarts(error):
            return
        mine = classified(error)
        if mine is not error:
            raise mine from error


def _check(graph: Any, graph_index: int, num_graphs: int, runtime_shape: int | None) -> None:
    if not isinstance(graph, torch.fx.GraphModule):
        raise ArgumentError(f"{type(graph).__name__} is no fx.GraphModule")
    if not 0 <= graph_index < num_graphs:
        raise ArgumentError(f"graph {graph_index} of {num_graphs}")
    if runtime_shape is not None and runtime_shape <= 0:
        raise ArgumentError(f"runtime_shape is {runtime_shape}, not above 0")
