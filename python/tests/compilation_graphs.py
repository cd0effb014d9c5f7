"""Graphs that the tests of the compilation module compile: tiny, because g++ runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

WIDTH: int = 16


class Layer(nn.Module):
    """A decoder's layer: attention between two fusible parts."""

    def __init__(self) -> None:
        """Make random weights."""
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute."""
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm(x)).view(batch, tokens, 3, 2, width // 2)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))


def layers(count: int) -> nn.Module:
    """Make a model of equal layers, with different weights."""
    torch.manual_seed(0)
    return nn.Sequential(*[Layer() for _ in range(count)]).eval()


def block() -> torch.fx.GraphModule:
    """Return a graph that holds its parameters, as ``symbolic_trace`` gives it."""
    torch.manual_seed(0)
    return torch.fx.symbolic_trace(nn.Sequential(nn.Linear(8, 8), nn.GELU()).eval())


def rows(count: int) -> torch.Tensor:
    """Return inputs of ``block``."""
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(count))


def close(got: Any, expected: torch.Tensor) -> None:
    """Compare."""
    first = got[0] if isinstance(got, (tuple, list)) else got
    torch.testing.assert_close(first, expected, atol=1e-5, rtol=1e-5)
