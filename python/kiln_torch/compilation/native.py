"""``NativeAdaptor``: Kiln's own compiler, in one process with torch.

The graph goes as an exported program to a node, which compiles it (or has it, or
waits for who does) and keeps it: the node is its cache. What comes back runs on
torch's own tensors and stream.
Invariant: a graph that it cannot stand for in full is refused, with why, before
anything is sent: one that writes to its inputs, or whose sizes are not fixed.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import torch
from torch._guards import tracing

from .. import standalone
from ..client import Client
from ..loading import CUBIN, PLAN
from ..manifest import Artifact
from ..native import Native
from .errors import CompilationError, IncompatibleConfigError
from .interface import CompilerInterface
from .tracing import trace
from .writes import may_write

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import fx

    from .traced import Traced

# The one option: what the code is for, where no GPU of this process says it.
TARGET = "target"


class NativeAdaptor(CompilerInterface):
    """Compiles through a node; a handle is the artifact's files by path."""

    name = "native"
    # The node keeps it, under a key of its own.
    portable = False
    fixed_sizes = True

    def merged_config(
        self, compiler_config: Mapping[str, Any] | None, runtime_shape: int | None
    ) -> dict[str, Any]:
        """Return the options; Inductor's mean nothing here."""
        del runtime_shape
        unknown = sorted(set(compiler_config or {}) - {TARGET})
        if unknown:
            raise IncompatibleConfigError(f"the native compiler has no option {unknown[0]}")
        return {}

    def compile(
        self,
        graph: fx.GraphModule,
        example_inputs: Sequence[Any],
        compiler_config: Mapping[str, Any],
        runtime_shape: int | None = None,  # noqa: ARG002 - sizes are always those of the inputs
        key: str | None = None,  # noqa: ARG002 - the node makes its own
    ) -> tuple[Callable[..., Any] | None, Any | None]:
        """Compile for the inputs' sizes."""
        client = Client.from_env()
        if client is None:
            raise IncompatibleConfigError("the native compiler is a node's: set KILN_ENDPOINT")
        traced = trace(graph, example_inputs, runtime_shape=1)
        target = compiler_config.get(TARGET) or _target()
        answer = client.compile_program(_exported(traced), backend=self.name, target=target)
        if not isinstance(answer, Artifact):
            raise CompilationError(f"native: {answer}")
        files = {name: bytes(data) for name, data in answer.files.items()}
        return traced.callable(_run(files)), files

    def load(
        self,
        handle: Mapping[str, Any],
        graph: fx.GraphModule,
        example_inputs: Sequence[Any],
        graph_index: int,  # noqa: ARG002 - a graph loads the same wherever it stands
        runtime_shape: int | None = None,  # noqa: ARG002
    ) -> Callable[..., Any] | None:
        """Load files that came from ``compile``."""
        traced = trace(graph, example_inputs, runtime_shape=1)
        self.counter.count("num_compiled_artifacts_loaded")
        return traced.callable(_run(handle))


def _run(files: Mapping[str, Any]) -> Callable[..., Any]:
    missing = [name for name in (CUBIN, PLAN) if name not in files]
    if missing:
        raise CompilationError(f"native: the artifact has no {missing[0]}")
    native = Native(bytes(files[CUBIN]), bytes(files[PLAN]))
    given = native.plan.given

    def run(*args: Any) -> Any:
        outputs = native(*[args[at] for at in given])
        return outputs if isinstance(outputs, (tuple, list)) else (outputs,)

    return run


def _target() -> str:
    if not torch.cuda.is_available():
        raise IncompatibleConfigError(f"no GPU here says what to compile for: give {TARGET!r}")
    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}"


def _exported(traced: Traced) -> bytes:
    """Return the graph as a torch.export archive, without any tensor's contents."""
    if standalone.symbolic_sizes(traced.gm) or any(map(_symbolic, traced.inputs)):
        raise CompilationError("native: a size is symbolic; compile for the sizes of the inputs")
    if may_write(traced.gm):
        raise CompilationError("native: the graph writes to its inputs")
    inputs = tuple(
        torch.empty_strided(each.shape, each.stride(), dtype=each.dtype)
        if isinstance(each, torch.Tensor)
        else each
        for each in traced.inputs
    )
    # Not in the context in which the compilers of pieces work: its mode is none of export's.
    with tracing(None), torch.no_grad():
        program = torch.export.export(traced.gm, inputs, strict=False)
    program.example_inputs = None
    archive = io.BytesIO()
    torch.export.save(program, archive)
    return archive.getvalue()


def _symbolic(value: Any) -> bool:
    if not isinstance(value, torch.Tensor):
        return False
    return any(isinstance(size, torch.SymInt) for size in (*value.shape, *value.stride()))
