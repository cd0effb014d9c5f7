"""What serving does, for bench_turns.py: a step with a cache, experts, small weights.

Invariant: the same case on the same device is the same numbers, whoever asks for it.
"""

from __future__ import annotations

import qwen3
import torch
from torch import nn
from torch.nn import functional

# Of OLMoE: experts, those that a row takes, width of the model and of an expert.
EXPERTS, TAKEN, HIDDEN, INNER = 64, 8, 2048, 1024
# A linear of Llama 3 8B, and how many of its weights share a scale.
INPUTS, OUTPUTS, SHARED = 4096, 14336, 128
# Rows from which on more than the weights bounds a product.
FEW = 64
# The greatest e4m3fn.
GREATEST = 448.0


class Step(qwen3.Layer):
    """A token of each row, through a layer of 8B's size whose cache has `length` places."""

    def __init__(self, batch, length):
        super().__init__(**qwen3.LARGE)
        for name in ("keys", "values"):
            self.register_buffer(name, torch.randn(batch, self.groups, length, qwen3.SIZE))

    def forward(self, x, cos, sin, position):
        batch = x.shape[0]
        y = self.before(x)
        q = self.q_norm(self.q(y).view(batch, 1, self.heads, qwen3.SIZE)).transpose(1, 2)
        k = self.k_norm(self.k(y).view(batch, 1, self.groups, qwen3.SIZE)).transpose(1, 2)
        v = self.v(y).view(batch, 1, self.groups, qwen3.SIZE).transpose(1, 2)
        self.keys.index_copy_(2, position, qwen3.rotate(k, cos, sin))
        self.values.index_copy_(2, position, v)
        seen = (torch.arange(self.keys.shape[2], device=x.device) <= position)[None]
        y = functional.scaled_dot_product_attention(
            qwen3.rotate(q, cos, sin), self.keys, self.values, attn_mask=seen, enable_gqa=True
        )
        x = x + self.o(y.transpose(1, 2).reshape(batch, 1, -1))
        y = self.after(x)
        return x + self.down(functional.silu(self.gate(y)) * self.up(y))


class Experts(nn.Module):
    """Each row by some of the experts, which rows in groups are multiplied by."""

    def __init__(self):
        super().__init__()
        self.router = nn.Linear(HIDDEN, EXPERTS, bias=False)
        shapes = {"gate": (INNER, HIDDEN), "up": (INNER, HIDDEN), "down": (HIDDEN, INNER)}
        for name, (rows, columns) in shapes.items():
            weights = torch.randn(EXPERTS, rows, columns) / columns**0.5
            self.register_parameter(name, nn.Parameter(weights))

    def forward(self, x):
        weights, chosen = self.router(x).float().softmax(-1).topk(TAKEN, -1)
        flat = chosen.flatten()
        order = flat.argsort(stable=True)
        row = order // TAKEN
        counts = (flat[:, None] == torch.arange(EXPERTS, device=x.device)).sum(0)
        ends = counts.cumsum(0).to(torch.int32)

        def by(rows, matrices):
            return torch._grouped_mm(rows, matrices.transpose(1, 2), offs=ends)

        rows = x[row]
        y = by(functional.silu(by(rows, self.gate)) * by(rows, self.up), self.down)
        # Each row's own again, side by side.
        y = y[order.argsort()].unflatten(0, (-1, TAKEN))
        return (y * weights[:, :, None].to(y.dtype)).sum(1)


class Int4(nn.Module):
    """Weights of four bits, two in a byte, with a scale for each group of inputs."""

    def __init__(self):
        super().__init__()
        self.register_buffer("packed", torch.randint(0, 256, (OUTPUTS, INPUTS // 2)).byte())
        self.register_buffer("scales", torch.rand(OUTPUTS, INPUTS // SHARED).bfloat16() / 64)

    def forward(self, x):
        both = torch.stack((self.packed & 15, self.packed >> 4), -1)
        weights = both.view(OUTPUTS, INPUTS // SHARED, SHARED).to(x.dtype) - 8.0
        return functional.linear(x, (weights * self.scales[:, :, None]).flatten(1))


class Fp8(nn.Module):
    """Weights of e4m3fn with a scale for each output, rows that get one for themselves."""

    def __init__(self):
        super().__init__()
        self.register_buffer("weights", torch.randn(OUTPUTS, INPUTS).to(torch.float8_e4m3fn))
        self.register_buffer("scales", torch.rand(1, OUTPUTS) / 64)

    def forward(self, x):
        wide = x.float()
        scale = wide.abs().amax(-1, keepdim=True).clamp(min=1e-12) / GREATEST
        small = (wide / scale).clamp(-GREATEST, GREATEST).to(torch.float8_e4m3fn)
        weights = self.weights.t()
        return torch._scaled_mm(small, weights, scale, self.scales, out_dtype=torch.bfloat16)


def bytes_of(tensors) -> int:
    return sum(each.numel() * each.element_size() for each in tensors)


def serving(name: str, device: str):
    """The module, its arguments, and the bytes that it must move, if that bounds it."""
    kind, _, sizes = name.partition("-")
    torch.manual_seed(0)
    with torch.device(device):
        if kind == "decode":
            batch, length = (int(size) for size in sizes.split("x"))
            module = Step(batch, length).bfloat16()
            x = torch.randn(batch, 1, qwen3.LARGE["hidden"], dtype=torch.bfloat16)
            cos, sin = (wave[-1:] for wave in qwen3.waves(length, device, torch.bfloat16))
            arguments = (x, cos, sin, torch.tensor([length - 1]))
            return module.eval(), arguments, bytes_of([*module.parameters(), *module.buffers()])
        rows = int(sizes)
        module = {"moe": Experts, "int4": Int4, "fp8": Fp8}[kind]().eval()
        width = INPUTS
        if kind == "moe":
            module, width = module.bfloat16(), HIDDEN
        moved = bytes_of([*module.parameters(), *module.buffers()])
        if kind == "moe":
            moved = moved * min(EXPERTS, rows * TAKEN) // EXPERTS
        moved = moved if rows <= FEW else None
        return module, (torch.randn(rows, width, dtype=torch.bfloat16),), moved
