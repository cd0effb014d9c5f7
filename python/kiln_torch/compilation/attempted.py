"""A graph, or a piece of one, as what is attempted: each way for the one and the other.

Invariant: a whole is traced anew for each way, in its caller's thread; a piece stays in
the context of its whole.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from . import ladder
from .attempts import Attempt
from .config import EAGER
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
    from .request import Request
    from .traced import Traced


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
                    self.manager,
                    traced,
                    config,
                    self.options,
                    self.shape,
                    mender=self._mender,
                    deadline=self.deadline,
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
                    self.manager,
                    traced,
                    error,
                    config,
                    self.options,
                    self.shape,
                    self._mender,
                    self.deadline,
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
            request = self.manager.request(self._traced, options, config, self.shape, self.deadline)
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
                self.manager,
                self._traced,
                error,
                config,
                self.options,
                self.shape,
                None,
                self.deadline,
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
