"""``KilnBackend``: a backend of ``torch.compile`` over the compilation module.

``torch.compile(model, backend=KilnBackend(config))``; or call it with a graph and
its inputs.
Invariant: how a graph is compiled follows from the graph and the configuration,
and the reasons are kept with the result.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .. import report
from . import early
from .config import CompilationConfig
from .errors import CompilationError

# What uses torch's compiler is imported where it is used: importing that takes seconds,
# in which processes that compile import it as well.
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import fx

    from . import by_size
    from .complexity import GraphComplexity
    from .fallback import Fallback
    from .passes import Pass
    from .piecewise import PiecewiseResult
    from .traced import Traced

FULL = "full"
PIECEWISE = "piecewise"


@dataclass(frozen=True)
class Strategy:
    """Full or piecewise, and why."""

    name: str
    reasons: tuple[str, ...] = field(default=())


class KilnBackend:
    """Compiles the graphs that Dynamo hands over, whole or by pieces."""

    def __init__(
        self,
        compilation_config: CompilationConfig | None = None,
        cache_dir: str = "./compilation_cache",
        disable_cache: bool = False,
    ) -> None:
        """Make a ``CompilerManager`` of these."""
        self.compilation_config = compilation_config or CompilationConfig()
        early.begin(self.compilation_config, cache_dir, disable_cache=disable_cache)
        from .manager import CompilerManager

        self.compiler_manager = CompilerManager(
            self.compilation_config, cache_dir=cache_dir, disable_cache=disable_cache
        )
        # While Dynamo traces they import what they need.
        self.compiler_manager.warm()
        self._passes: list[Pass] = []
        self._post_pass: Any = None
        # How the last graph was compiled.
        self.last_strategy: Strategy | None = None
        self.last_result: PiecewiseResult | None = None
        self.last_by_size: by_size.BySize | None = None
        # What stands in for it, where its compile failed, and why.
        self.last_fallback: Fallback | None = None

    def __call__(self, graph: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        """Compile ``graph``."""
        self.configure_post_pass()
        self.last_by_size = None
        if self.compilation_config.compile_sizes:
            return self._compile_sizes(graph, example_inputs)
        return self._compile(graph, example_inputs)

    def register_pass(self, function: Callable[[fx.Graph], Any], uuid: str | None = None) -> None:
        """Run ``function`` on each graph after Inductor's own passes.

        Its id counts in the key: ``uuid``, or else the function's source.
        """
        from .passes import Pass

        self._passes.append(Pass(function, uuid))

    def configure_post_pass(self) -> None:
        """Hand the registered passes to Inductor, and their ids to the keys."""
        from .passes import post_pass

        self._post_pass = post_pass(tuple(self._passes)) if self._passes else None
        facts = self.compiler_manager.facts
        facts.pop("passes", None)
        if self._passes:
            facts["passes"] = ",".join(each.uuid for each in self._passes)

    def analyze_graph_complexity(self, graph: fx.GraphModule) -> GraphComplexity:
        """Describe a graph: its size, and where it could be split."""
        from .complexity import analyze_graph_complexity

        return analyze_graph_complexity(graph, self.compilation_config.splitting_ops)

    def select_compilation_strategy(self, complexity: GraphComplexity) -> Strategy:
        """Choose full or piecewise."""
        config = self.compilation_config
        if config.compilation_level != "auto":
            return Strategy(config.compilation_level, ("the configuration says so",))
        if not config.use_inductor:
            return Strategy(FULL, ("eager compiles nothing",))
        large = []
        if complexity.nodes > config.max_nodes:
            large.append(f"{complexity.nodes} nodes, more than {config.max_nodes}")
        if complexity.memory_bytes > config.max_piece_bytes:
            large.append(f"{complexity.memory_bytes} bytes, more than {config.max_piece_bytes}")
        if not large:
            return Strategy(FULL, (f"{complexity.nodes} nodes are few",))
        where = []
        if complexity.split_points:
            where.append(f"{complexity.split_points} named operations to split at")
        if complexity.repeats is not None:
            times, period = complexity.repeats.count, complexity.repeats.period
            where.append(f"{times} times the same {period} nodes")
        return Strategy(PIECEWISE, (*large, *where))

    def _should_use_piecewise_compilation(self, graph: fx.GraphModule) -> bool:
        complexity = self.analyze_graph_complexity(graph)
        return self.select_compilation_strategy(complexity).name == PIECEWISE

    def _compile(
        self,
        graph: fx.GraphModule,
        example_inputs: Sequence[Any],
        runtime_shape: int | None = None,
    ) -> Callable[..., Any]:
        self.last_strategy = self.select_compilation_strategy(self.analyze_graph_complexity(graph))
        self.last_result = self.last_fallback = None
        report.log.debug("%s: %s", self.last_strategy.name, "; ".join(self.last_strategy.reasons))
        piecewise = self.last_strategy.name == PIECEWISE
        if runtime_shape is not None:
            at_size = self._by_pieces if piecewise else self._whole
            return at_size(graph, example_inputs, runtime_shape)
        whole = self._piecewise_compile if piecewise else self._full_compile
        return whole(graph, example_inputs)

    def _compile_sizes(
        self, graph: fx.GraphModule, example_inputs: Sequence[Any]
    ) -> Callable[..., Any]:
        """Compile for all sizes, and for some by themselves."""
        from . import by_size
        from .manager import failing
        from .plain_values import Unsent
        from .tracing import torch_lock

        with failing(), torch_lock():
            traced = self.compiler_manager.trace(graph, example_inputs, self.compilation_config)
        if traced.dynamo:
            dynamic = self._compile(graph, example_inputs)
        else:
            with torch_lock(), traced.context():
                dynamic = self._compile(traced.gm, traced.inputs)
        kept = self.last_strategy, self.last_result
        try:
            if traced.needs_gradients:
                raise Unsent("it is compiled for gradients")
            symbol = by_size.symbol_of(traced.gm)
            chosen = by_size.BySize(dynamic, by_size.reader_of(traced.gm, symbol))
        except Unsent as why:
            report.log.info("no sizes are compiled by themselves: %s", why)
            return traced.callable(dynamic)
        for size in sorted(set(self.compilation_config.compile_sizes)):
            self._compile_size(chosen, traced, symbol, size)
        self.last_strategy, self.last_result = kept
        self.last_by_size = chosen
        return traced.callable(chosen)

    def _compile_size(self, chosen: by_size.BySize, traced: Traced, symbol: Any, size: int) -> None:
        from . import by_size
        from .plain_values import Unsent
        from .traced import Traced
        from .tracing import torch_lock

        try:
            gm, mode = by_size.fixed(traced.gm, symbol, size)
            own = Traced(gm, mode, dynamo=traced.dynamo)
            with torch_lock(), own.context():
                chosen.static[size] = self._compile(gm, own.inputs, size)
        except (Unsent, CompilationError) as error:
            if isinstance(error, CompilationError) and not self.compilation_config.fallback:
                raise
            report.count("compilation.size_failed")
            report.log.warning("size %d runs the code for all sizes: %s", size, error)

    def _full_compile(
        self, graph: fx.GraphModule, example_inputs: Sequence[Any]
    ) -> Callable[..., Any]:
        return self._whole(graph, example_inputs, None)

    def _piecewise_compile(
        self, graph: fx.GraphModule, example_inputs: Sequence[Any]
    ) -> Callable[..., Any]:
        return self._by_pieces(graph, example_inputs, None)

    def _whole(
        self, graph: fx.GraphModule, example_inputs: Sequence[Any], runtime_shape: int | None
    ) -> Callable[..., Any]:
        if not self.compilation_config.fallback:
            return self.compiler_manager.compile(
                graph=graph,
                example_inputs=example_inputs,
                additional_inductor_config=self._get_inductor_config(),
                compilation_config=self.compilation_config,
                runtime_shape=runtime_shape,
            )
        return self._robustly(graph, example_inputs, runtime_shape, pieces=False)

    def _by_pieces(
        self, graph: fx.GraphModule, example_inputs: Sequence[Any], runtime_shape: int | None
    ) -> Callable[..., Any]:
        return self._robustly(graph, example_inputs, runtime_shape, pieces=True)

    def _robustly(
        self,
        graph: fx.GraphModule,
        example_inputs: Sequence[Any],
        runtime_shape: int | None,
        *,
        pieces: bool,
    ) -> Callable[..., Any]:
        from .attempted import Whole
        from .fallback import fallback_of
        from .recovery import ErrorHandler

        handler = ErrorHandler(self.compiler_manager)
        work = Whole(
            self.compiler_manager,
            graph,
            example_inputs,
            self.compilation_config,
            self._get_inductor_config(),
            runtime_shape,
            pieces=pieces,
            mender=handler,
        )
        compile_ = handler.compile if self.compilation_config.fallback else Whole.as_asked
        run = compile_(work)
        self.last_result = work.result
        self.last_fallback = fallback_of(run)
        return run

    def _get_inductor_config(self) -> dict[str, Any]:
        if self._post_pass is None or not self.compilation_config.compiler.startswith("inductor"):
            return {}
        return {"post_grad_custom_post_pass": self._post_pass}
