"""Graphs on GPUs that this machine has not: fake tensors, and what torch asks a driver."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv

SIZE = 4


def scaled(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Compute something, with an operation that is told its device."""
    return torch.relu(x @ weight) + torch.arange(SIZE, device=x.device)


def on_gpus(
    function: Callable[..., Any], *devices: str
) -> tuple[torch.fx.GraphModule, list[torch.Tensor]]:
    """Trace ``function`` of square inputs on these devices; the graph and its inputs."""
    mode = FakeTensorMode(shape_env=ShapeEnv())
    with mode:
        inputs = [torch.empty(SIZE, SIZE, device=each) for each in devices]

    # Without annotations: torch 2.11 cannot pickle a graph that has some.
    def plain(*given):  # noqa: ANN002, ANN202
        return function(*given)

    return make_fx(plain, tracing_mode="fake")(*inputs), inputs
