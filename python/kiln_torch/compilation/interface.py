"""``CompilerInterface``: what a compiler is to the manager.

Invariant: a handle is what ``load`` takes, and it has all that ``load`` needs;
``None`` stands for a result that no other process can use.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from .counter import CompilationCounter, compilation_counter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import fx


class CompilerInterface(ABC):
    """One compiler."""

    name = ""
    # Whether its handles outlive the process: what the disk tier keeps.
    portable = True
    # Whether it compiles for the sizes of the example inputs alone.
    fixed_sizes = False

    def __init__(self, counter: CompilationCounter | None = None) -> None:
        """Count in ``counter``; where there is none, in the process's."""
        self.counter = counter or compilation_counter

    def merged_config(
        self,
        compiler_config: Mapping[str, Any] | None,
        runtime_shape: int | None,  # noqa: ARG002 - Inductor's look at it
    ) -> dict[str, Any]:
        """Return the options under which it compiles."""
        return dict(compiler_config or {})

    def compute_hash(self, vllm_config: Any) -> str:  # noqa: ARG002 - the document's
        """Return the hash of the compiler's version, in full."""
        from blake3 import blake3

        return blake3(self.name.encode()).hexdigest()

    @abstractmethod
    def compile(
        self,
        graph: fx.GraphModule,
        example_inputs: Sequence[Any],
        compiler_config: Mapping[str, Any],
        runtime_shape: int | None = None,
        key: str | None = None,
    ) -> tuple[Callable[..., Any] | None, Any | None]:
        """Compile; return the callable and its handle."""

    @abstractmethod
    def load(
        self,
        handle: Any,
        graph: fx.GraphModule,
        example_inputs: Sequence[Any],
        graph_index: int,
        runtime_shape: int | None = None,
    ) -> Callable[..., Any] | None:
        """Return what ``handle`` names, for ``graph``; ``None``: it is not for these inputs."""

    def adopt(
        self,
        handle: Any,
        graph: fx.GraphModule,
        example_inputs: Sequence[Any],
        graph_index: int,
        runtime_shape: int | None = None,
    ) -> Callable[..., Any] | None:
        """Load what another process compiled for this one just now: no cache had it."""
        return self.load(handle, graph, example_inputs, graph_index, runtime_shape)
