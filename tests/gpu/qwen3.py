"""A Qwen3-shaped decoder in plain torch: what the measurements on a GPU run."""

import torch
from torch import nn
from torch.nn import functional

HEADS, GROUPS, SIZE, HIDDEN, WIDE, WORDS = 16, 8, 128, 1024, 3072, 32000
# Of a layer as large as those of Llama 3 8B.
LARGE = {"heads": 32, "groups": 8, "hidden": 4096, "wide": 14336}


class Norm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        # Of float64 no less: the reference runs the same code.
        wide = x if x.dtype == torch.float64 else x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * wide.to(x.dtype)


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


def waves(length, device, dtype):
    """Cosines and sines of the rotary embedding."""
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    at = torch.arange(length, device=device, dtype=exact)
    wave = 1e6 ** (-torch.arange(0, SIZE, 2, device=device, dtype=exact) / SIZE)
    angle = torch.outer(at, wave)
    angle = torch.cat((angle, angle), -1)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def linear(a, b):
    return nn.Linear(a, b, bias=False)


class Layer(nn.Module):
    def __init__(self, heads=HEADS, groups=GROUPS, hidden=HIDDEN, wide=WIDE):
        super().__init__()
        self.heads, self.groups = heads, groups
        self.before, self.after = Norm(hidden), Norm(hidden)
        self.q, self.o = linear(hidden, heads * SIZE), linear(heads * SIZE, hidden)
        self.k, self.v = linear(hidden, groups * SIZE), linear(hidden, groups * SIZE)
        self.q_norm, self.k_norm = Norm(SIZE), Norm(SIZE)
        self.gate, self.up = linear(hidden, wide), linear(hidden, wide)
        self.down = linear(wide, hidden)

    def forward(self, x, cos, sin):
        batch, length, _ = x.shape
        y = self.before(x)
        q = self.q_norm(self.q(y).view(batch, length, self.heads, SIZE)).transpose(1, 2)
        k = self.k_norm(self.k(y).view(batch, length, self.groups, SIZE)).transpose(1, 2)
        v = self.v(y).view(batch, length, self.groups, SIZE).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.o(y.transpose(1, 2).reshape(batch, length, -1))
        y = self.after(x)
        return x + self.down(functional.silu(self.gate(y)) * self.up(y))


class Model(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.embed = nn.Embedding(WORDS, HIDDEN)
        self.layers = nn.ModuleList(Layer() for _ in range(layers))
        self.norm, self.head = Norm(HIDDEN), linear(HIDDEN, WORDS)

    def forward(self, tokens):
        x = self.embed(tokens)
        cos, sin = waves(tokens.shape[1], tokens.device, x.dtype)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.head(self.norm(x))
