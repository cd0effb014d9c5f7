"""``InductorAdaptor``: PyTorch's Inductor, one graph at a time.

Invariant: options are the document's defaults with the caller's on top, and an
option that Inductor does not have is refused before anything is compiled.
"""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any

import torch
from blake3 import blake3

from .. import placing, standalone
from . import direct
from .errors import CompilationError, IncompatibleConfigError, InductorNotAvailableError
from .interface import CompilerInterface
from .tracing import restarts, trace

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import fx

    from .traced import Traced

# Above this runtime shape a longer search for the fastest code pays for itself.
_LARGE = 1024
_FACTORS = ("triton_version", "cuda_version", "cudnn_version", "inductor_config_defaults")


class InductorAdaptor(CompilerInterface):
    """Compiles with Inductor; a handle is the artifact's files by path."""

    name = "inductor"

    def __init__(self, counter: Any = None) -> None:
        """Check that this torch can do it."""
        super().__init__(counter)
        if not hasattr(torch._inductor, "standalone_compile"):
            raise InductorNotAvailableError(f"torch {torch.__version__} has no standalone_compile")

    def compile(
        self,
        graph: fx.GraphModule,
        example_inputs: Sequence[Any],
        compiler_config: Mapping[str, Any],
        runtime_shape: int | None = None,
        key: str | None = None,  # noqa: ARG002 - nothing is kept here
    ) -> tuple[Callable[..., Any] | None, Any | None]:
        """Compile for the inputs' sizes with ``runtime_shape``, else for all sizes."""
        settings = self.merged_config(compiler_config, runtime_shape)
        traced = trace(graph, example_inputs, runtime_shape)
        with traced.context():
            self.counter.count("num_inductor_compiles")
            try:
                with direct.watched() as seen:
                    compiled = standalone.compile_graph(traced.gm, traced.inputs, settings)
            except Exception as error:
                if restarts(error):
                    raise
                raise CompilationError(f"Inductor: {type(error).__name__}: {error}") from error
            handle = self._create_inductor_handle(traced, compiled)
        return traced.callable(_run(compiled, direct.generated(seen, traced.gm))), handle

    def load(
        self,
        handle: Mapping[str, Any],
        graph: fx.GraphModule,
        example_inputs: Sequence[Any],
        graph_index: int,
        runtime_shape: int | None = None,
    ) -> Callable[..., Any] | None:
        """Load files that came from ``compile``; they are code: only verified ones."""
        loaded = self.adopt(handle, graph, example_inputs, graph_index, runtime_shape)
        if loaded is not None:
            self.counter.count("num_compiled_artifacts_loaded")
        return loaded

    def adopt(
        self,
        handle: Mapping[str, Any],
        graph: fx.GraphModule,
        example_inputs: Sequence[Any],
        graph_index: int,  # noqa: ARG002 - a graph loads the same wherever it stands
        runtime_shape: int | None = None,
    ) -> Callable[..., Any] | None:
        """Load them, and do not count it."""
        traced = trace(graph, example_inputs, runtime_shape)
        with traced.context():
            if not traced.admits(bytes(handle.get(standalone.GUARDS, b"")).decode()):
                return None
            index = placing.index_of(traced.gm, traced.inputs)
            with placing.on(index) as place, direct.watched() as seen:
                try:
                    loaded = self._load_files(handle)
                except Exception:
                    if place is None or not place.refused:
                        raise
                    # It is no worse for those whose GPU it is for.
                    return None
        return traced.callable(_run(loaded, direct.generated(seen, traced.gm)))

    def compute_hash(self, vllm_config: Any) -> str:
        """Hash the versions of all that decides Inductor's output, and its defaults."""
        # Where things are kept, and what a graph is compiled with, is in its key.
        del vllm_config
        factors = [f"torch_version:{torch.__version__}", f"machine:{platform.machine()}"]
        factors += [f"{factor}:{self._get_inductor_factor(factor)}" for factor in _FACTORS]
        return blake3("|".join(sorted(factors)).encode()).hexdigest()

    def merged_config(
        self, compiler_config: Mapping[str, Any] | None, runtime_shape: int | None
    ) -> dict[str, Any]:
        """Return Inductor's options in full."""
        return self._merge_inductor_config(compiler_config, runtime_shape)

    def _merge_inductor_config(
        self, user_config: Mapping[str, Any] | None, runtime_shape: int | None
    ) -> dict[str, Any]:
        merged: dict[str, Any] = {
            "triton.unique_kernel_names": True,
            "triton.cudagraphs": True,
            "coordinate_descent_tuning": True,
            "memory_planning": True,
            "inplace_buffers": True,
            "debug": False,
            "verbose_progress": False,
        }
        if runtime_shape is not None and runtime_shape > _LARGE:
            merged.update(max_autotune=True, epilogue_fusion=True)
        merged.update({name.replace("-", "_"): v for name, v in (user_config or {}).items()})
        known = torch._inductor.config.get_config_copy()
        unknown = sorted(name for name in merged if name not in known)
        if unknown:
            raise IncompatibleConfigError(f"Inductor has no option {', '.join(unknown)}")
        return merged

    def _get_inductor_factor(self, factor: str) -> str:
        if factor == "triton_version":
            try:
                import triton
            except ImportError:
                return "none"
            return triton.__version__
        if factor == "cuda_version":
            return str(torch.version.cuda)
        if factor == "cudnn_version":
            return str(torch.backends.cudnn.version())
        return blake3(torch._inductor.config.save_config_portable().__repr__().encode()).hexdigest()

    def _create_inductor_handle(self, traced: Traced, compiled: Any) -> dict[str, bytes] | None:
        try:
            files = self._save_files(compiled)
        except (standalone.Unsaveable, RuntimeError, AssertionError):
            # It runs here all the same.
            return None
        guards = traced.guards()
        return {**files, standalone.GUARDS: guards.encode()} if guards else files

    def _save_files(self, compiled: Any) -> dict[str, bytes]:
        return {standalone.BINARY: standalone.binary(compiled)}

    def _load_files(self, files: Mapping[str, Any]) -> Callable[..., Any]:
        binary = bytes(files.get(standalone.BINARY, b""))
        if not binary:
            raise IncompatibleConfigError(f"the artifact has no {standalone.BINARY}")
        try:
            return standalone.load_binary(binary)
        except AssertionError as error:
            raise IncompatibleConfigError(f"made by another torch: {error}") from error


def _run(compiled: Any, boxed: Callable[[list[Any]], Any] | None) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        return compiled(*args)

    return direct.Runnable(run, boxed)
