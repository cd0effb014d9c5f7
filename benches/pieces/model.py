"""A model like a Qwen3 of 16 layers, with random weights, and its inputs."""

import torch
from torch import nn
from torch.nn import functional

WIDTH, HEADS, OF_HEAD, TOKENS = 1024, 16, 128, 256


class Norm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        wide = x.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return (wide * scale).to(x.dtype) * self.weight


class Layer(nn.Module):
    def __init__(self, width):
        super().__init__()
        all_heads = HEADS * OF_HEAD
        self.before, self.after = Norm(width), Norm(width)
        self.of_q, self.of_k = Norm(OF_HEAD), Norm(OF_HEAD)

        def linear(given, gives):
            return nn.Linear(given, gives, bias=False)

        self.q, self.k = linear(width, all_heads), linear(width, all_heads // 2)
        self.v, self.out = linear(width, all_heads // 2), linear(all_heads, width)
        self.gate, self.up = linear(width, 3 * width), linear(width, 3 * width)
        self.down = linear(3 * width, width)

    def forward(self, x, cos, sin):
        batch, tokens, _ = x.shape

        def heads(y, count):
            return y.view(batch, tokens, count, OF_HEAD)

        def turned(y):
            low, high = y[..., : OF_HEAD // 2], y[..., OF_HEAD // 2 :]
            return y * cos + torch.cat((-high, low), -1) * sin

        h = self.before(x)
        q = self.of_q(heads(self.q(h), HEADS)).transpose(1, 2)
        k = self.of_k(heads(self.k(h), HEADS // 2)).transpose(1, 2)
        v = heads(self.v(h), HEADS // 2).transpose(1, 2)
        k, v = turned(k).repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        mixed = functional.scaled_dot_product_attention(turned(q), k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, tokens, -1))
        h = self.after(x)
        return x + self.down(functional.silu(self.gate(h)) * self.up(h))


class Model(nn.Module):
    def __init__(self, layers, width):
        super().__init__()
        self.layers = nn.ModuleList(Layer(width) for _ in range(layers))

    def forward(self, x, cos, sin):
        for layer in self.layers:
            x = layer(x, cos, sin)
        return x


def made(layers, width, device, dtype):
    """The model and its inputs."""
    torch.manual_seed(0)
    model = Model(layers, width).to(device, dtype).eval()
    x = torch.randn(1, TOKENS, width, device=device, dtype=dtype)
    steps = 1 / (1e6 ** (torch.arange(0, OF_HEAD, 2) / OF_HEAD))
    angles = torch.outer(torch.arange(float(TOKENS)), steps).repeat(1, 2).to(device)
    return model, (x, angles.cos().to(dtype), angles.sin().to(dtype))
