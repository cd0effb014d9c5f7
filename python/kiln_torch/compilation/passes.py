"""Passes over Inductor's graph that count in the key.

Invariant: two passes have one id only if they are the same code; one whose code
does not say all of it has to bring its own id.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from .errors import IncompatibleConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import fx


class Pass:
    """A function over a graph, and its id."""

    def __init__(self, function: Callable[[fx.Graph], Any], uuid: str | None = None) -> None:
        """Take ``uuid``, or make one of the function's source."""
        self.function = function
        self.uuid = uuid or _of_source(function)


def post_pass(passes: Sequence[Pass]) -> Any:
    """Return what Inductor calls after its own passes over the forward graph."""
    from torch._inductor.custom_graph_pass import CustomGraphPass

    class PostPasses(CustomGraphPass):
        """All passes, in the order in which they were registered."""

        def __call__(self, graph: fx.Graph) -> None:
            for each in passes:
                each.function(graph)
            graph.lint()

        def uuid(self) -> Any:
            return blake3("\n".join(each.uuid for each in passes).encode()).digest()

    return PostPasses()


def _of_source(function: Callable[..., Any]) -> str:
    name = getattr(function, "__qualname__", type(function).__qualname__)
    if not inspect.isfunction(function) or function.__closure__ or function.__defaults__:
        raise IncompatibleConfigError(f"pass {name} depends on more than its source: give a uuid")
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError) as error:
        raise IncompatibleConfigError(f"pass {name} has no source: give a uuid") from error
    return blake3(f"{function.__module__}.{name}\n{source}".encode()).hexdigest()
