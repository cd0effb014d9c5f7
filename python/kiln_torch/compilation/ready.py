"""Processes that compile made ready before their first job: imports, tables, the device.

Invariant: it changes nothing that decides what a compile gives, and whatever
fails here fails again, with its reason, in the job that needs it.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import signal
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


# What Inductor imports at its first compile.
_AT_FIRST_USE = (
    "choices",
    "codegen.cuda_combined_scheduling",
    "codegen.memory_planning",
    "codegen.triton",
    "codegen.wrapper_fxir",
    "fx_passes.efficient_conv_bn_eval",
    "fx_passes.freezing_patterns",
    "fx_passes.fuse_attention",
    "fx_passes.pad_mm",
    "fx_passes.quantization",
    "kernel_template_choice",
    "runtime.triton_heuristics",
    "standalone_compile",
)


def import_all() -> None:
    """Import what compiles and fill its tables, for all forks: without threads or a GPU."""
    import torch
    from torch._inductor import async_compile  # noqa: F401
    from torch._inductor.codecache import torch_key

    # Each imports much of torch, and of this package, at its first use.
    from . import job, keys, making, plain_graph, traced  # noqa: F401

    # They read all of torch's and Triton's sources.
    torch_key()
    with contextlib.suppress(ImportError):
        from torch._inductor.runtime.triton_compat import HAS_TRITON, triton_key

        if HAS_TRITON:
            triton_key()
    for name in _AT_FIRST_USE:
        with contextlib.suppress(ImportError):
            importlib.import_module(f"torch._inductor.{name}")
    # Any compile asks a GPU for its properties, where there is one: then a fork does it.
    if not torch.cuda.is_available():
        # No kernel of its own: on a CPU one would cost a C++ compiler's seconds.
        _compile("cpu", lambda graph, x: graph.call_function(torch.matmul, (x, x)))


def import_for_cpu() -> None:
    """Find out what this CPU can do, for all forks: a C++ compiler runs for it."""
    from .. import options

    with contextlib.suppress(Exception):
        options.versions({"cpu"})


def make_ready(
    device: str, threads: int, own: tuple[int, ...], busy: Callable[[], bool]
) -> dict[str, float]:
    """Be ready to compile for ``device``, ``threads`` kernels at once.

    Return the seconds of each step. ``own``: descriptors that what is forked from
    here must not keep open; ``busy``: whether there is a job, which teaches it as much.
    """
    import torch
    from torch._inductor import config

    from .. import options

    here = os.getpid()
    os.register_at_fork(after_in_child=lambda: _be_a_helper(here, own))
    config.compile_threads = threads
    if not device:
        return {}
    steps = _Steps()
    torch.cuda.set_device(device)
    torch.cuda.init()
    steps.done("device")
    # Its helpers are forks of this process: they are there at once.
    config.worker_start_method = "fork"
    if threads > 1:
        from torch._inductor.async_compile import AsyncCompile

        AsyncCompile.wait_pool_ready()
    steps.done("helpers")
    options.versions({"cuda"})
    steps.done("versions")
    if not busy():
        _compile(
            device,
            lambda graph, x: graph.call_function(
                torch.relu, (graph.call_function(torch.matmul, (x, x)),)
            ),
        )
        steps.done("compile")
    return steps.seconds


class _Steps:
    """How long each step took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def done(self, step: str) -> None:
        now = time.monotonic()
        self.seconds[step] = now - self._last
        self._last = now


def _be_a_helper(of: int, own: tuple[int, ...]) -> None:
    """End with the process that compiles; leave its pipes to it."""
    if os.getppid() != of:
        # Forked by a helper, or of one that has just ended.
        return
    end_with_parent()
    for each in own:
        with contextlib.suppress(OSError):
            os.close(each)


def end_with_parent() -> None:
    """Have the kernel end this process when its parent ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _compile(kind: str, build: Any) -> None:
    """Compile the smallest graph once."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    from .. import standalone
    from . import traced

    mode = FakeTensorMode(shape_env=ShapeEnv())
    with torch.no_grad():
        with mode:
            x = torch.empty(4, 4, device=kind)
        graph = torch.fx.Graph()
        given = graph.placeholder("x")
        given.meta["example_value"] = x
        graph.output((build(graph, given),))
        own = traced.Traced(torch.fx.GraphModule({}, graph), mode, dynamo=True)
        with own.context():
            standalone.compile_graph(own.gm, own.inputs, {"triton.cudagraphs": False})
