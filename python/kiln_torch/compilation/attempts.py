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
from .config import EAGER, INDUCTOR, NATIVE, STANDALONE
from .errors import CompilationError
from .manager import failing
from .mixed_mode import create_mixed_mode_execution
from .piecewise import piecewise_compile
from .tracing import torch_lock

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import fx

    from .compiling import Mender
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


class Whole(Attempt):
    """A graph as the caller gave it."""

    def __init__(
        self,
        manager: CompilerManager,
        graph: fx.GraphModule,
        example_inputs: Sequence[Any],
        config: CompilationConfig,
        options: Mapping[str, Any] | None = None,
        runtime_shape: int | None = None,
        *,
        pieces: bool = False,
        mender: Mender | None = None,
    ) -> None:
        """``pieces``: it was asked for by pieces; ``mender``: for those that fail."""
        super().__init__(manager, config, options, runtime_shape)
        self.graph = graph
        self.inputs = example_inputs
        self.asked_by_pieces = pieces
        self._mender = mender

    def as_asked(self) -> Callable[..., Any]:
        """Compile as the caller asked."""
        if self.asked_by_pieces:
            return self.by_pieces(self.config)
        return self.compile(self.options, self.config)

    def compile(self, options: Mapping[str, Any], config: CompilationConfig) -> Callable[..., Any]:
        """Compile as one, under these options."""
        return self.manager.compile(
            self.graph, self.inputs, options, config, runtime_shape=self.shape
        )

    def by_pieces(self, config: CompilationConfig) -> Callable[..., Any]:
        """Compile by pieces."""
        with failing(), torch_lock():
            traced = self.manager.trace(self.graph, self.inputs, config)
            with traced.context():
                self.result = piecewise_compile(
                    self.manager, traced, config, self.options, self.shape, mender=self._mender
                )
            return traced.callable(self.result.run)

    def create_mixed_mode_execution(
        self, error: Exception, config: CompilationConfig
    ) -> Callable[..., Any]:
        """Compile all but what ``error`` says is not supported."""
        with failing(), torch_lock():
            traced = self.manager.trace(self.graph, self.inputs, config, self.shape)
            with traced.context():
                self.result = create_mixed_mode_execution(
                    self.manager, traced, error, config, self.options, self.shape, self._mender
                )
            return traced.callable(self.result.run)

    def eager(self) -> Callable[..., Any]:
        """Return the graph as it is."""
        compiler = self.manager.compiler_of(replace(self.config, use_inductor=False))
        run, _ = compiler.compile(self.graph, self.inputs, {})
        if run is None:
            raise CompilationError(f"{EAGER} gave nothing")
        return run

    def request(self) -> tuple[Traced, Request]:
        """Return the request for what was asked, as another process can compile it."""
        with failing(), torch_lock():
            traced = self.manager.trace(self.graph, self.inputs, self.config, self.shape)
            with traced.context():
                request = self.manager.request(traced, self.options, self.unhurried(), self.shape)
                request.begin()
        return traced, request

    def impossible(self) -> set[str]:
        """Return the rungs that cannot be tried here."""
        # By pieces it was tried already; then the pieces have their own ladders.
        by_pieces = {ladder.PIECES, ladder.LESS_MEMORY, ladder.FEWER, ladder.NATIVE}
        return super().impossible() | (by_pieces if self.asked_by_pieces else set())


class Piece(Attempt):
    """A piece of a graph, in the context of the whole and under torch's lock."""

    piece = True

    def __init__(
        self,
        manager: CompilerManager,
        traced: Traced,
        config: CompilationConfig,
        options: Mapping[str, Any],
        runtime_shape: int | None,
    ) -> None:
        """Take a piece, traced."""
        super().__init__(manager, config, options, runtime_shape)
        self._traced = traced

    def as_asked(self) -> Callable[..., Any]:
        """Compile as the caller asked."""
        return self.compile(self.options, self.config)

    def compile(self, options: Mapping[str, Any], config: CompilationConfig) -> Callable[..., Any]:
        """Compile it under these options."""
        with failing():
            request = self.manager.request(self._traced, options, config, self.shape)
            run = request.begin()
            if run is None:
                request.look()
                run = request.finish()
            return run

    def by_pieces(
        self,
        config: CompilationConfig,  # noqa: ARG002 - there is none for it
    ) -> Callable[..., Any]:
        """Refuse: a piece is one."""
        raise CompilationError("a piece is not split again")

    def create_mixed_mode_execution(
        self, error: Exception, config: CompilationConfig
    ) -> Callable[..., Any]:
        """Compile all of it but what ``error`` says is not supported."""
        with failing():
            self.result = create_mixed_mode_execution(
                self.manager, self._traced, error, config, self.options, self.shape, None
            )
            return self.result.run

    def eager(self) -> Callable[..., Any]:
        """Return the piece as it is."""
        return self._traced.gm.forward

    def request(self) -> tuple[Traced, Request]:
        """Return the request for what was asked, as another process can compile it."""
        with failing():
            request = self.manager.request(self._traced, self.options, self.unhurried(), self.shape)
            request.begin()
        return self._traced, request
