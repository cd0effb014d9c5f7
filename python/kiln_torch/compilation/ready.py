"""A compiling process made ready before its first job: imports, tables, the device.

Invariant: it changes nothing that decides what a compile gives, and whatever
fails here fails again, with its reason, in the job that needs it.
"""

from __future__ import annotations

import torch


def make_ready(device: str) -> None:
    """Import what compiles, and compile the smallest graph once, for ``device``."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    # Each imports much of torch, and of this package, at its first use.
    from .. import standalone
    from . import job, keys, making, plain_graph, traced  # noqa: F401

    if device:
        torch.cuda.set_device(device)
    mode = FakeTensorMode(shape_env=ShapeEnv())
    kind = device or "cpu"
    with torch.no_grad():
        with mode:
            x = torch.empty(4, 4, device=kind)
        graph = torch.fx.Graph()
        given = graph.placeholder("x")
        given.meta["example_value"] = x
        # No kernel of its own: on a CPU one would cost a C++ compiler's seconds.
        out = graph.call_function(torch.matmul, (given, given))
        if device:
            out = graph.call_function(torch.relu, (out,))
        graph.output((out,))
        own = traced.Traced(torch.fx.GraphModule({}, graph), mode, dynamo=True)
        with own.context():
            standalone.compile_graph(own.gm, own.inputs, {"triton.cudagraphs": False})
