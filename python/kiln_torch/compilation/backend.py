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
from .complexity import GraphComplexity, analyze_graph_complexity
from .config import CompilationConfig
from .errors import CompilationError
from .manager import CompilerManager, failing
from .passes import Pass, post_pass
from .piecewise import PiecewiseResult, piecewise_compile
from .robust import robust_compile

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import fx

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
        self.compiler_manager = CompilerManager(
            self.compilation_config, cache_dir=cache_dir, disable_cache=disable_cache
        )
        self._passes: list[Pass] = []
        self._post_pass: Any = None
        # How the last graph was compiled.
        self.last_strategy: Strategy | None = None
        self.last_result: PiecewiseResult | None = None

    def __call__(self, graph: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        """Compile ``graph``."""
        self.configure_post_pass()
        self.last_strategy = self.select_compilation_strategy(self.analyze_graph_complexity(graph))
        self.last_result = None
        report.log.debug("%s: %s", self.last_strategy.name, "; ".join(self.last_strategy.reasons))
        if self.last_strategy.name == PIECEWISE:
            return self._piecewise_compile(graph, example_inputs)
        return self._full_compile(graph, example_inputs)

    def register_pass(self, function: Callable[[fx.Graph], Any], uuid: str | None = None) -> None:
        """Run ``function`` on each graph after Inductor's own passes.

        Its id counts in the key: ``uuid``, or else the function's source.
        """
        self._passes.append(Pass(function, uuid))

    def configure_post_pass(self) -> None:
        """Hand the registered passes to Inductor, and their ids to the keys."""
        self._post_pass = post_pass(tuple(self._passes)) if self._passes else None
        facts = self.compiler_manager.facts
        facts.pop("passes", None)
        if self._passes:
            facts["passes"] = ",".join(each.uuid for each in self._passes)

    def analyze_graph_complexity(self, graph: fx.GraphModule) -> GraphComplexity:
        """Describe a graph: its size, and where it could be split."""
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

    def _full_compile(
        self, graph: fx.GraphModule, example_inputs: Sequence[Any]
    ) -> Callable[..., Any]:
        options = self._get_inductor_config()
        if self.compilation_config.fallback:
            return robust_compile(
                graph, example_inputs, self.compilation_config, self.compiler_manager, options
            )
        return self.compiler_manager.compile(
            graph=graph,
            example_inputs=example_inputs,
            additional_inductor_config=options,
            compilation_config=self.compilation_config,
        )

    def _piecewise_compile(
        self, graph: fx.GraphModule, example_inputs: Sequence[Any]
    ) -> Callable[..., Any]:
        try:
            with failing():
                traced = self.compiler_manager.trace(graph, example_inputs, self.compilation_config)
            with traced.context():
                self.last_result = piecewise_compile(
                    self.compiler_manager,
                    traced,
                    self.compilation_config,
                    self._get_inductor_config(),
                )
        except CompilationError as error:
            if not self.compilation_config.fallback:
                raise
            report.count("compilation.fell_back")
            report.log.error("not compiled: %s", error)
            return graph.forward
        return traced.callable(self.last_result.run)

    def _get_inductor_config(self) -> dict[str, Any]:
        if self._post_pass is None or not self.compilation_config.compiler.startswith("inductor"):
            return {}
        return {"post_grad_custom_post_pass": self._post_pass}
