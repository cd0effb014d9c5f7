"""``EagerAdaptor``: no compiler; the graph runs as it is.

Invariant: it always answers, and its answer is what the others are judged by.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .interface import CompilerInterface

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import fx


class EagerAdaptor(CompilerInterface):
    """Gives the graph back."""

    name = "eager"
    portable = False

    def compile(
        self,
        graph: fx.GraphModule,
        example_inputs: Sequence[Any],  # noqa: ARG002 - for any inputs
        compiler_config: Mapping[str, Any],  # noqa: ARG002 - has no options
        runtime_shape: int | None = None,  # noqa: ARG002
        key: str | None = None,  # noqa: ARG002
    ) -> tuple[Callable[..., Any] | None, Any | None]:
        """Return the graph's own function; there is nothing to save."""
        return graph.forward, None

    def load(
        self,
        handle: Any,  # noqa: ARG002 - there is none
        graph: fx.GraphModule,
        example_inputs: Sequence[Any],  # noqa: ARG002
        graph_index: int,  # noqa: ARG002
        runtime_shape: int | None = None,  # noqa: ARG002
    ) -> Callable[..., Any] | None:
        """Return the graph's own function."""
        return graph.forward
