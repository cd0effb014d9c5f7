"""What is compiled, and in which other ways that can be done: a graph, or one piece.

Invariant: whatever is tried, the options under which it is compiled are in its key,
so that nothing tried here is ever found under the key of what was asked for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from ..client import Client
from . import ladder
from .config import INDUCTOR, NATIVE, STANDALONE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .config import CompilationConfig
    from .manager import CompilerManager
    from .piecewise import PiecewiseResult
    from .request import Request
    from .traced import Traced

# Kernels of a few operations each, compiled one by one and without vectors: what a C++
# compiler or ptxas needs grows with the kernel. Nothing is tuned by running it.
_LESS_MEMORY: dict[str, Any] = {
    "compile_threads": 1,
    "max_autotune": False,
    "coordinate_descent_tuning": False,
    "combo_kernels": False,
    "memory_planning": False,
    "triton.cudagraphs": False,
    "max_fusion_size": 8,
    "cpp.max_horizontal_fusion_size": 2,
    "cpp.simdlen": 1,
}
_FEWER: dict[str, Any] = {
    "max_autotune": False,
    "coordinate_descent_tuning": False,
    "combo_kernels": False,
    "memory_planning": False,
    "triton.cudagraphs": False,
    "epilogue_fusion": False,
    "pattern_matcher": False,
    "max_fusion_size": 1,
    "cpp.simdlen": 1,
}
# What once took too long may take so much longer where nobody waits.
_LONGER = 4.0
# An option that is a user's code: without it another graph would be compiled.
_PASSES = "post_grad_custom_post_pass"


def suggest_memory_optimization() -> dict[str, Any]:
    """Return the options under which Inductor needs least memory."""
    return dict(_LESS_MEMORY)


class Attempt(ABC):
    """One graph, or a piece of one, that is compiled in one way after another."""

    piece = False

    def __init__(
        self,
        manager: CompilerManager,
        config: CompilationConfig,
        options: Mapping[str, Any] | None,
        runtime_shape: int | None,
    ) -> None:
        """Take what was asked."""
        self.manager = manager
        self.config = config
        self.options = dict(options or {})
        self.shape = runtime_shape
        # By when something has to run, on the monotonic clock; ``None``: no compile is bounded.
        self.deadline: float | None = None
        # Of the last way by pieces.
        self.result: PiecewiseResult | None = None

    @abstractmethod
    def as_asked(self) -> Callable[..., Any]:
        """Compile as the caller asked."""

    @abstractmethod
    def compile(self, options: Mapping[str, Any], config: CompilationConfig) -> Callable[..., Any]:
        """Compile as one, under these options."""

    @abstractmethod
    def by_pieces(self, config: CompilationConfig) -> Callable[..., Any]:
        """Compile by pieces."""

    @abstractmethod
    def create_mixed_mode_execution(
        self, error: Exception, config: CompilationConfig
    ) -> Callable[..., Any]:
        """Compile all but what ``error`` says is not supported."""

    @abstractmethod
    def eager(self) -> Callable[..., Any]:
        """Return the graph as it is."""

    @abstractmethod
    def request(self) -> tuple[Traced, Request]:
        """Return the request for what was asked, as another process can compile it."""

    def unhurried(self) -> CompilationConfig:
        """Return the configuration for a compile that nobody waits for: it may take longer."""
        timeout = self.config.compile_timeout
        longer = None if timeout is None else _LONGER * timeout
        return replace(self.config, compile_timeout=longer)

    def enable_memory_efficient_compilation(self, config: CompilationConfig) -> CompilationConfig:
        """Return ``config`` for a compile that nothing else of this manager runs beside."""
        return replace(config, parallel_compiles=1)

    def retry_compile_with_optimization(self, config: CompilationConfig) -> Callable[..., Any]:
        """Compile once more, with options that save memory, alone."""
        alone = self.enable_memory_efficient_compilation(config)
        return self.compile({**self.options, **suggest_memory_optimization()}, alone)

    def fewer_optimizations(self, config: CompilationConfig) -> Callable[..., Any]:
        """Compile with as little of Inductor's own cleverness as it allows."""
        return self.compile({**self.options, **_FEWER}, config)

    def by_defaults(self, config: CompilationConfig) -> Callable[..., Any]:
        """Compile with Inductor, without the caller's options."""
        kept = {name: value for name, value in self.options.items() if name == _PASSES}
        return self.compile(kept, replace(config, backend=INDUCTOR, inductor_config={}))

    def by_native(self, config: CompilationConfig) -> Callable[..., Any]:
        """Have a node compile it."""
        return self.compile({}, replace(config, backend=NATIVE, inductor_config={}))

    def impossible(self) -> set[str]:
        """Return the rungs that cannot be tried here."""
        found = set()
        if self.config.compiler not in (INDUCTOR, STANDALONE):
            found |= {ladder.LESS_MEMORY, ladder.FEWER, ladder.MIXED, ladder.PIECES}
        no_node = Client.from_env() is None or not torch.cuda.is_available()
        if no_node or self.config.compiler == NATIVE or _PASSES in self.options:
            found.add(ladder.NATIVE)
        return found
