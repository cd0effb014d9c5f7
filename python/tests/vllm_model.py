"""A process that compiles a toy model through vLLM's compilation package, and tells how.

Prints one JSON line. No engine, no GPU: the real ``vllm.compilation`` on CPU.
"""

from __future__ import annotations

import json
import os
import sys

import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.library import Library
from vllm.compilation import decorators
from vllm.compilation.counter import compilation_counter
from vllm.compilation.decorators import support_torch_compile
from vllm.config import (
    CompilationConfig,
    CompilationMode,
    CUDAGraphMode,
    DeviceConfig,
    VllmConfig,
    set_current_vllm_config,
)
from vllm.forward_context import set_forward_context
from vllm.plugins import load_general_plugins

WIDTH = 64
LAYERS = 3

library = Library("kilntoy", "FRAGMENT")
library.define("mix(Tensor q, Tensor k, Tensor(a!) out) -> ()")


def _mix(q: torch.Tensor, k: torch.Tensor, out: torch.Tensor) -> None:
    """What vLLM splits its graphs at: opaque, and writes to its last argument."""
    out.copy_(torch.softmax(q @ k.T, dim=-1) @ k)


library.impl("mix", _mix, "CPU")
library.impl("mix", lambda q, k, out: None, "Meta")  # noqa: ARG005


# vLLM's passes look for this by name; a vLLM built without kernels lacks it.
kernels = Library("_C", "FRAGMENT")
if not hasattr(torch.ops._C, "rotary_embedding"):
    kernels.define("rotary_embedding(Tensor x) -> Tensor")


class Layer(nn.Module):
    """A layer with the splitting operation in the middle."""

    def __init__(self) -> None:
        """Make random weights."""
        super().__init__()
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Mix the tokens."""
        q, k = torch.nn.functional.silu(self.up(x)).split(WIDTH, dim=-1)
        out = torch.empty_like(q)
        torch.ops.kilntoy.mix(q, k, out)
        return x + self.down(out)


@support_torch_compile(dynamic_arg_dims={"x": 0})
class Toy(nn.Module):
    """A model as vLLM wants them."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "", **_: object) -> None:  # noqa: ARG002
        """Make its layers."""
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the layers."""
        for layer in self.layers:
            x = layer(x)
        return x


def _changed(*_: object) -> None:
    """Judge as vLLM does where a source was edited."""
    raise RuntimeError("Source code has changed since the last compilation.")


def main() -> None:
    """Compile, run, compare with eager, and tell."""
    load_general_plugins()
    if os.environ.get("KILN_TEST_STALE"):
        decorators._verify_source_unchanged = _changed
    config = VllmConfig(
        device_config=DeviceConfig("cpu"),
        # Its fusion passes are for GPUs.
        optimization_level=0,
        compilation_config=CompilationConfig(
            mode=CompilationMode.VLLM_COMPILE,
            splitting_ops=["kilntoy::mix"],
            cudagraph_mode=CUDAGraphMode.NONE,
            compile_sizes=[],
        ),
    )
    torch.manual_seed(0)
    with set_current_vllm_config(config):
        model = Toy(vllm_config=config).eval()
    sums = []
    with torch.no_grad(), set_current_vllm_config(config):
        for tokens in (16, 8):
            torch.manual_seed(tokens)
            x = torch.randn(tokens, WIDTH)
            expected = model.forward(x)
            with set_forward_context({}, vllm_config=config):
                got = model(x)
            torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
            sums.append(got.double().sum().item())
    from kiln_torch import flush, stats

    flush()
    json.dump(
        {
            "sums": sums,
            "stats": stats(),
            "vllm": vars(compilation_counter),
            "inductor": dict(counters["inductor"]),
            "autograd": dict(counters["aot_autograd"]),
            "backend": config.compilation_config.backend,
        },
        sys.stdout,
    )
    print()


if __name__ == "__main__":
    main()
